"""Runs of methods, what they save and who can load it; fused layers; what is refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from tests.parity.test_packed import make_rows, padded_loss
from tests.parity.tiny import make_model, make_network, make_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tunesmith.config import TuneConfig
from tunesmith.data import sources
from tunesmith.data.pack import pack
from tunesmith.data.split import split
from tunesmith.data.tokenize import tokenize
from tunesmith.errors import InputError
from tunesmith.methods import full
from tunesmith.methods.apply import default_learning_rate, find_rates, put_under
from tunesmith.methods.method import Method
from tunesmith.methods.table import METHODS, choose_methods
from tunesmith.models import lean
from tunesmith.models.load import Network
from tunesmith.models.lowrank import find_norms
from tunesmith.models.packed import packed_logits
from tunesmith.records import Split, TokenizedExample
from tunesmith.runs.run import Run
from tunesmith.train.loop import set_learning_rate, trainable
from tunesmith.train.objective import judged_losses
from tunesmith.train.optim import Rate, make_optimizer
from tunesmith.train.step import Plan
from tunesmith.tuning import find_max_length, tune

MODELS = [("bert", "classification"), ("llama", "generation"), ("gpt2", "generation")]
# One method for each way to save; every method on every kind of model is in the matrix.
SAVED = ("full", "bottleneck", "prompt", "p-tuning", "lora", "pissa")
CASES = [(kind, task, name) for kind, task in MODELS for name in SAVED]


def config(name: str, **more: Any) -> TuneConfig:
    small = {"num_last_layers": 2, "bottleneck_size": 4, "lora_r": 2, "num_virtual_tokens": 3}
    small |= {"trained_parameters": "*.1.*"}
    return TuneConfig.read(given={"model": "m", "data": "d", "method": name, "precision": "fp32"} | small | more)


def rows_of(task: str) -> list[dict[str, str]]:
    rng = random.Random(0)
    rows = []
    for index in range(60):
        text = " ".join(f"w{rng.randrange(5, 90)}" for _ in range(rng.randrange(2, 9))) + f" w{5 + index}"
        if task == "classification":
            rows.append({"text": text, "label": "abc"[index % 3]})
        else:
            rows.append({"prompt": text, "completion": f"w{5 + index} w{6 + index}"})
    return rows


def parts_of(task: str) -> Split:
    return split(sources.load(rows_of(task)), 0)


def tokenized(network: Network, task: str) -> list[TokenizedExample]:
    return tokenize(parts_of(task).test, network.tokenizer, 60)


def applied(kind: str, task: Any, name: str, folder: Path, **more: Any) -> Network:
    network = make_network(kind, task, folder)
    torch.manual_seed(0)
    METHODS[name].apply(network, config(name, **more))
    network.model.eval()
    return network


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_fused_layers_equal_peft(kind: str, method: str, tmp_path: Path) -> None:
    """Value and every gradient, with B away from zero, through biases and GPT-2's transposed layers."""
    task = "classification" if kind == "bert" else "generation"
    network = applied(kind, task, method, tmp_path)
    layers = [module for module in network.model.modules() if isinstance(module, LoraLinear)]
    assert len(layers) >= 12
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
        x = torch.randn(2, 5, layer.in_features)
        results = []
        for forward in (layer.forward, lambda y, layer=layer: type(layer).forward(layer, y)):
            inputs = x.clone().requires_grad_(True)
            layer.zero_grad()
            out = forward(inputs)
            out.square().sum().backward()
            weights = [layer.lora_A["default"], layer.lora_B["default"]]
            weights += [layer.lora_magnitude_vector["default"]] if method == "dora" else []
            results.append([out.detach(), inputs.grad, *(module.weight.grad.clone() for module in weights)])
        assert "forward" in vars(layer), "the layer computes by PEFT's own function, so nothing is compared"
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=2e-5)


def test_norms_need_no_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    w, a, b = (torch.randn(*shape, generator=generator) for shape in ((30, 50), (4, 50), (30, 4)))
    textbook = torch.linalg.norm(w.double() + 0.7 * b.double() @ a.double(), dim=1)
    torch.testing.assert_close(find_norms(w, a, b, 0.7).double(), textbook, rtol=1e-6, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(find_norms(w, a, b, 0.7).double(), textbook, rtol=1e-6, atol=0)
    # A row that the update cancels: the sum of three terms must not fall below zero.
    assert find_norms(b @ a * -0.7, a, b, 0.7).max() < 0.02


def lora_gradients(
    kind: str, folder: Path, method: str = "lora"
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Of every adapter weight: by our packed pass, and by plain PEFT on plain transformers with padded rows."""
    network, rows = applied(kind, "generation", method, folder), make_rows("generation")
    for name, parameter in trainable(network):
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    network.wrapper.save_pretrained(folder / "adapter")  # type: ignore[union-attr, operator]
    judged_losses(network, pack(rows))[0].mean().backward()
    plain = PeftModel.from_pretrained(make_model(kind, "generation"), folder / "adapter", is_trainable=True)
    padded_loss(plain, rows, "generation").backward()
    theirs = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad}
    return {name: p.grad for name, p in trainable(network)}, theirs  # type: ignore[misc]


def largest_gap(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Relative to the largest gradient: with B so far from zero they go up to 3."""
    assert ours.keys() == theirs.keys()
    gap = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    return gap / max(float(grad.abs().max()) for grad in theirs.values())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # plain peft
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
def test_lora_gradients_are_those_of_plain_peft(kind: str, method: str, tmp_path: Path) -> None:
    """Llama and Qwen make the inputs of their layers again on the way back; Gemma 2 and GPT-2 keep them."""
    assert largest_gap(*lora_gradients(kind, tmp_path, method)) <= 3e-5


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(("maker", "forward"), [("_normalise", 7), ("_silu_product", 3)])
def test_an_input_made_again_wrongly_is_caught(
    maker: str, forward: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, used = getattr(lean, maker), []

    def wrong(*args: Any) -> Any:
        used.append(args)
        made = right(*args)
        if len(used) <= forward + 1:  # a probe, and the forward pass
            return made
        return (made[0] * 1.1, made[1]) if isinstance(made, tuple) else made * 1.1

    monkeypatch.setattr(lean, maker, wrong)
    assert largest_gap(*lora_gradients("llama", tmp_path)) > 1e-3


def test_switched_off_the_adapter_is_not_there(tmp_path: Path) -> None:
    network = applied("llama", "generation", "lora", tmp_path)
    batch = pack(tokenized(network, "generation"))
    for module in network.model.modules():
        if isinstance(module, LoraLinear):
            torch.nn.init.normal_(module.lora_B["default"].weight)
    base = make_network("llama", "generation", tmp_path / "base")
    base.model.eval()
    on = packed_logits(network, batch)
    with network.wrapper.disable_adapter():  # type: ignore[union-attr, operator]
        off = packed_logits(network, batch)
    torch.testing.assert_close(off, packed_logits(base, batch))
    assert (on - off).abs().max() > 0.1


@pytest.mark.parametrize(
    ("kind", "name", "more", "words"),
    [
        ("llama", "bitfit", {}, "has no bias vectors"),
        ("gpt2", "head-only", {}, "tied weights"),
        ("llama", "lora", {"target_modules": "q_prj"}, "has no linear layer called 'q_prj'. It has down_proj"),
        ("llama", "last-layers", {"num_last_layers": 4}, "has 3 layers"),
        ("llama", "first-layers", {"num_first_layers": 4}, "has 3 layers"),
        ("llama", "chosen", {"trained_parameters": ""}, "chosen trains what --trained-parameters names"),
        ("llama", "chosen", {"trained_parameters": "layers.7.*"}, "has no parameter that fits 'layers.7.*'"),
        ("llama", "c3a", {"method_options": "c3a.block_size=7"}, "c3a cannot be applied to"),
    ],
)
def test_names_that_match_nothing_are_errors(
    kind: str, name: str, more: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        applied(kind, "generation", name, tmp_path, **more)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("vera.rank", "'vera.rank', which is for none of the methods: did you mean 'vera.r'?"),
        ("c3a.block_size", "'c3a.block_size', which is for none of the methods"),
        ("full.r", "'full.r', which is for none of the methods: full, vera take none"),
    ],
)
def test_an_option_for_nobody_is_an_error(option: str, words: str) -> None:
    assert choose_methods(["vera", "full"], {"vera.r": 8}) == [METHODS["vera"], METHODS["full"]]
    with pytest.raises(InputError) as caught:
        choose_methods(["full", "vera"], {"vera.r": 8, option: 1})
    assert words in str(caught.value)


def test_virtual_tokens_take_places_of_a_row(tmp_path: Path) -> None:
    base = str(save_base("llama", "generation", tmp_path))
    longest = {name: find_max_length(config(name, model=base)) for name in METHODS}
    assert {name for name, length in longest.items() if length == 64 - 3} == {"prompt", "p-tuning", "prefix"}
    assert set(longest.values()) == {64, 64 - 3}


def test_attention_is_found_inside_of_sublayers(tmp_path: Path) -> None:
    """T5 keeps attention, and the norm before it, in a part of a block."""
    network = applied("t5", "generation", "attention", tmp_path)
    names = [name for name, _ in trainable(network)]
    reading, writing = network.model.config.num_layers, network.model.config.num_decoder_layers
    assert len(names) == 4 * reading + 8 * writing + 2, "four matrices of each attention, two tables of distances"
    assert all(".SelfAttention." in name or ".EncDecAttention." in name for name in names)


def test_learning_rates_fall_with_the_width(tmp_path: Path) -> None:
    network = make_network("llama", "generation", tmp_path)
    network.model.config.hidden_size = 4096
    assert default_learning_rate(METHODS["lora"], network) == pytest.approx(1.25e-4, rel=0.05)
    assert default_learning_rate(METHODS["norms"], network) == METHODS["norms"].learning_rate[1]


def test_blocks_learn_slower_and_later_the_deeper_they_lie(tmp_path: Path) -> None:
    """Three blocks: by factors 1, d and d^2, and one epoch after the other; embeddings last."""
    network = make_network("bert", "classification", tmp_path)
    given = config("full", layer_decay=0.5, gradual_unfreezing=1.0)
    METHODS["full"].apply(network, given)
    rates = find_rates(network, METHODS["full"], given)
    place = "bert.encoder.layer.{}.output.dense.weight"
    assert [rates.get(place.format(block), Rate()) for block in (2, 1, 0)] == [Rate(1, 0), Rate(0.5, 1), Rate(0.25, 2)]
    assert rates["bert.embeddings.word_embeddings.weight"] == Rate(0.125, 3)
    assert "classifier.weight" not in rates

    named = trainable(network)
    optimizer = make_optimizer(named, 1e-2, 0.1, "adamw", rates)
    plan = Plan(1e-2, rates=rates, schedule="constant", warmup_ratio=0.0)
    batch = pack(make_rows("classification"))
    for epoch in range(4):
        before = {name: parameter.clone() for name, parameter in named}
        assert set_learning_rate(optimizer, plan, epoch, 4, float(epoch)) == 1e-2
        judged_losses(network, batch)[0].mean().backward()
        optimizer.step()
        moved = [not torch.equal(dict(named)[place.format(block)], before[place.format(block)]) for block in (2, 1, 0)]
        assert moved == [epoch >= depth for depth in range(3)]
        embeddings = "bert.embeddings.word_embeddings.weight"
        assert torch.equal(dict(named)[embeddings], before[embeddings]) == (epoch < 3)


def test_what_holds_pretrained_weights_needs_some(tmp_path: Path) -> None:
    network = make_network("bert", "classification", tmp_path)
    with pytest.raises(InputError, match=r"l2_sp holds pretrained weights near.* and lora trains none"):
        put_under(network, METHODS["lora"], config("lora", l2_sp=0.1), torch.float32, lambda _: None)


def save_base(kind: str, task: Any, folder: Path) -> Path:
    model = make_model(kind, task)
    model.save_pretrained(folder)
    make_tokenizer(model.config.pad_token_id).save_pretrained(folder)
    return folder


def plain_logits(run: Path, base: Path, name: str, rows: list[TokenizedExample], task: str) -> list[torch.Tensor]:
    """What plain transformers, or plain peft on the base model, say of each row alone."""
    auto = AutoModelForCausalLM if task == "generation" else AutoModelForSequenceClassification
    if METHODS[name].saving.whole:
        model = auto.from_pretrained(run)
    else:
        kwargs = {} if task == "generation" else {"num_labels": 3}
        model = PeftModel.from_pretrained(auto.from_pretrained(base, **kwargs), run)
    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row.input_ids])).logits[0] for row in rows]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # plain peft
@pytest.mark.parametrize(("kind", "task", "name"), CASES)
def test_a_saved_run_is_the_model_that_was_trained(kind: str, task: str, name: str, tmp_path: Path) -> None:
    """Through `Run.open`, and, bottleneck apart, through plain transformers or peft: the same logits."""
    base = save_base(kind, task, tmp_path / "base")
    settings = {"model": str(base), "num_train_epochs": 1, "output": tmp_path / "run", "learning_rate": 0.02}
    run = tune(config(name, **settings), parts_of(task), quiet=True)
    rows = tokenized(run.network, task)[:3]
    run.network.model.eval()
    singles = [pack([row], run.network.num_virtual) for row in rows]
    if task == "generation":
        every = [replace(batch, predict_from=torch.arange(len(batch.input_ids))) for batch in singles]
        ours = [packed_logits(run.network, batch) for batch in every]
    else:
        ours = [packed_logits(run.network, batch)[0] for batch in singles]
    again = Run.open(run.folder).network
    for batch, before in zip(every if task == "generation" else singles, ours, strict=True):
        logits = packed_logits(again, batch)
        torch.testing.assert_close(logits if task == "generation" else logits[0], before, atol=1e-5, rtol=1e-5)
    if name == "bottleneck":
        return
    for theirs, before in zip(plain_logits(run.folder, base, name, rows, task), ours, strict=True):
        torch.testing.assert_close(
            theirs[-len(before) :] if task == "generation" else theirs, before, atol=1e-5, rtol=1e-5
        )


def test_the_run_folder_is_complete(tmp_path: Path) -> None:
    base = save_base("bert", "classification", tmp_path / "base")
    given = config("lora", model=str(base), num_train_epochs=2, output=tmp_path / "run")
    run = tune(given, parts_of("classification"), quiet=True)
    assert TuneConfig.read(run.folder / "config.yaml") == given
    lines = run.metrics()
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, run.outcome["steps"] + 1))
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, len(steps) // 2, len(steps)]
    kept = {f"step-{run.outcome['best_step']}", f"step-{run.outcome['steps']}"}
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == kept
    divided = json.loads((run.folder / "split.json").read_text())
    lines_of = [set(divided[part]["<rows>"]) for part in ("train", "validation", "test")]
    assert len(set().union(*lines_of)) == sum(map(len, lines_of)) == len(rows_of("classification"))
    assert not list(run.folder.rglob("*.partial"))
    suffixes = {path.suffix for path in run.folder.rglob("*") if path.is_file() and path.name != ".lock"}
    assert suffixes <= {".json", ".jsonl", ".yaml", ".safetensors", ".jinja"}, "no pickle, nothing foreign"


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    base = save_base("bert", "classification", tmp_path / "base")
    run = tune(
        config("lora", model=str(base), max_steps=1, output=tmp_path / "run"), parts_of("classification"), quiet=True
    )
    weights = run.folder / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: its sha256 is not the one it was written with"):
        _ = Run.open(run.folder).network


def test_an_output_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    base = save_base("bert", "classification", tmp_path / "base")
    once = config("bitfit", model=str(base), max_steps=1, output=tmp_path / "run")
    tune(once, parts_of("classification"), quiet=True)
    before = json.loads((tmp_path / "run/manifest.json").read_text())
    with pytest.raises(InputError, match="already holds a finished run"):
        tune(once, parts_of("classification"), quiet=True)
    assert json.loads((tmp_path / "run/manifest.json").read_text()) == before
    tune(once.model_copy(update={"overwrite": True, "seed": 1}), parts_of("classification"), quiet=True)
    assert json.loads((tmp_path / "run/manifest.json").read_text()) != before
    (tmp_path / "files").mkdir()
    (tmp_path / "files/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="already holds files"):
        tune(once.model_copy(update={"output": tmp_path / "files", "overwrite": True}), parts_of("classification"))
    assert (tmp_path / "files/thesis.txt").read_text() == "mine"


def test_a_new_method_is_one_row_and_one_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_queries(network: Network, config: Any) -> None:
        full.train_everything(network, config)
        for known, parameter in network.model.named_parameters():
            parameter.requires_grad_("query" in known or "classifier" in known or "pooler" in known)

    row = Method("queries", "selective", "queries only", "", (1e-3, 1e-3), train_queries)
    monkeypatch.setitem(METHODS, "queries", row)
    base = save_base("bert", "classification", tmp_path / "base")
    given = config("queries", model=str(base), max_steps=2, output=tmp_path / "run")
    run = tune(given, parts_of("classification"), quiet=True)
    assert run.manifest["method"] == "queries"
    assert AutoTokenizer.from_pretrained(run.folder).pad_token == "<pad>"
