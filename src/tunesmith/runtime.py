"""Where a stage runs and what it leaves behind: device, precision, seeds, run folder, progress."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import random
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tunesmith.errors import InputError

Precision = Literal["auto", "bf16", "fp32"]
console = Console(stderr=True, highlight=False)


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


def _cpu_multiplies_bf16_faster() -> bool:
    """Times one product of each kind: chips that emulate bfloat16 are several times slower with it."""
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


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def peak_memory(device: torch.device) -> int:
    """Highest memory this process has held, in bytes: on the accelerator if there is one, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil  # the only portable way there, and not needed elsewhere

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


def to_plain(value: Any) -> Any:
    """Records, paths and NaN as JSON can hold them (NaN becomes null)."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, value: Any) -> None:
    """Written beside its place, flushed to the disk, then renamed: never half a file."""
    write_text(path, json.dumps(to_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line, flushed as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", newline="\n")
        self._start = time.monotonic()

    def write(self, **values: Any) -> None:
        line = {"time": round(time.monotonic() - self._start, 3), **to_plain(values)}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Bar:
    """A progress bar with rate and time left; without a terminal, a plain line now and then."""

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, label: str, total: int, quiet: bool = False) -> None:
        self._label, self._total, self._done, self._quiet = label, total, 0, quiet
        self._start = self._last_line = time.monotonic()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal and not quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}"),
            )
            self._progress = Progress(*columns, console=console, transient=True)
            self._task = self._progress.add_task(label, total=total, detail="")

    def __enter__(self) -> Bar:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self, detail: str = "", steps: int = 1) -> None:
        self._done += steps
        if self._progress is not None:
            self._progress.update(self._task, advance=steps, detail=detail)
        elif not self._quiet and self._is_due():
            left = (time.monotonic() - self._start) / self._done * (self._total - self._done)
            console.print(f"{self._label} {self._done}/{self._total}  {detail}  {left:.0f} s left")

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last_line < self.SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True


def describe_bytes(count: float) -> str:
    """1,234,567 -> '1.2 MB', in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
