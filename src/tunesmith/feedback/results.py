"""What a store holds, read back: rankings as they stood after a numbered event, and the items they are of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select

from tunesmith.errors import InputError
from tunesmith.feedback.database import Database
from tunesmith.feedback.forms import Candidate, Ranked, Response
from tunesmith.feedback.schema import candidate, event, item, labeler
from tunesmith.records import Message

SAID = ("ranked", "revised", "adjudicated", "skipped")


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item with its candidates by id, and where it stands in the queue."""

    id: str
    prompt: tuple[Message, ...]
    candidates: Mapping[str, Candidate]
    gold: tuple[tuple[str, ...], ...]
    origin: str
    priority: float
    reason: str


@dataclass(frozen=True, slots=True)
class Results:
    """Everything said up to one event. `skips` counts each labeler's by name."""

    snapshot: int
    rankings: tuple[Ranked, ...]
    items: Mapping[str, StoredItem]
    skips: Mapping[str, int]


def read_results(database: Database, until: int | None = None) -> Results:
    """The latest word of each person on each item, of those up to the event `until`.

    The same `until` gives the same results for ever: events are never changed, and later ones have higher ids.

    Raises:
        InputError: there is no such event yet.
    """
    with database.reading() as connection:
        last = connection.execute(select(func.max(event.c.id))).scalar() or 0
        if until is not None and until > last:
            raise InputError(f"there is no event {until} yet; the last one is {last}")
        snapshot = last if until is None else until
        rows = _read_events(connection, snapshot)
        items = _read_items(connection, {row.item_id for row in rows})
    skips: dict[str, int] = defaultdict(int)
    for row in rows:
        skips[row.name] += row.action == "skipped"
    rankings = tuple(_to_ranked(row) for row in rows if row.action != "skipped")
    return Results(snapshot, rankings, items, dict(skips))


def _read_events(connection: Connection, snapshot: int) -> Sequence[Row[Any]]:
    latest = select(func.max(event.c.id)).where(event.c.action.in_(SAID), event.c.id <= snapshot)
    latest = latest.group_by(event.c.item_id, event.c.labeler_id)
    named = select(event, labeler.c.name, labeler.c.kind).join(labeler, labeler.c.id == event.c.labeler_id)
    return connection.execute(named.where(event.c.id.in_(latest)).order_by(event.c.id)).all()


def _to_ranked(row: Row[Any]) -> Ranked:
    said = row.payload
    response = Response(**said["response"])
    return Ranked(
        event=row.id,
        at=row.at,
        item=row.item_id,
        labeler=row.name,
        is_simulated=row.kind == "simulated",
        is_adjudication=row.action == "adjudicated",
        ranks=response.ranks,
        shown=tuple(said["shown"]),
        seconds=said["seconds"],
        all_bad=response.all_bad,
        unsafe=response.unsafe,
        ratings=response.ratings,
        answers=response.answers,
        comment=response.comment,
    )


def read_items(database: Database) -> dict[str, StoredItem]:
    """All items, ranked or not."""
    with database.reading() as connection:
        return _read_items(connection, None)


def _read_items(connection: Connection, wanted: set[str] | None) -> dict[str, StoredItem]:
    """Whole tables in two reads: a list of thousands of ids is more than some databases take."""
    candidates: dict[str, dict[str, Candidate]] = defaultdict(dict)
    for row in connection.execute(select(candidate)):
        if wanted is None or row.item_id in wanted:
            candidates[row.item_id][row.id] = Candidate(row.text, row.model, row.source)
    return {
        row.id: StoredItem(
            row.id,
            tuple(Message(turn["role"], turn["content"]) for turn in row.messages),
            candidates[row.id],
            tuple(map(tuple, row.gold or ())),
            row.origin,
            row.priority,
            row.reason,
        )
        for row in connection.execute(select(item))
        if wanted is None or row.id in wanted
    }
