"""What was measured of systems that were set beside each other. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Interval:
    """A metric on the test rows with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Score:
    """How one system did on one set of rows. `metrics` is in order of importance."""

    metrics: Mapping[str, Interval]
    num_rows: int
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class System:
    """One line of a comparison: a baseline or a tuned model, finished or failed.

    `difference` is this system minus the strongest baseline on the primary metric, by paired
    bootstrap over the same test rows. Memory is the peak of the process that ran it, in bytes.
    `curve` holds one mapping per evaluation: step, epoch, train_loss, validation_loss and the
    validation metric. `forgotten` holds one mapping per measure of forgetting, where that was asked for: what
    `evaluation.forgetting.Change` has. `prompt_tokens` and `answer_seconds` are means over the test rows that were
    answered, in batches; None where nothing was asked of a model. `note` says how it was chosen, where it was.
    `seeds` holds one mapping per training where there were several: seed, metrics (values by name), error.
    `search` is that for its learning rate, where there was one: what `evaluation.search.Search` has.
    """

    name: str
    kind: Literal["baseline", "method"]
    family: str
    metrics: Mapping[str, Interval] = field(default_factory=dict)
    difference: Interval | None = None
    trainable_parameters: int = 0
    total_parameters: int = 0
    peak_memory: int = 0
    train_seconds: float = 0.0
    total_seconds: float = 0.0
    tokens_per_second: float = 0.0
    learning_rate: float | None = None
    curve: tuple[Mapping[str, float], ...] = ()
    samples: tuple[Mapping[str, str], ...] = ()
    forgotten: tuple[Mapping[str, Any], ...] = ()
    prompt_tokens: float | None = None
    answer_seconds: float | None = None
    stored_bytes: int = 0
    note: str = ""
    search: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[Mapping[str, Any], ...] = ()
    folder: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The best system by the primary metric, the one to use, and why, in sentences."""

    best: str
    recommended: str
    reason: str
