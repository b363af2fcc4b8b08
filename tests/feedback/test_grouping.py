"""What saves time changes nothing that is kept: group commit, statements handed to the driver. On both databases."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import event

from tests.feedback.houses import fill, new_key, run_apart
from tests.feedback.test_store import add_people, as_shown, num_events, take
from tunesmith.feedback import statements as sql
from tunesmith.feedback.database import Database
from tunesmith.feedback.driver import run
from tunesmith.feedback.forms import Shown
from tunesmith.feedback.grouping import Group
from tunesmith.feedback.people import People
from tunesmith.feedback.store import ConflictError, Store


def write_together(database: Database, works: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each work returned or raised; all of them come while another group is at the writer."""

    async def write() -> list[Any]:
        group, gate = Group(database), threading.Event()
        first = asyncio.ensure_future(group.write(gate.wait))
        await asyncio.sleep(0.05)
        others = [asyncio.ensure_future(group.write(work)) for work in works]
        await asyncio.sleep(0)
        gate.set()
        await first
        return await asyncio.gather(*others, return_exceptions=True)

    return run_apart(write())


def rankings(store: Store, people: People, count: int) -> list[Callable[[], int]]:
    """One ranking each of so many people; the first one's page is older than the item."""
    fill(store, count)

    def say(labeler: int, shown: Shown, version: int) -> Callable[[], int]:
        return lambda: store.rank(labeler, shown.item_id, version, new_key(), as_shown(shown))

    labelers = add_people(people, count)
    return [say(one, take(store, one), version=7 if one == labelers[0] else 0) for one in labelers]


def test_who_comes_together_shares_a_commit(store: Store, people: People) -> None:
    _, *good = rankings(store, people, 6)
    commits: list[Any] = []
    event.listen(store.database._readers, "commit", commits.append)
    versions = write_together(store.database, good)
    assert len(commits) == 2, "of the group before, and of this one"
    assert len(set(versions)) == 5
    assert num_events(store.database, "ranked") == 5


def test_who_fails_fails_alone(store: Store, people: People) -> None:
    said = write_together(store.database, rankings(store, people, 6))
    assert isinstance(said[0], ConflictError)
    assert all(isinstance(version, int) for version in said[1:])
    assert num_events(store.database, "ranked") == 5


def test_nobody_is_answered_before_the_commit(store: Store, people: People) -> None:
    _, *good = rankings(store, people, 4)

    commits: list[Any] = []

    def fail(connection: Any) -> None:
        commits.append(connection)
        if len(commits) > 1:
            raise OSError("the disk is gone")

    event.listen(store.database._readers, "commit", fail)
    said = write_together(store.database, good)
    event.remove(store.database._readers, "commit", fail)
    assert [str(one) for one in said] == ["the disk is gone"] * 3
    assert num_events(store.database, "ranked") == 0


def test_the_driver_says_what_sqlalchemy_says(store: Store, people: People) -> None:
    fill(store, 2)
    (ann,) = add_people(people, 1)
    shown = take(store, ann)
    store.save_draft(ann, shown.item_id, 0, {"at": 1, "comment": "½ \U0001f600"})
    its: dict[str, Any] = {"its_item": shown.item_id, "its_labeler": ann}
    asked: list[tuple[Any, dict[str, Any]]] = [
        (sql.ASSIGNMENT, its),
        (sql.CANDIDATES, {"its_item": shown.item_id}),
        (sql.NEXT, {"its_labeler": ann}),
        (sql.MINE, {"its_labeler": ann}),
        (sql.NUM_FREE, {}),
    ]
    with store.database.reading() as connection:
        for statement, values in asked:
            expected = [tuple(row) for row in connection.execute(statement, values)]
            assert [tuple(row) for row in run(connection, statement, **values)] == expected
            assert expected
