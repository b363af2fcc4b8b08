"""Group commit: what people say at the same moment goes to the disk in one transaction, and each is answered after it.

A disk takes milliseconds to say that something is on it, however much that is; the next group gathers meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tunesmith.feedback.database import Database

T = TypeVar("T")
Turn = tuple[Callable[[], Any], Future[Any]]


class Group:
    """Those who wait for the same commit, and the one thread that writes for them."""

    def __init__(self, database: Database) -> None:
        self._database, self._writer = database, ThreadPoolExecutor(1, "feedback-writer")
        self._waiting: deque[Turn] = deque()

    async def write(self, work: Callable[[], T]) -> T:
        """What `work` returns, or raises, once all that it wrote by this database is on the disk, or none of it.

        It may be run twice, of which one is kept.
        """
        turn: Future[T] = Future()
        self._waiting.append((work, turn))
        self._writer.submit(self._commit_waiting)
        return await asyncio.wrap_future(turn)

    def _commit_waiting(self) -> None:
        """All that wait, in one transaction; an earlier call may have taken them along."""
        turns = [self._waiting.popleft() for _ in range(len(self._waiting))]
        turns = [one for one in turns if one[1].set_running_or_notify_cancel()]
        if turns:
            self._commit(turns)

    def _commit(self, turns: list[Turn]) -> None:
        try:
            with self._database.writing():
                results = [work() for work, _ in turns]
        except Exception as error:
            if len(turns) == 1:
                return turns[0][1].set_exception(error)
            for one in turns:  # somebody's work failed; alone it fails alone
                self._commit([one])
        else:
            for (_, turn), result in zip(turns, results, strict=True):
                turn.set_result(result)
