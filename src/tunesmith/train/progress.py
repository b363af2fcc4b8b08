"""Where a training stands: what the next step depends on beside weights, optimizer and generators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.records import PackedBatch


@dataclass
class Outcome:
    """What a training says of itself. `curve` has one entry per evaluation.

    `train_seconds` are those of the steps, `seconds` those of everything from the first pass on, in this process.
    """

    steps: int = 0
    epochs: float = 0.0
    train_seconds: float = 0.0
    num_tokens: int = 0
    best_step: int = 0
    stopped_early: bool = False
    skipped_steps: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    def count(self, window: Sequence[PackedBatch], seconds: float, num_rows: int) -> None:
        """Takes note of a finished step."""
        self.steps += 1
        self.train_seconds += seconds
        self.num_tokens += sum(batch.num_tokens for batch in window)
        self.epochs += sum(len(batch.rows) for batch in window) / num_rows

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.train_seconds if self.train_seconds else 0.0

    def to_mapping(self) -> dict[str, Any]:
        """As a run's manifest has it."""
        return {
            "steps": self.steps,
            "epochs": round(self.epochs, 3),
            "seconds": round(self.seconds, 2),
            "train_seconds": round(self.train_seconds, 2),
            "tokens": self.num_tokens,
            "tokens_per_second": round(self.tokens_per_second, 1),
            "best_step": self.best_step,
            "stopped_early": self.stopped_early,
            "skipped_steps": self.skipped_steps,
            "curve": self.curve,
        }


@dataclass
class Progress:
    """The position in the data, the best evaluation so far, and the metrics log up to here.

    epoch, window  the next optimizer step takes this window of this epoch, both 0-based
    train_loss     of the last step
    evaluated      step of the last evaluation, -1 before the first
    waited         evaluations since the best one
    num_parts      each batch runs in so many parts, because it did not fit into memory whole
    num_skipped    steps without an update in a row, because a gradient was not finite
    numbers        what else the next step depends on, by name: of learning by trial, what divergence costs
    log_offset     size of metrics.jsonl in bytes; `log_seconds` the time of its last line
    """

    outcome: Outcome = field(default_factory=Outcome)
    epoch: int = 0
    window: int = 0
    train_loss: float = math.nan
    evaluated: int = -1
    best_loss: float = math.inf
    waited: int = 0
    num_parts: int = 1
    num_skipped: int = 0
    log_offset: int = 0
    log_seconds: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)

    def advance(self, num_windows: int) -> None:
        """To the next window, of the next epoch after the last of `num_windows`."""
        self.window += 1
        if self.window == num_windows:
            self.epoch, self.window = self.epoch + 1, 0

    def note(self, step: int, loss: float) -> None:
        """Takes note of an evaluation: best so far, or one more without being better."""
        self.evaluated = step
        if step == 0:
            return  # the model as it came is no result of training
        if loss < self.best_loss:
            self.best_loss, self.waited, self.outcome.best_step = loss, 0, step
        else:
            self.waited += 1

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Takes over what `to_plain` made of a progress; JSON has no NaN and no infinity."""
        values = dict(plain)
        outcome = dict(values.pop("outcome"))
        outcome["curve"] = [
            {key: _number(value, math.nan) for key, value in point.items()} for point in outcome["curve"]
        ]
        values["train_loss"] = _number(values["train_loss"], math.nan)
        values["best_loss"] = _number(values["best_loss"], math.inf)
        vars(self).update(values, outcome=Outcome(**outcome))


def _number(value: float | None, absent: float) -> float:
    return absent if value is None else value
