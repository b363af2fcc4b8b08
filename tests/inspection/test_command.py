"""`tunesmith inspect` in the terminal, and changes of adapters."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.inspection.houses import ANSWER, TEXT, save_model
from tunesmith import cli
from tunesmith.inspection.changes import _in_few_directions, effective_rank, find_changes
from tunesmith.inspection.look import inspect

# Asked for by PEFT.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

HOSTILE = "[bold]w5[/bold] \x1b[31m w6"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    folder = tmp_path_factory.mktemp("llama")
    return str(folder), save_model("llama", folder)


@pytest.fixture(scope="module")
def run(llama: tuple[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"prompt": f"w{at} w{at + 1}", "completion": f"w{at + 30} w{at + 2}"} for at in range(5, 25)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--model", llama[0], "--data", str(folder / "data.jsonl"), "--max-steps", "2", "--learning-rate", "0.01"]
    assert cli.run(["tune", *given, "--output", str(folder / "run"), "--check", "false"]) == 0
    return str(folder / "run")


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    code = cli.run(["inspect", *arguments])
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out


def test_a_run_is_shown_beside_its_base(llama: Any, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.run(["inspect", run, TEXT, "--answer", ANSWER, "--json"]) == 0
    said = capsys.readouterr()
    assert f"beside its base {llama[0]}; --beside none leaves it out" in said.err
    found = json.loads(said.out)
    assert found["names"] == [run, llama[0]]
    ids = torch.tensor([[token["id"] for token in found["tokens"][0]]])
    with torch.inference_mode():
        base = llama[1](ids).logits[0, -1].softmax(-1)
        tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama[0]), run)(ids).logits[0, -1]
    for word in found["next_word"]["words"]:
        assert word["probabilities"] == pytest.approx(
            [float(tuned.softmax(-1)[word["id"]]), float(base[word["id"]])], abs=1e-5
        )
        assert word["difference"] == pytest.approx(word["probabilities"][0] - word["probabilities"][1])
    assert len(found["said"]) == len(ANSWER.split())
    assert json.loads(shown([run, TEXT, "--beside", "none", "--json"], capsys))["names"] == [run]


def test_the_terminal_has_it_all(llama: Any, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown([run, TEXT, "--answer", ANSWER, "--changes", "--count", "3", "--place", "4"], capsys)
    for part in ("next word", "all others", "entropy, bits", "rank of", "answer, nats", "would say", "what counts"):
        assert part in out
    assert "Attention says where a head looked, not why" in out
    assert "weights changed:" in out
    assert "lora" not in out.partition("weights changed:")[2], "weights have the names of the base"


def test_settings_of_sampling_reach_the_words(llama: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(shown([llama[0], TEXT, "--top-k", "3", "--temperature", "0.5", "--json"], capsys))["next_word"]
    assert len(found["words"]) == 3
    assert sum(word["probabilities"][0] for word in found["words"]) == pytest.approx(1)


def test_hostile_text_is_only_text(llama: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown([llama[0], HOSTILE], capsys)
    assert "\x1b" not in out


def test_texts_become_points(llama: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.csv").write_text("text,label\nw5 w6,a\nw7 w8,b\nw9 w10 w11,a\nw12,b\n")
    given = [llama[0], TEXT, "--texts", str(tmp_path / "texts.csv")]
    found = json.loads(shown([*given, "--json"], capsys))["texts"]
    assert found["labels"] == ["a", "b", "a", "b"]
    assert len(found["maps"][0]["points"]) == 4
    assert "map of 4 texts" in shown(given, capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--place", "99"], "there are places 0 to"),
        (["--top-p", "0"], "top_p"),
        (["--temperatur", "1"], "temperatur"),
        (["--texts", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_what_cannot_be_used_is_said(arguments: list[str], said: str, llama: Any, capsys: Any) -> None:
    capsys.readouterr()
    assert cli.run(["inspect", llama[0], TEXT, *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}],
    ids=["lora", "rslora", "dora", "head"],
)
def test_changes_of_an_adapter_are_those_of_the_merged_weights(options: Any, llama: Any) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options)
    adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(llama[0]), config)
    for name, weight in adapter.named_parameters():
        if "modules_to_save" in name:
            weight.data += 0.1
    tuned: Any = SimpleNamespace(model=adapter.get_base_model())
    found = find_changes(SimpleNamespace(model=llama[1]), tuned)  # type: ignore[arg-type]
    merged, base = dict(adapter.merge_and_unload().named_parameters()), dict(llama[1].named_parameters())
    assert len(found) == len(base)
    for change in found:
        name = change.name if change.name in base else f"model.{change.name}"
        before, after = base[name].detach().double(), merged[name].detach().double()
        assert change.relative == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4, abs=1e-9)
    changed = {change.name for change in found if change.relative}
    assert changed
    assert all(re.search("q_proj|down_proj|lm_head", name) for name in changed)
    assert any("lm_head" in name for name in changed) == ("modules_to_save" in options)
    if not options:
        assert max(change.rank or 0 for change in found) <= 2.1


def test_changes_of_a_run_are_those_that_peft_merges(llama: Any, run: str) -> None:
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama[0]), run).merge_and_unload()
    after, base = dict(merged.named_parameters()), dict(llama[1].named_parameters())
    found = inspect(run, TEXT, llama[0]).changes()
    assert any(change.relative for change in found)
    for change in found:
        name = change.name if change.name in base else f"model.{change.name}"
        before = base[name].detach().double()
        moved = (after[name].detach().double() - before).norm() / before.norm()
        assert change.relative == pytest.approx(float(moved), rel=1e-3, abs=1e-7)


def test_few_directions_are_found_faster_and_no_other() -> None:
    torch.manual_seed(0)
    for rank in (5, 40, 200):
        matrix = torch.randn(300, rank, dtype=torch.float64) @ torch.randn(rank, 500, dtype=torch.float64)
        sizes = torch.linalg.svdvals(matrix)[:rank]
        shares = sizes / sizes.sum()
        assert (_in_few_directions(matrix) is not None) == (rank < 48)
        assert effective_rank(matrix) == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-3)
