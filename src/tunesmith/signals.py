"""Being asked to stop: by a scheduler, a closed terminal, or Ctrl-C.

A signal raises `Stopped` wherever the main thread is, except inside `shielded`, which holds it back until
what must not be torn apart is whole. A second Ctrl-C is not held back.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SIGHUP does not exist on Windows.
HEEDED = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """Somebody asked to stop. `at_once`: they asked twice, so nothing more is to be saved."""

    def __init__(self, number: int, at_once: bool = False) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.at_once = number, at_once

    @property
    def exit_code(self) -> int:
        return 128 + self.number


class _Asked:
    """What has been asked of this process so far."""

    def __init__(self) -> None:
        self.depth = 0
        self.held_back: int | None = None
        self.last: int | None = None
        self.num_interrupts = 0

    def handle(self, number: int, _: FrameType | None) -> None:
        self.last = number
        self.num_interrupts += number == signal.SIGINT
        at_once = number == signal.SIGINT and self.num_interrupts > 1
        if self.depth and not at_once:
            self.held_back = number
        else:
            raise Stopped(number, at_once)


_asked = _Asked()


@contextmanager
def listening() -> Iterator[None]:
    """Inside it signals are heeded; afterwards they do what they did before. Nests; main thread only.

    What the parent wants ignored (nohup, a shell's background job) stays ignored.
    """
    global _asked  # noqa: PLW0603 (a process has one set of signal handlers)
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) == _asked.handle:
        yield
        return
    _asked = _Asked()
    wanted = [number for number in HEEDED if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _asked.handle) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def shielded() -> Iterator[None]:
    """Holds signals back until the block is done, then raises `Stopped`."""
    asked = _asked
    asked.depth += 1
    try:
        yield
    finally:
        asked.depth -= 1
    if asked.held_back is not None and not asked.depth:
        number, asked.held_back = asked.held_back, None
        raise Stopped(number)


def check() -> None:
    """Raises `Stopped` when a signal came and a library swallowed what it raised."""
    if _asked.last is not None and not _asked.depth:
        raise Stopped(_asked.last)
