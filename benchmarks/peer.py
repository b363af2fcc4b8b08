"""transformers' Trainer and TRL's as contestants: what all of theirs are told, and when their steps begin and end."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

# Rows in the order given, whole, and nothing but training in the time that is measured.
TRAINER: dict[str, Any] = {
    "num_train_epochs": 1,
    "train_sampling_strategy": "sequential",
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}
TRL = TRAINER | {"max_length": None}


class Clock(TrainerCallback):  # type: ignore[misc]
    """`times` has the beginning of the training and the end of each step, in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())
