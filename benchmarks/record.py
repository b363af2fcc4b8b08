"""What a contestant was given and said, step by step."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import torch
from contest import Result


class Record:
    """`times` has the beginning of the training and the end of each step, in seconds."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.times: list[float] = []
        self._seen = hashlib.sha256()

    def tick(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def note(self, rows: Any) -> None:
        """Rows as JSON can say them, the same way by all contestants of a job."""
        self._seen.update(json.dumps(rows).encode())

    def result(self, tokens: int, warm: int, device: torch.device) -> Result:
        """`tokens` are those from the end of step `warm` on."""
        from tunesmith.runtime import peak_memory

        seconds = self.times[-1] - self.times[warm]
        return Result(self.losses, tokens, seconds, peak_memory(device), self._seen.hexdigest())
