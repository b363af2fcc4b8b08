"""Trackers get the numbers that metrics.jsonl has; what goes wrong with them never ends a training."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.parity.tiny import make_model, make_tokenizer
from tunesmith.errors import InputError
from tunesmith.trackers import TRACKERS, Trackers, check_trackers

LINES = (
    {"time": 0.5, "step": 1, "loss": 2.0, "note": "text", "flag": True},
    {"time": 0.9, "step": 1, "validation_loss": float("nan"), "validation_accuracy": 0.5},
    {"samples": ["no step, for people"]},
    {"time": 1.5, "step": 2, "loss": 1.5},
)
NUMBERS = [
    ({"time": 0.5, "loss": 2.0}, 1),
    ({"time": 0.9, "validation_accuracy": 0.5}, 1),
    ({"time": 1.5, "loss": 1.5}, 2),
]


class Fake(types.ModuleType):
    """A module that takes note of every call: (name, positional, named)."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.util.spec_from_loader(name, loader=None)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def note(*positional: Any, **named: Any) -> Any:
            self.calls.append((name, positional, named))
            return self  # what wandb.init returns has log and finish, too

        return note


@pytest.fixture(params=["wandb", "trackio", "mlflow"])
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake(request.param)
    monkeypatch.setitem(sys.modules, request.param, made)
    return made


def test_trackers_are_called_as_they_document_it(fake: Fake, tmp_path: Path) -> None:
    check_trackers([fake.__name__])
    trackers = Trackers([fake.__name__], tmp_path / "my-run", {"learning_rate": 1e-3})
    for line in LINES:
        trackers.write(line)
    trackers.close()
    log = "log_metrics" if fake.__name__ == "mlflow" else "log"
    assert [(args[0], named["step"]) for name, args, named in fake.calls if name == log] == NUMBERS
    names = [name for name, _, _ in fake.calls]
    opening = {"mlflow": "start_run"}.get(fake.__name__, "init")
    assert names.index(opening) < names.index(log)
    assert names[-1] == {"mlflow": "end_run"}.get(fake.__name__, "finish")
    assert any("my-run" in named.values() for _, _, named in fake.calls)


def test_a_tracker_that_fails_is_given_up_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to its server")

    broken, whole = Fake("wandb"), Fake("mlflow")
    broken.init = refuse
    monkeypatch.setitem(sys.modules, "wandb", broken)
    monkeypatch.setitem(sys.modules, "mlflow", whole)
    trackers = Trackers(["wandb", "mlflow"], tmp_path, {})
    for line in LINES:
        trackers.write(line)
    trackers.close()
    assert capsys.readouterr().err.count("wandb: ConnectionError: no route to its server. It is given up") == 1
    assert sum(name == "log_metrics" for name, _, _ in whole.calls) == len(NUMBERS)


def test_unknown_and_absent_trackers_are_refused_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="report_to 'wandbb' is unknown: did you mean 'wandb'"):
        check_trackers(["wandbb"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package mlflow: pip install"):
        check_trackers(["mlflow"])
    assert set(TRACKERS) == {"tensorboard", "trackio", "wandb", "mlflow"}


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed ([track])")
@pytest.mark.filterwarnings("default")  # tensorboard's own
def test_tensorboard_reads_what_metrics_jsonl_has(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make_model("bert", "classification").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"text": f"w{5 + at % 80} w{6 + at % 70} w{7 + at % 60}", "label": "ab"[at % 2]} for at in range(60)]
    run = tunesmith.tune(
        model=str(tmp_path / "model"), data=rows, output=tmp_path / "run", report_to="tensorboard", quiet=True
    )
    found = EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    for key in ("loss", "validation_loss", "validation_accuracy"):
        expected = [(line["step"], line[key]) for line in run.metrics() if line.get(key) is not None]
        shown = [(event.step, event.value) for event in found.Scalars(key)]
        assert len(expected) > 1
        assert [step for step, _ in shown] == [step for step, _ in expected]
        assert [value for _, value in shown] == pytest.approx([value for _, value in expected])
