"""Runs made into models of their own: what plain transformers reads from them is what the run said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.merge_utils import dare_linear, task_arithmetic, ties
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.methods.test_methods import parts_of, save_base, tokenized
from tunesmith import cli
from tunesmith import export as stage
from tunesmith.config import TuneConfig
from tunesmith.config_export import ExportConfig
from tunesmith.data.pack import pack
from tunesmith.errors import InputError
from tunesmith.methods.table import METHODS
from tunesmith.models import blend
from tunesmith.models.load import load_network
from tunesmith.models.packed import packed_logits
from tunesmith.runs.run import Run
from tunesmith.tuning import tune


def make_run(kind: str, task: str, method: str, folder: Path, **more: Any) -> Run:
    base = folder / f"base-{kind}"
    if not base.exists():
        save_base(kind, task, base)
    given = {"model": str(base), "data": "d", "method": method, "precision": "fp32", "learning_rate": 0.02}
    given |= {"max_steps": 3, "output": folder / f"{kind}-{method}-{len(list(folder.iterdir()))}", "lora_r": 2}
    return tune(TuneConfig.read(given=given | more), parts_of(task), quiet=True)


def export(*runs: Run, output: Path, **more: Any) -> stage.Exported:
    return stage.export(ExportConfig.read(given={"runs": [run.folder for run in runs], "output": output, **more}))


def plain(folder: Path, task: str) -> Any:
    auto = AutoModelForCausalLM if task == "generation" else AutoModelForSequenceClassification
    return auto.from_pretrained(folder).eval()


def assert_says_the_same(run: Run, folder: Path, task: str) -> None:
    network = Run.open(run.folder).network
    model = plain(folder, task)
    with torch.no_grad():
        for row in tokenized(network, task)[:4]:
            theirs = model(input_ids=torch.tensor([row.input_ids])).logits[0]
            ours = packed_logits(network, pack([row]))
            places = [place - 1 for place, trained in enumerate(row.trained) if trained]
            torch.testing.assert_close(
                theirs[places] if task == "generation" else theirs[None], ours, atol=2e-5, rtol=1e-4
            )


@pytest.mark.parametrize(
    ("kind", "task", "method", "more"),
    [
        ("llama", "generation", "lora", {}),
        ("llama", "generation", "lora", {"quantization": "nf4"}),
        ("gpt2", "generation", "lora", {"quantization": "int8"}),
        ("llama", "generation", "full", {}),
        ("bert", "classification", "ia3", {}),
        ("bert", "classification", "oft", {}),
        ("bert", "classification", "pissa", {}),
    ],
)
def test_a_merged_model_says_what_the_run_said(
    kind: str, task: str, method: str, more: dict[str, Any], tmp_path: Path
) -> None:
    run = make_run(kind, task, method, tmp_path, **more)
    found = export(run, output=tmp_path / "merged")
    assert found.gap is not None
    assert found.gap < 1e-5
    assert_says_the_same(run, tmp_path / "merged", task)
    assert not (tmp_path / "merged/adapter_config.json").exists()
    assert (tmp_path / "merged/tokenizer.json").is_file()


@pytest.mark.parametrize("method", ["lora", "pissa", "bottleneck", "prompt"])
def test_an_adapter_alone_is_the_run_s_adapter(method: str, tmp_path: Path) -> None:
    """Put on the base again it says what the run says; of the run's own records nothing goes along."""
    run = make_run("llama", "generation", method, tmp_path)
    export(run, output=tmp_path / "adapter", to="adapter")
    network = load_network(str(tmp_path / "base-llama"), "generation")
    METHODS[method].saving.restore(network, tmp_path / "adapter")  # type: ignore[misc]
    network.model.eval()
    batch = pack(tokenized(run.network, "generation"), run.network.num_virtual)
    torch.testing.assert_close(packed_logits(network, batch), packed_logits(Run.open(run.folder).network, batch))
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert "tokenizer.json" in names
    assert not names & {"config.yaml", "manifest.json", "metrics.jsonl", "inputs.json", "split.json", "checkpoints"}


def test_a_merge_that_went_wrong_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("llama", "generation", "lora", tmp_path)
    monkeypatch.setattr(stage, "unwrap_merged", lambda wrapped: wrapped.unload())
    with pytest.raises(InputError, match="its adapter cannot be merged: the logits would be"):
        export(run, output=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert not list(tmp_path.glob(".merged*"))


@pytest.mark.parametrize("has_head", [True, False])
def test_less_of_the_change_lies_between_base_and_run(has_head: bool, tmp_path: Path) -> None:
    """A head that the base did not have is the run's."""
    base_folder = save_base("bert", "classification", tmp_path / "base-bert")
    if not has_head:
        AutoModel.from_pretrained(base_folder).save_pretrained(base_folder)
    run = make_run("bert", "classification", "full", tmp_path)
    export(run, output=tmp_path / "half", keep=0.5)
    base, half, tuned = (
        dict(plain(folder, "classification").named_parameters())
        for folder in (tmp_path / "base-bert", tmp_path / "half", run.folder)
    )
    for name, weight in half.items():
        is_new = name.startswith("classifier") and not has_head
        middle = tuned[name] if is_new else (base[name] + tuned[name]) / 2
        torch.testing.assert_close(weight, middle, atol=1e-6, rtol=1e-6)
    export(run, output=tmp_path / "all", keep=1.0, dtype="bfloat16")
    assert plain(tmp_path / "all", "classification").dtype == torch.bfloat16


def test_runs_of_one_base_put_together(tmp_path: Path) -> None:
    one = make_run("llama", "generation", "lora", tmp_path)
    other = make_run("llama", "generation", "full", tmp_path, seed=1)
    export(one, output=tmp_path / "one")
    export(one, other, output=tmp_path / "both", shares="0.25,0.5")
    base, first, second, both = (
        dict(plain(folder, "generation").named_parameters())
        for folder in (tmp_path / "base-llama", tmp_path / "one", other.folder, tmp_path / "both")
    )
    for name, weight in both.items():
        sum_ = base[name] + 0.25 * (first[name] - base[name]) + 0.5 * (second[name] - base[name])
        torch.testing.assert_close(weight, sum_, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_combinations_are_those_of_peft(density: float) -> None:
    changes = [torch.randn(40, 30, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    shares = [0.5, 0.3, 0.9]
    weights = torch.tensor(shares)
    torch.testing.assert_close(blend.add_up(changes, shares, density), task_arithmetic(changes, weights))
    torch.testing.assert_close(blend.elect(changes, shares, density), ties(changes, weights, density))
    torch.manual_seed(0)
    ours = blend.drop(changes, shares, density)
    torch.manual_seed(0)
    torch.testing.assert_close(ours, dare_linear(changes, weights, density))


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    prompt = make_run("llama", "generation", "prompt", tmp_path)
    full = make_run("llama", "generation", "full", tmp_path)
    foreign = make_run("gpt2", "generation", "full", tmp_path)
    (tmp_path / "there").mkdir()
    cases = [
        ([prompt], {}, "prompt adds parts that are no change of the base model's own weights"),
        ([full], {"output": tmp_path / "there"}, "exists already"),
        ([full, foreign], {}, "of different base models or tasks"),
        ([full], {"to": "adapter"}, "takes one run whose files are an adapter"),
    ]
    for runs, more, words in cases:
        with pytest.raises(InputError) as caught:
            export(*runs, **{"output": tmp_path / "out"} | more)
        assert words in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="shares gives 2 numbers for 1 runs"):
        export(full, output=tmp_path / "out", shares="1,2")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # plain peft
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peft import PeftModel

    run = make_run("llama", "generation", "lora", tmp_path)
    assert cli.run(["export", str(run.folder), "--output", str(tmp_path / "a")]) == 0
    assert "logits differ from the run's by at most" in capsys.readouterr().out
    assert cli.run(["export", str(run.folder), "--output", str(tmp_path / "b"), "--to", "adapter", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["form"], said["gap"]) == ("adapter", None)
    assert PeftModel.from_pretrained(plain(tmp_path / "base-llama", "generation"), tmp_path / "b")
    assert cli.run(["export", str(run.folder), "--output", str(tmp_path / "a")]) == 2
    assert cli.run(["export", "--output", str(tmp_path / "c")]) == 2
