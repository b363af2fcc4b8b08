"""`tunesmith plan` and the plan of `tune`: what they say, what they refuse, and a rehearsal that leaves no trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from tests.faults.survival import digest, make_base, make_rows
from tests.faults.test_resume import settings
from tunesmith import planning, tuning
from tunesmith.chips import CHIPS, find_chip
from tunesmith.cli import run as run_command
from tunesmith.errors import InputError
from tunesmith.train import loop, step
from tunesmith.tuning import tune


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planning")
    make_base("bert", "classification", folder / "bert")
    make_rows("classification", folder / "rows.jsonl")
    return folder


def test_the_command_plans_every_method(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without weights: configuration and tokenizer are enough."""
    monkeypatch.setattr(planning, "PATIENCE", 0.1)
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in (place / "bert").iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    arguments = ["plan", "--model", str(bare), "--data", str(place / "rows.jsonl"), "--methods", "full,lora,head-only"]
    assert run_command([*arguments, "--json"]) == 0
    full, lora, head = json.loads(capsys.readouterr().out)
    assert full["trained"] == full["parameters"] > lora["trained"] > head["trained"] > 0
    assert full["memory"]["optimizer"] > lora["memory"]["optimizer"]
    assert head["store"] > 0 == full["store"] == head["memory"]["prefix"]
    assert full["peak"] == sum(full["memory"].values())
    assert run_command(arguments) == 0
    shown = capsys.readouterr().out
    assert "head-only" in shown
    assert "timed on this machine" in " ".join(shown.split())


def test_hardware_that_is_not_here(place: Path) -> None:
    given = {"model": str(place / "bert"), "data": str(place / "rows.jsonl"), "methods": ["full"]}
    found = {name: tunesmith.plan(**given, device=name)[0] for name in ("t4", "h100", "h100x8")}
    exact = {name: tunesmith.plan(**given, device=name, precision="fp32")[0] for name in ("t4", "a100", "h100")}
    assert found["h100"].seconds > found["h100x8"].seconds
    assert exact["t4"].seconds > exact["a100"].seconds > exact["h100"].seconds
    assert found["h100"].available < CHIPS["h100"].memory
    assert found["h100"].memory.base == 0
    assert "data sheet" in found["h100"].basis
    # bfloat16 there: products' inputs are half as large as on a chip without it.
    assert found["h100"].memory.activations < found["t4"].memory.activations
    with pytest.raises(InputError, match="unknown device 'h10': did you mean 'h100'"):
        find_chip("h10")


def test_what_cannot_fit_is_refused_unless_forced(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "PATIENCE_BEFORE_TUNING", 0.1)
    monkeypatch.setattr(tuning, "available_memory", lambda _: 10**6)
    with pytest.raises(InputError, match=r"full needs .* of memory by the plan, and 1\.0 MB are free.*--force starts"):
        tune(settings(place, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    run = tune(settings(place, tmp_path / "run", force=True, max_steps=2))
    assert run.manifest["plan"]["peak_memory"] > 10**6
    assert run.outcome["seconds"] > run.outcome["train_seconds"] > 0
    assert "plan     " in capfd.readouterr().err


def test_a_rehearsal_leaves_no_trace(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = digest(tune(settings(place, tmp_path / "without"), quiet=True).folder)
    monkeypatch.setattr(loop, "FEWEST_TO_REHEARSE", 1)
    assert digest(tune(settings(place, tmp_path / "with"), quiet=True).folder) == expected


def test_memory_that_does_not_suffice_shows_before_the_first_step(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    backward, sizes = step.backward, []

    def tight(network: Any, batch: Any, *rest: Any) -> Any:
        sizes.append(batch.num_tokens)
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backward(network, batch, *rest)

    monkeypatch.setattr(loop, "FEWEST_TO_REHEARSE", 1)
    monkeypatch.setattr(step, "backward", tight)
    tune(settings(place, tmp_path / "run", max_steps=2), quiet=True)
    assert "step 1: out of memory; from here on each batch runs in two parts" in capfd.readouterr().err
    # The longest batch in vain, then its two parts, then two steps of two parts each.
    assert len(sizes) == 1 + 2 + 4
    assert sizes[1] + sizes[2] == sizes[0]
