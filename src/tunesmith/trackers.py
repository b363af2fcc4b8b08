"""A run's numbers sent on to trackers, beside its own metrics.jsonl; none of them is asked for unless it is named.

TRACKERS is the table, one row a tracker. Where their pages lie and who may see them is for their own settings.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError, nearest
from tunesmith.terminal import say

PROJECT = "tunesmith"
Numbers = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Opened:
    """A tracker at work."""

    write: Callable[[Numbers, int], None]
    close: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Tracker:
    """One row: the package it needs, and how it is opened: its module, the run's folder, its configuration, and the
    first step that is written (a run that goes on writes the steps after its checkpoint once more)."""

    package: str
    module: str
    open: Callable[[Any, Path, Mapping[str, Any], int], Opened]


def _open_tensorboard(module: Any, folder: Path, settings: Mapping[str, Any], first: int) -> Opened:
    """Event files in the run's folder: tensorboard --logdir RUN."""
    writer = module.SummaryWriter(log_dir=str(folder / "tensorboard"), purge_step=first)
    writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in settings.items()), first)

    def write(numbers: Numbers, step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return Opened(write, writer.close)


def _open_wandb(module: Any, folder: Path, settings: Mapping[str, Any], first: int) -> Opened:
    run = module.init(project=PROJECT, name=folder.name, dir=str(folder), config=dict(settings))
    return Opened(lambda numbers, step: run.log(dict(numbers), step=step), run.finish)


def _open_trackio(module: Any, folder: Path, settings: Mapping[str, Any], first: int) -> Opened:
    module.init(project=PROJECT, name=folder.name, config=dict(settings), resume="allow", embed=False)
    return Opened(lambda numbers, step: module.log(dict(numbers), step=step), module.finish)


def _open_mlflow(module: Any, folder: Path, settings: Mapping[str, Any], first: int) -> Opened:
    module.set_experiment(PROJECT)
    module.start_run(run_name=folder.name)
    module.log_params({key: str(value) for key, value in settings.items()})
    return Opened(lambda numbers, step: module.log_metrics(dict(numbers), step=step), module.end_run)


TRACKERS: Mapping[str, Tracker] = {
    "tensorboard": Tracker("tensorboard", "torch.utils.tensorboard", _open_tensorboard),
    "trackio": Tracker("trackio", "trackio", _open_trackio),
    "wandb": Tracker("wandb", "wandb", _open_wandb),
    "mlflow": Tracker("mlflow", "mlflow", _open_mlflow),
}


def check_trackers(names: Sequence[str]) -> None:
    """Raises an InputError for a tracker that is unknown or not installed, before anything is computed."""
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"report_to '{name}' is unknown: {nearest(name, TRACKERS)}")
        package = TRACKERS[name].package
        if importlib.util.find_spec(package) is None:
            raise InputError(f"report_to '{name}' needs the package {package}: pip install 'tunesmith[track]'")


class Trackers:
    """Those of one run, opened at its first numbers. One that fails is given up; it never ends a training."""

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        self._waiting = {name: TRACKERS[name] for name in names}
        self._folder, self._settings = folder, settings
        self._opened: dict[str, Opened] = {}

    def write(self, values: Mapping[str, Any]) -> None:
        """The finite numbers of a line of metrics.jsonl; lines without a step are for people."""
        step = values.get("step")
        if not isinstance(step, int) or not (self._waiting or self._opened):
            return
        numbers = {key: float(value) for key, value in values.items() if key != "step" and _is_number(value)}
        for name in list(self._waiting):
            row = self._waiting.pop(name)
            self._attempt(name, lambda name=name, row=row: self._open(name, row, step))  # type: ignore[misc]
        for name, tracker in list(self._opened.items()):
            self._attempt(name, lambda tracker=tracker: tracker.write(numbers, step))  # type: ignore[misc]

    def close(self) -> None:
        for name, tracker in list(self._opened.items()):
            self._attempt(name, tracker.close)
        self._opened.clear()

    def _open(self, name: str, row: Tracker, step: int) -> None:
        module = importlib.import_module(row.module)
        self._opened[name] = row.open(module, self._folder, self._settings, step)

    def _attempt(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # theirs: a server that is away, a changed interface
            self._opened.pop(name, None)
            say(f"{name}: {type(error).__name__}: {error}. It is given up; metrics.jsonl has everything", "yellow")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
