"""What a person at the terminal sees while work goes on. Everything here goes to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
Thing = TypeVar("Thing")


def say(text: str, style: str = "") -> None:
    """One line for the person at the terminal, as it is: no markup, and never broken by us."""
    console.print(text, style=style, markup=False, soft_wrap=True)


def confirm(question: str) -> bool | None:
    """What a person answers, Enter being yes; None when there is nobody to ask."""
    if not (console.is_terminal and sys.stdin.isatty()):
        return None
    return console.input(f"{question} [Y/n] ", markup=False).strip().lower() in ("", "y", "yes")


def describe_count(count: int, noun: str) -> str:
    """1 -> '1 row', 1234 -> '1,234 rows'."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def describe_bytes(count: float) -> str:
    """1,234,567 -> '1.2 MB', in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def describe_seconds(count: float) -> str:
    """59 -> '59 s', 600 -> '10 min', 7200 -> '2.0 h'."""
    if count < 120:
        return f"{count:.1f} s" if count < 10 else f"{count:.0f} s"
    return f"{count / 60:.0f} min" if count < 7200 else f"{count / 3600:,.1f} h"


class Bar:
    """A progress bar with rate and time left; without a terminal, a plain line now and then."""

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, label: str, total: int, quiet: bool = False, done: int = 0) -> None:
        self._label, self._total, self._done, self._quiet = label, total, done, quiet
        self._begun_at = done
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
            self._task = self._progress.add_task(label, total=total, completed=done, detail="")

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
            seconds_each = (time.monotonic() - self._start) / (self._done - self._begun_at)
            left = seconds_each * (self._total - self._done)
            say(f"{self._label} {self._done}/{self._total}  {detail}  {left:.0f} s left")

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last_line < self.SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True


def count_aloud(label: str, things: Iterable[Thing]) -> Iterator[Thing]:
    """The same things; when there are so many that it takes long, the person sees how many have gone by."""
    last = time.monotonic()
    for count, thing in enumerate(things, 1):
        yield thing
        if count % 1_000 == 0 and time.monotonic() - last >= Bar.SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{label} {count:,}")
