"""Group commit: what people say at the same moment goes to the disk in one transaction, and each is answered after it.

A disk takes milliseconds to say that something is on it, however much that is; the next group gathers meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from fastapi.concurrency import run_in_threadpool

from tunesmith.feedback.database import Database

T = TypeVar("T")
Turn = tuple[Callable[[], Any], Future[Any]]


class Group:
    """Those who wait for the same commit, of one event loop."""

    def __init__(self, database: Database) -> None:
        self._database, self._lock = database, asyncio.Lock()
        self._waiting: list[Turn] = []

    async def write(self, work: Callable[[], T]) -> T:
        """What `work` returns, or raises, once all that it wrote by this database is on the disk, or none of it.

        Whoever comes first after a commit takes all that wait along. `work` may be run twice, but is kept once.
        """
        turn: Future[T] = Future()
        self._waiting.append((work, turn))
        async with self._lock:
            if not turn.done():
                turns, self._waiting = self._waiting, []
                await run_in_threadpool(self._commit, turns)
        return turn.result()

    def _commit(self, turns: list[Turn]) -> None:
        try:
            with self._database.writing():
                results = [work() for work, _ in turns]
        except Exception as error:
            if len(turns) == 1:
                return turns[0][1].set_exception(error)
            for one in turns:  # one of them fails alone
                self._commit([one])
        else:
            for (_, turn), result in zip(turns, results, strict=True):
                turn.set_result(result)
