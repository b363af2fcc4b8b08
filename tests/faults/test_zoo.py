"""Hostile and damaged models are refused by name before anything of them runs; clean ones load."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from peft import PeftModel
from tests.faults.zoo import (
    BEASTS,
    WEIGHTS,
    Payload,
    code_for,
    edit,
    flip_bit,
    plant,
    refusal,
    save_adapter,
    save_clean,
    spoil_tensor,
    zipped_pickle,
)
from tests.parity.tiny import make_model
from transformers import AutoModelForCausalLM

from tunesmith import assets, cli
from tunesmith.config import TuneConfig
from tunesmith.methods import additive
from tunesmith.methods.table import METHODS
from tunesmith.models.load import load_config, load_network, load_tokenizer, resolve_model
from tunesmith.models.safety import check_folder, refuse_foreign
from tunesmith.models.template import check_template
from tunesmith.models.wrap import read


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clean(tmp_path_factory.mktemp("clean") / "model")


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(clean, tmp_path / "model"))


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """What ran leaves this file; nothing may."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code of the model was run"


def read_by(reader: str, folder: Path) -> None:
    if reader == "tokenizer":
        load_tokenizer(str(folder), str(folder), "generation")
    load_network(str(folder), "generation")


# The canary is real


def test_the_payloads_would_run(tmp_path: Path) -> None:
    """By hand, in processes of their own, each writes the canary."""
    plant(tmp_path, tmp_path / "imported")
    (tmp_path / "raw.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "unpickled")))
    (tmp_path / "packed.zip").write_bytes(zipped_pickle(tmp_path / "unzipped"))
    attack = f"{{{{ cycler.__init__.__globals__.__builtins__.exec({code_for(tmp_path / 'rendered')!r}) }}}}"
    (tmp_path / "attack.jinja").write_text(attack)
    program = (
        "import pickle, zipfile, jinja2, evil\n"
        "pickle.load(open('raw.pkl', 'rb'))\n"
        "pickle.loads(zipfile.ZipFile('packed.zip').read('archive/data.pkl'))\n"
        "jinja2.Environment().from_string(open('attack.jinja').read()).render()\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": "."})
    assert all((tmp_path / name).exists() for name in ("imported", "unpickled", "unzipped", "rendered"))
    assert "Python's internals" in refusal(check_template, attack, "given")


class Reached(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("beast", ["weights by another name", "an index of pickles"])
def test_transformers_alone_would_read_the_pickle(
    beast: str, folder: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although it is told to use safetensors: so these ways in have to be closed here."""

    def reach(*_: object, **__: object) -> None:
        raise Reached

    BEASTS[beast].spoil(folder, canary)
    (folder / "adapter_model.bin").write_bytes(zipped_pickle(canary))
    (folder / "pytorch_model.bin").write_bytes(zipped_pickle(canary))
    monkeypatch.setattr(torch, "load", reach)
    with pytest.raises(Reached):
        AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)


# The zoo


@pytest.mark.parametrize("name", BEASTS)
def test_a_beast_is_refused_by_name(name: str, folder: Path, canary: Path) -> None:
    beast = BEASTS[name]
    beast.spoil(folder, canary)
    said = refusal(read_by, beast.reader, folder)
    for words in beast.words:
        assert words in said
    assert str(folder) in said


def test_damage_after_the_first_check_is_seen(folder: Path) -> None:
    load_network(str(folder), "generation")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    assert "cut off" in refusal(load_network, str(folder), "generation")


def test_a_body_of_another_size_is_refused_for_a_task_with_a_new_head(folder: Path) -> None:
    """transformers would draw such weights at random, as it does a head of another size."""
    edit(folder / "config.json", intermediate_size=64)
    said = refusal(load_network, str(folder), "classification", ("a", "b"))
    assert "gate_proj.weight, there (48, 32), here (64, 32)" in said or "there (32, 48), here (32, 64)" in said


# Adapters


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # plain peft
def test_an_adapter_given_as_model_is_its_base_with_the_adapter_merged(clean: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", clean)
    network, base = load_network(str(adapter), "generation"), load_network(str(clean), "generation")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(clean), adapter)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        theirs = plain(ids).logits
        for model in (network.model, base.model):
            model.set_attn_implementation("eager")
        torch.testing.assert_close(network.model(ids).logits, theirs, atol=1e-5, rtol=1e-5)
        assert (base.model(ids).logits - theirs).abs().max() > 1e-2, "the adapter changes nothing"
    assert network.folder == str(adapter)
    assert load_config(str(adapter), "given").hidden_size == base.model.config.hidden_size
    assert network.fingerprint == load_network(str(adapter), "generation").fingerprint != base.fingerprint


def test_the_adapter_of_a_classifier_brings_its_head(clean: Path, tmp_path: Path) -> None:
    network = load_network(str(clean), "classification", ("a", "b"))
    METHODS["lora"].apply(network, settings("lora"))
    METHODS["lora"].saving.save(network, tmp_path / "adapter")
    merged = load_network(str(tmp_path / "adapter"), "classification", ("a", "b"))
    assert merged.new_modules == ()
    torch.testing.assert_close(merged.model.score.weight, network.model.score.modules_to_save["default"].weight)
    said = refusal(load_network, str(tmp_path / "adapter"), "classification", ("a", "b", "c"))
    assert "does not fit the base model" in said


def test_the_base_of_an_adapter_is_judged_too(folder: Path, canary: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", folder)
    plant(folder, canary)
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    said = refusal(load_network, str(adapter), "generation")
    assert f"is an adapter for the base model '{folder}', which cannot be used" in said
    assert "auto_map" in said
    for name, words in {
        "nobody/nothing": "cannot load model",
        "": "names no base model",
        str(adapter): "an adapter itself",
    }.items():
        edit(adapter / "adapter_config.json", base_model_name_or_path=name)
        assert words in refusal(load_network, str(adapter), "generation")


ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "a package": ({"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}}, "a package other than"),
    "another package": ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, "megatron_config"),
    "adapters of adapters": ({"peft_type": "XLORA"}, "an adapter of type XLORA"),
    "trust": ({"tokenizer_kwargs": {"trust_remote_code": True}}, "trust_remote_code"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_hostile_adapter_is_refused(name: str, clean: Path, canary: Path, tmp_path: Path) -> None:
    changes, words = ADAPTERS[name]
    adapter = save_adapter(tmp_path / "adapter", clean, **changes)
    plant(adapter, canary)
    for call, given in (
        (load_network, (str(adapter), "generation")),
        (read, (make_model("llama", "generation"), adapter)),
    ):
        said = refusal(call, *given)
        assert "adapter_config.json" in said
        assert words in said


def test_a_pickled_adapter_is_refused(clean: Path, canary: Path, tmp_path: Path) -> None:
    """PEFT falls back to it when the safetensors file is missing."""
    adapter = save_adapter(tmp_path / "adapter", clean)
    (adapter / "adapter_model.safetensors").rename(adapter / "kept")
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Payload(canary)))
    said = refusal(read, make_model("llama", "generation"), adapter)
    assert "adapter_model.bin" in said
    assert "no adapter_model.safetensors beside it" in said
    (adapter / "kept").rename(adapter / "adapter_model.safetensors")
    read(make_model("llama", "generation"), adapter)
    (adapter / "adapter_config.json").unlink()
    assert "not an adapter" in refusal(read, make_model("llama", "generation"), adapter)


def test_a_model_and_an_adapter_in_one_folder_are_refused(folder: Path, clean: Path) -> None:
    save_adapter(folder, clean)
    assert "holds a whole model and an adapter" in refusal(load_network, str(folder), "generation")


@pytest.mark.parametrize("other", ["gpt2", "fewer layers", "a tensor less", "NaN"])
def test_an_adapter_that_does_not_fit_is_refused(other: str, clean: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", clean)
    model = make_model("gpt2" if other == "gpt2" else "llama", "generation")
    if other == "fewer layers":
        del model.model.layers[-1]
    elif other == "a tensor less":
        change_adapter(adapter, lambda weights: weights.pop(next(iter(weights))))
    elif other == "NaN":
        change_adapter(adapter, lambda weights: next(iter(weights.values())).fill_(torch.nan))
    said = refusal(read, model, adapter)
    assert str(adapter) in said
    assert ("holds NaN" if other == "NaN" else "does not fit the base model") in said


def change_adapter(folder: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def test_bottlenecks_go_on_their_own_base_only(folder: Path, tmp_path: Path) -> None:
    network = load_network(str(folder), "generation")
    additive.add_bottlenecks(network, settings("bottleneck"))
    (tmp_path / "run").mkdir()
    additive.save_bottlenecks(network, tmp_path / "run")
    additive.restore_bottlenecks(load_network(str(folder), "generation"), tmp_path / "run")
    other = load_network(str(save_clean(tmp_path / "other", seed=1)), "generation")
    said = refusal(additive.restore_bottlenecks, other, tmp_path / "run")
    assert f"{tmp_path / 'run'}: made from another base model" in said
    assert other.fingerprint[:16] in said
    edit(tmp_path / "run" / "bottleneck.json", base_fingerprint="")
    smaller = load_network(str(folder), "generation")
    del smaller.model.model.layers[-1]
    assert "adapters for another model" in refusal(additive.restore_bottlenecks, smaller, tmp_path / "run")


def settings(method: str) -> TuneConfig:
    small = {"num_last_layers": 2, "bottleneck_size": 4, "lora_r": 2, "trained_parameters": "*.1.*"}
    return TuneConfig.read(given={"model": "m", "data": "d", "method": method, "precision": "fp32"} | small)


# Fingerprints


def test_a_fingerprint_is_that_of_the_weights_alone(clean: Path, tmp_path: Path) -> None:
    base = load_network(str(clean), "generation").fingerprint
    assert len(base) == 64
    sharded = save_clean(tmp_path / "sharded", max_shard_size="20KB")
    shards = json.loads((sharded / f"{WEIGHTS}.index.json").read_text())["weight_map"]
    assert len(set(shards.values())) > 2
    assert load_network(str(sharded), "generation").fingerprint == base
    assert load_network(str(save_clean(tmp_path / "other", seed=1)), "generation").fingerprint != base
    flip_bit(sharded / shards["model.norm.weight"], "model.norm.weight", bit=7)  # the sign: still a number
    assert load_network(str(sharded), "generation").fingerprint != base


def test_a_new_head_is_no_part_of_the_fingerprint(clean: Path) -> None:
    networks = []
    for seed, classes in ((0, ("a", "b")), (1, ("a", "b")), (2, ("a", "b", "c"))):
        torch.manual_seed(seed)
        networks.append(load_network(str(clean), "classification", classes))
    assert networks[0].new_modules == ("score",)
    assert (networks[0].model.score.weight != networks[1].model.score.weight).any()
    assert len({network.fingerprint for network in networks}) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_method_leaves_the_fingerprint(method: str, clean: Path) -> None:
    network = load_network(str(clean), "classification", ("a", "b"))
    before = network.fingerprint
    if method not in ("bitfit", "cross-attention"):  # nothing there to train
        METHODS[method].apply(network, settings(method))
    assert network.fingerprint == before == load_network(str(clean), "classification", ("a", "b")).fingerprint


def test_a_run_is_refused_on_another_base() -> None:
    network = SimpleNamespace(fingerprint="a" * 64, source="mine")
    refuse_foreign(network, "a" * 64, "runs/x")
    refuse_foreign(network, "", "runs/from before fingerprints")
    assert "runs/x: made from another base model than 'mine'" in refusal(refuse_foreign, network, "b" * 64, "runs/x")


# The hub


def fill_hub(cache: Path, model: Path, name: str) -> None:
    """The hub's cache as it is after a download: snapshots are links to blobs."""
    root, commit = cache / f"models--{name.replace('/', '--')}", "0" * 40
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    (root / "blobs").mkdir()
    (root / "snapshots" / commit).mkdir(parents=True)
    for path in model.iterdir():
        shutil.copy(path, root / "blobs" / path.name)
        (root / "snapshots" / commit / path.name).symlink_to(root / "blobs" / path.name)


def test_a_hub_model_is_a_folder_and_judged_like_one(
    folder: Path, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    fill_hub(tmp_path / "hub", folder, "owner/tiny")
    network = load_network("owner/tiny", "generation")
    assert network.source == "owner/tiny"
    assert (
        network.folder
        == resolve_model("owner/tiny")
        == str(tmp_path / "hub/models--owner--tiny/snapshots" / ("0" * 40))
    )
    BEASTS["code"].spoil(folder, canary)
    shutil.rmtree(folder / "custom_generate")
    fill_hub(tmp_path / "hub", folder, "owner/evil")
    assert "auto_map" in refusal(load_network, "owner/evil", "generation")
    said = refusal(load_network, "owner/absent", "generation")
    assert said.startswith("cannot load model 'owner/absent' from the hub: ")
    assert "or give a catalogue name or a folder" in said
    assert "owner/na me" in refusal(resolve_model, "owner/na me")


def test_only_what_cannot_run_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.utils import filter_repo_objects

    from tunesmith.models import hub

    asked: dict[str, Any] = {}
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **patterns: asked.update(patterns) or str(tmp_path))
    assert resolve_model("owner/model") == str(tmp_path)
    wanted = (
        "config.json generation_config.json tokenizer.json tokenizer_config.json vocab.json merges.txt spiece.model"
    )
    wanted += " model.safetensors model-00001-of-00002.safetensors model.safetensors.index.json chat_template.jinja"
    wanted += " adapter_config.json adapter_model.safetensors special_tokens_map.json"
    others = (
        "pytorch_model.bin modeling_x.py model.pt model.ckpt tf_model.h5 flax.msgpack onnx/model.onnx x.pkl README.md"
    )
    others += " original/consolidated.safetensors consolidated.safetensors custom_generate/generate.py evil.config.bin"
    kept = filter_repo_objects([*wanted.split(), *others.split()], **asked)
    assert set(kept) == set(wanted.split())


# Clean ones


def test_what_is_not_read_may_lie_beside(folder: Path, canary: Path) -> None:
    before = load_network(str(folder), "generation").fingerprint
    for name in (
        "pytorch_model.bin",
        "adapter_model.bin",
        "rng_state.pth",
        "training_args.bin",
        "optimizer.pt",
        "x.pkl",
    ):
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))
    plant(folder, canary)
    for name in ("tokenizer_config.json", "config.json"):
        edit(folder / name, auto_map={}, trust_remote_code=False)
    edit(folder / "config.json", attn_implementation="sdpa", label2id={"auto_map": 1}, id2label={"1": "auto_map"})
    assert load_network(str(folder), "generation").fingerprint == before


def test_an_adapter_of_transformers_itself_is_clean(clean: Path, tmp_path: Path) -> None:
    """PEFT writes such a mapping where it does not know the task."""
    adapter = save_adapter(tmp_path / "adapter", clean)
    mapping = json.loads((adapter / "adapter_config.json").read_text())["auto_mapping"]
    assert mapping["parent_library"].startswith("transformers.")
    check_folder(adapter, "adapter")


def test_what_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder / WEIGHTS))

    monkeypatch.setattr(Path, "open", refuse)
    assert f"{folder / WEIGHTS} cannot be read: Permission denied" in refusal(check_folder, folder, "given")


def test_the_catalogue_passes() -> None:
    for name in assets.MODELS:
        if (assets.cache_root() / name).is_dir():
            check_folder(assets.cache_root() / name, name)


# The command line


def test_the_command_refuses_and_leaves_nothing(
    folder: Path, canary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code in the model, in a process of its own; NaN in its weights, in this one."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f'{{"prompt": "w{i}", "completion": "w{i + 1}"}}\n' for i in range(5, 65)))
    command = ["tune", "--data", str(data), "--max-length", "60", "--output", str(tmp_path / "run"), "--model"]
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    name = spoil_tensor(broken, torch.nan)
    assert cli.run([*command, str(broken)]) == 2
    assert f"the weight {name} holds NaN" in capsys.readouterr().err
    BEASTS["code in a part"].spoil(folder, canary)
    program = [sys.executable, "-m", "tunesmith.cli", *command, str(folder)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "text_config.inner.deep.auto_map: names Python code" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()
