"""What each row is judged by, outside of memory: a number, or several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.store import Blobs
from tunesmith.records import Target

# Whether classes hold takes a byte each, class and tag ids four, scores eight.
STORED_AS = {"b": "bool", "i": "int32", "f": "float64"}
ABOUT = ".json"


class Targets:
    """One for each row, all of one kind: that of the first. `are_many` when each is several numbers."""

    def __init__(self) -> None:
        self._blobs = Blobs()
        self._dtype, self.are_many = "", False

    def append(self, target: Target) -> None:
        if target is None:
            return self._blobs.append(b"")
        if not self._dtype:
            self.are_many = isinstance(target, tuple)
            self._dtype = STORED_AS[np.asarray(target).dtype.kind]
        self._blobs.append(np.asarray(target, dtype=self._dtype).tobytes())

    def sizes(self) -> list[int]:
        """Bytes of each row's target."""
        return list(self._blobs.sizes())

    def __getitem__(self, index: int) -> Target:
        blob = self._blobs[index]
        if not blob:
            return None
        numbers: list[Any] = np.frombuffer(blob, dtype=self._dtype).tolist()
        return tuple(numbers) if self.are_many else numbers[0]

    def keep(self, file: Path) -> None:
        self._blobs.keep(file)
        about = {"dtype": self._dtype, "is_many": self.are_many}
        file.with_suffix(ABOUT).write_text(json.dumps(about), encoding="utf-8")

    @classmethod
    def open(cls, file: Path) -> Targets:
        """What `keep` has written."""
        made = cls()
        made._blobs = Blobs.open(file)
        about = json.loads(file.with_suffix(ABOUT).read_text(encoding="utf-8"))
        made._dtype, made.are_many = about["dtype"], about["is_many"]
        return made
