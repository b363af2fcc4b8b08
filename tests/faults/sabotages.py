"""Ways to restore a checkpoint wrongly, one part at a time: the tests of survival must see each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith import runtime
from tunesmith.train import checkpoint, generators
from tunesmith.train.checkpoint import State


def _skip(module: Any, name: str) -> Callable[[], None]:
    return lambda: setattr(module, name, lambda *_: None)


def _after_progress(change: Callable[[Any], None]) -> Callable[[], None]:
    """Restores the progress, then forgets a part of it."""
    load = checkpoint.load_progress

    def sabotaged(folder: Path, state: State) -> None:
        load(folder, state)
        change(state.progress)

    return lambda: setattr(checkpoint, "load_progress", sabotaged)


def _reset(**values: Any) -> Callable[[], None]:
    return _after_progress(lambda progress: vars(progress).update(values))


def _forget_step(progress: Any) -> None:
    progress.outcome.steps = 1


SABOTAGES: dict[str, Callable[[], None]] = {
    "weights": _skip(checkpoint, "load_weights"),
    "optimizer": _skip(checkpoint, "load_optimizer"),
    "generators": _skip(generators, "restore"),
    "position": _reset(epoch=0, window=0),
    "schedule": _after_progress(_forget_step),
    "best": _reset(best_loss=float("inf")),
    "patience": _reset(waited=0),
    "evaluated": _reset(evaluated=-1),
    "log": _skip(runtime.MetricsLog, "cut_back"),
}
# Of learning by trial, beside weights, optimizer and position.
OF_TRIALS: dict[str, Callable[[], None]] = {"beta": _reset(numbers={"beta": 0.1})}
