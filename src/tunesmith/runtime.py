"""Where a stage runs: device, precision, seeds, memory, versions, and the log of its metrics."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch

from tunesmith.errors import InputError
from tunesmith.storage import explained, to_plain

Precision = Literal["auto", "bf16", "fp32"]


def choose_device(wanted: str = "auto") -> torch.device:
    """CUDA, then Apple's MPS, then the CPU, unless one is asked for by name."""
    if wanted != "auto":
        try:
            device = torch.device(wanted)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device '{wanted}' cannot be used: {str(error).splitlines()[0]}") from error
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_precision(wanted: Precision, device: torch.device) -> torch.dtype:
    """bfloat16 where the chip multiplies in it and it is faster, else float32. Never float16."""
    if wanted != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and _cpu_multiplies_bf16_faster():
        return torch.bfloat16
    return torch.float32


@cache
def _cpu_multiplies_bf16_faster() -> bool:
    """Times one product of each kind: chips that emulate bfloat16 are several times slower with it."""
    prepare_memory()  # these products are mostly the first
    seconds = {dtype: _time_product(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]


def _time_product(dtype: torch.dtype) -> float:
    a, b = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        best = min(best, time.perf_counter() - start)
    return best


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Matrix products in `dtype`; nothing to do for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def working_dtype(x: torch.Tensor) -> torch.dtype:
    """The type matrix products with x run in: autocast's where it is on, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def peak_memory(device: torch.device) -> int:
    """Highest memory this process has held, in bytes: on the accelerator if there is one, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def current_memory(device: torch.device) -> int:
    """Memory held now, in bytes, as in `peak_memory`; the peak where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_memory(device)


def available_memory(device: torch.device) -> int:
    """Bytes that this process may hold in all, as in `peak_memory`: what it has and what is free now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    own = psutil.Process().memory_info().rss
    most = own + psutil.virtual_memory().available
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.is_file() and limit.read_text().strip().isdigit():
            most = min(most, int(limit.read_text()))
    return int(most)


# glibc's numbers for mallopt, and the most bytes that it may hold back when they are freed.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT, LARGE = 2**28, 2**25
# How many kernels, each compiled for one shape of operands, are kept by oneDNN and by torch's own list of them (one in
# each thread). Some 0.5 MB each: with the 1,024 that both keep unless told, a run over batches of unlike size holds
# twice the memory, for 2 % of its time (docs/log.md).
MOST_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "64"}


@cache
def prepare_memory() -> None:
    """Sets, before anything is computed, how much of what is no longer needed is kept; what the environment says of
    it stands.

    Kernels: few, since most are for a shape that does not come again. Freed memory: glibc keeps some, since a step asks
    for the same again, and pages that the system has taken back and cleared meanwhile cost more than the arithmetic on
    them.
    """
    for name, number in MOST_KERNELS.items():
        os.environ.setdefault(name, number)
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(TRIM_THRESHOLD, KEPT)
            mallopt(MMAP_THRESHOLD, LARGE)


class Trimmer:
    """Hands memory that glibc keeps in pieces back to the system, now and then.

    Batches differ in size, so what one step frees seldom fits the next, and a long run grows by half.
    """

    SECONDS_BETWEEN = 10.0

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        self._last = time.monotonic()

    def trim_if_due(self) -> None:
        if self._trim is not None and time.monotonic() - self._last > self.SECONDS_BETWEEN:
            self._trim(0)
            self._last = time.monotonic()


def versions() -> dict[str, str]:
    """What a result depends on beside its configuration."""
    packages = ("tunesmith", "torch", "transformers", "tokenizers", "peft", "datasets", "scikit-learn")
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def describe_machine(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": f"{device.type}: {name}",
        "threads": str(torch.get_num_threads()),
        "precision": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line, with the system as soon as it is written.

    `offset` is its size in bytes and `seconds` the time of its last line. A log that goes on from a
    checkpoint is cut back to these: what came after is written again, so no step stands in it twice.
    """

    def __init__(self, path: Path, mend: str = "") -> None:
        self._path, self._mend = path, mend
        # Without a buffer: what a full disk did not take must not be tried again at the end.
        self._file = path.open("ab", buffering=0)
        self._start = time.monotonic()
        self.offset, self.seconds = path.stat().st_size, 0.0
        self.followers: list[Callable[[Mapping[str, Any]], None]] = []  # get every line too, as it was given

    def cut_back(self, offset: int, seconds: float) -> None:
        """Forgets what came after `offset` and lets the clock go on from `seconds`.

        Raises:
            InputError: the file is shorter than that.
        """
        if self.offset < offset:
            raise InputError(
                f"{self._path} has {self.offset:,} bytes, {offset:,} when the checkpoint was made: lines are lost. "
                "Restore it, or tune anew with --overwrite"
            )
        os.truncate(self._path, offset)
        self.offset, self.seconds = offset, seconds
        self._start = time.monotonic() - seconds

    def write(self, **values: Any) -> None:
        self.seconds = round(time.monotonic() - self._start, 3)
        line = json.dumps({"time": self.seconds, **to_plain(values)}, allow_nan=False) + "\n"
        with self._explained():
            left = memoryview(line.encode())
            while left:
                left = left[self._file.write(left) :]
        self.offset += len(line)
        for follow in self.followers:
            follow({"time": self.seconds, **values})

    def sync(self) -> None:
        """On the disk, not only with the system."""
        with self._explained():
            os.fsync(self._file.fileno())

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self._path.name, self._path.parent, self._mend)

    def close(self) -> None:
        self._file.close()
