"""How long operations take on this machine: each is timed alone, and remembered in the cache folder.

A training finds the numbers of most operations outside the core's own cache, so it is emptied before each run. What
else a machine does comes and goes: an operation is tried again in later sessions, up to ENOUGH_TRIALS times in all, and
the mean counts. What is too large to be tried is taken at the rate of others of its kind.

Products on a CPU may be compiled for their shape, which nearly every batch has anew, so their first run counts too.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map_only

from tunesmith.assets import cache_root
from tunesmith.runtime import describe_machine
from tunesmith.storage import write_json
from tunesmith.train.trace import Operation, Spec, Work

# A trial should not fill a small machine's memory, nor hold up its user.
LARGEST_TRIAL_BYTES = 2**29
LARGEST_TRIAL_FLOPS = 4e10
ENOUGH_TRIALS = 3
REPEATS = 3
LONG_ENOUGH = 0.1  # seconds of repeats
# What is gone through between two repeats: several times what a core's own cache holds.
OTHERS_BYTES = 2**24
SMALLEST_RATED = 1e-4  # guessed seconds; below it the call itself weighs more than what it does
# The way from Python through autograd to an operation and back, without its arithmetic.
SECONDS_PER_CALL = 8e-6
CACHE = "clock.json"
# Trials of another kind, by an earlier version, are not mixed with these.
KIND_OF_TRIAL = "cold"


class Trial(NamedTuple):
    """Mean seconds of an operation, how much longer its first run in a process takes, and from how many trials."""

    seconds: float
    first: float
    num_trials: int

    def joined(self, seconds: float, first: float) -> Trial:
        """With one more trial."""
        num = self.num_trials + 1
        return Trial(self.seconds + (seconds - self.seconds) / num, self.first + (first - self.first) / num, num)


NO_TRIAL = Trial(0.0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class DataSheet:
    """Hardware that is not here: what it reaches at its best, and which share of that training reaches."""

    flops: float
    bytes_per_second: float
    share: float

    def seconds(self, work: Work) -> float:
        slowest = sum(
            count * max(operation.flops / self.flops, operation.num_bytes / self.bytes_per_second)
            for operation, count in work
        )
        return slowest / self.share + work.num_calls * SECONDS_PER_CALL


class Clock:
    """Seconds of operations on `device`, from trials of at most `patience` seconds in all, and from earlier ones."""

    def __init__(self, device: torch.device, patience: float = 10.0, path: Path | None = None) -> None:
        machine = describe_machine(device, torch.float32)
        self._key = ", ".join([*(machine[part] for part in ("device", "threads", "torch")), KIND_OF_TRIAL])
        self._device, self._patience = device, patience
        self._path = path or cache_root() / CACHE
        self._known = {name: Trial(*kept) for name, kept in _read(self._path).get(self._key, {}).items()}
        self._tried_now: set[str] = set()
        self._rates: dict[str, dict[str, float]] = {}

    def seconds(self, work: Work) -> float:
        """Of all operations in a work; the dearest are tried first."""
        listed = sorted(work, key=lambda pair: -pair[1] * _guess(pair[0]))
        # Those that were never tried come before the second trial of any.
        for operation, _ in sorted(listed, key=lambda pair: self._known.get(pair[0].name, NO_TRIAL).num_trials):
            self._try(operation)
        for operation, _ in listed:
            self._note_rate(operation)
        first = sum(self._known[op.name].first for op, _ in listed if op.flops and op.name in self._known)
        return sum(count * self._estimate(op) for op, count in listed) + first + work.num_calls * SECONDS_PER_CALL

    def save(self) -> None:
        """Remembers the trials for the next time."""
        if self._tried_now:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, _read(self._path) | {self._key: self._known})

    def _try(self, operation: Operation) -> None:
        name = operation.name
        is_known_well = name in self._tried_now or self._known.get(name, NO_TRIAL).num_trials >= ENOUGH_TRIALS
        if is_known_well or self._patience <= 0 or not _can_be_tried(operation):
            return
        started = time.perf_counter()
        self._tried_now.add(name)
        try:
            taken = _time(operation, self._device)
        except (
            RuntimeError
        ):  # torch pretends wrongly now and then: bfloat16 moments of a float32 norm, which no CPU takes
            return
        self._known[name] = self._known.get(name, NO_TRIAL).joined(*taken)
        self._patience -= time.perf_counter() - started

    def _note_rate(self, operation: Operation) -> None:
        name = operation.name
        if name in self._known and _guess(operation) > SMALLEST_RATED:
            rate = self._known[name].seconds / _guess(operation)
            self._rates.setdefault(str(operation.func), {})[name] = rate
            self._rates.setdefault(_kind(operation), {})[name] = rate

    def _estimate(self, operation: Operation) -> float:
        """Where it was not tried: as much slower than guessed as others of its function are, or of its kind."""
        known = self._known.get(operation.name)
        if known is not None:
            return known.seconds
        rates = self._rates.get(str(operation.func)) or self._rates.get(_kind(operation)) or {"": 1.0}
        return statistics.median(rates.values()) * _guess(operation)


def _kind(operation: Operation) -> str:
    return "arithmetic" if operation.flops else "traffic"


def _guess(operation: Operation) -> float:
    """Seconds on a small CPU, to rank operations and to carry over from one to another."""
    return operation.flops / 1e11 + operation.num_bytes / 5e9


def _can_be_tried(operation: Operation) -> bool:
    return operation.num_bytes < LARGEST_TRIAL_BYTES and operation.flops < LARGEST_TRIAL_FLOPS


@torch.inference_mode()
def _time(operation: Operation, device: torch.device) -> tuple[float, float]:
    """The median of a few runs on numbers drawn at random, and how much longer the one before them took."""
    args, kwargs = tree_map_only(Spec, lambda spec: _make(spec, device), (operation.args, dict(operation.kwargs)))
    taken: list[float] = []
    others = torch.ones(OTHERS_BYTES // 4, device=device)
    for _ in range(REPEATS + 1):
        others.add_(1)
        _wait(device)
        started = time.perf_counter()
        operation.func(*args, **kwargs)
        _wait(device)
        taken.append(time.perf_counter() - started)
        if sum(taken[1:]) > LONG_ENOUGH:
            break
    usual = statistics.median(taken[1:])
    # An accelerator's first run makes ready what all later batches use.
    return usual, max(0.0, taken[0] - usual) if device.type == "cpu" else 0.0


def _make(spec: Spec, device: torch.device) -> torch.Tensor:
    made = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=device)
    if not spec.dtype.is_floating_point:
        return made.zero_()
    if 0 in spec.stride:
        return made  # expanded: its elements share memory
    return made.uniform_(0.1, 1.0)  # like numbers of a network: neither zero nor too small to be normal


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _read(path: Path) -> dict[str, Any]:
    """Trials by machine; none where the file is damaged."""
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(found)
