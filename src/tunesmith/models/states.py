"""Hidden states of rows in a file: written once, read row by row, found again by whoever would write the same.

A row is read when it is needed and stays out of this process's memory; the system keeps in its page cache what there is
room for. Files that are not whole count as absent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tunesmith.storage import check_seal, find_free_space, sealed, write_json

STATES, INDEX = "states.bin", "index.json"
# Of the free disk: a convenience should leave room for what matters.
LARGEST_SHARE = 0.5


class StateFile:
    """States (T, D) by key; open until `close`."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self._places: dict[str, list[int]] = about["places"]  # first byte and tokens of each row
        self._width, self._dtype = int(about["width"]), getattr(torch, about["dtype"])
        self._file = (folder / STATES).open("rb", buffering=0)

    def get(self, key: bytes) -> torch.Tensor | None:
        place = self._places.get(_name(key))
        if place is None:
            return None
        start, count = place
        raw = bytearray(count * self._width * self._dtype.itemsize)
        self._file.seek(start)
        if self._file.readinto(raw) != len(raw):
            raise OSError(f"{self._file.name} ends before byte {start + len(raw)}")
        return torch.frombuffer(raw, dtype=self._dtype).view(count, self._width)

    def close(self) -> None:
        self._file.close()


class StateWriter:
    """What `writing` gives."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._places: dict[str, list[int]] = {}
        self._width, self._dtype, self._end = 0, torch.float32, 0

    def put(self, key: bytes, states_TD: torch.Tensor) -> None:
        self._places[_name(key)] = [self._end, len(states_TD)]
        self._width, self._dtype = states_TD.shape[1], states_TD.dtype
        # As bytes: numpy has no bfloat16.
        self._file.write(states_TD.cpu().contiguous().view(torch.uint8).numpy().data)
        self._end += states_TD.nbytes

    def close(self, index: Path) -> None:
        self._file.close()
        kind = str(self._dtype).removeprefix("torch.")
        write_json(index, {"width": self._width, "dtype": kind, "places": self._places})


def find_states(folder: Path) -> StateFile | None:
    return StateFile(folder) if folder.is_dir() and not check_seal(folder) else None


@contextmanager
def writing(folder: Path) -> Iterator[StateWriter]:
    """Inside it states are put; afterwards they are in `folder`, unless it broke off."""
    with sealed(folder) as partial:
        writer = StateWriter(partial / STATES)
        try:
            yield writer
        finally:
            writer.close(partial / INDEX)


def has_room(folder: Path, num_bytes: int) -> bool:
    free = find_free_space(folder)
    return free is None or num_bytes <= LARGEST_SHARE * free


def _name(key: bytes) -> str:
    return hashlib.blake2b(key, digest_size=16).hexdigest()
