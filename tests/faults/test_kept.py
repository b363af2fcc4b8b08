"""Runs that earlier versions have made open for ever: models answer as they did, trainings go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.faults.keep import logits

from tunesmith.config import TuneConfig
from tunesmith.errors import InputError
from tunesmith.runs.doctor import examine
from tunesmith.runs.inputs import PACKAGES, find_changes
from tunesmith.runs.run import Run
from tunesmith.tuning import tune

KEPT = sorted((Path(__file__).parent / "kept").iterdir())


@pytest.fixture(params=KEPT, ids=lambda folder: folder.name)
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in; names in the runs are relative to it."""
    shutil.copytree(request.param, tmp_path / "kept")
    monkeypatch.chdir(tmp_path / "kept")
    return tmp_path / "kept"


def test_the_kept_runs_are_whole(kept: Path) -> None:
    for name in ("finished", "interrupted"):
        (health,) = examine(name)
        assert health.is_whole, health
        assert health.checkpoints


def test_the_model_answers_as_it_did(kept: Path) -> None:
    expected = json.loads(Path("expected.json").read_text())
    torch.testing.assert_close(torch.tensor(logits(Run.open("finished"))), torch.tensor(expected["logits"]))


def test_an_adapter_is_not_put_on_another_base(kept: Path) -> None:
    weights = load_file("base/model.safetensors")
    weights["bert.encoder.layer.0.attention.self.query.weight"][0, 0] += 1
    save_file(weights, "base/model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="the adapter in finished: made from another base model than 'base'"):
        _ = Run.open("finished").network


def test_the_training_goes_on_to_where_the_other_ended(kept: Path) -> None:
    """Another machine and other versions of libraries may round otherwise; more must not differ."""
    settings = {"resume": True, "allow_change": PACKAGES, "output": "interrupted"}
    run = tune(TuneConfig.read(Path("interrupted/config.yaml"), settings), quiet=True)
    found, expected = (load_file(Path(name) / "adapter_model.safetensors") for name in ("interrupted", "finished"))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-3)
    assert run.outcome["steps"] == Run.open("finished").outcome["steps"]


def test_a_run_of_before_a_key_had_its_default() -> None:
    now = {"seed": 0, "lora_r": 16, "torch": "2"}
    assert find_changes({"seed": 0, "torch": "2"}, now) == {}
    assert find_changes({"seed": 0, "torch": "2"}, now | {"lora_r": 8}) == {"lora_r": "lora_r: 16 before, 8 now"}
