"""Items, who is at them, and what people said: one short write transaction each.

An item is lent to as many people at a time as it still needs (`Study.overlap`); a lease that runs out is lent again.
Work that comes later all the same is taken: nothing that a person did is thrown away.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, and_, func, insert, select, update

from tunesmith.errors import InputError
from tunesmith.feedback import statements as sql
from tunesmith.feedback.database import Database
from tunesmith.feedback.driver import run
from tunesmith.feedback.forms import Comment, Item, Response, Shown, check_text, clean, turn_fields
from tunesmith.feedback.schema import assignment, candidate, event, item, setting
from tunesmith.records import Message

WORDS = ("response", "reason")  # of a request: what must be the same when its key comes again
SECONDS_OF_COUNT = 10.0  # for so long the number of items that are left is taken to stand
SECONDS_OF_GRACE = 1.0  # so much longer may an item be lent: not everybody who comes looks for leases that are over


class ConflictError(InputError):
    """The item has been answered since this page was opened."""


class NotLentError(InputError):
    """No such item, or not one that this person was ever shown."""


class Study(BaseModel):
    """What the owner decides of a store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Annotated[str, Field(max_length=120)] = "Which answer is better?"
    guidelines: Annotated[str, Field(max_length=20_000)] = ""
    overlap: Annotated[int, Field(ge=1, le=100, description="So many people rank each item.")] = sql.OVERLAP
    lease_minutes: Annotated[float, Field(gt=0, le=10_080, allow_inf_nan=False)] = sql.LEASE_MINUTES
    ratings: Annotated[bool, Field(description="Ask for 1 to 7 of each answer.")] = False
    questions: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=120)], ...], Field(max_length=10)] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """Of one person: items ranked and skipped, and how many are left to them."""

    ranked: int
    skipped: int
    left: int


class Store:
    """`clock` gives seconds since 1970."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self.database, self.clock = database, clock
        self._counted: tuple[float, int] = (float("-inf"), 0)
        self._expired_at = float("-inf")

    # What there is to rank

    def study(self) -> Study:
        with self.database.reading() as connection:
            return _study(connection)

    def change_study(self, study: Study, labeler_id: int | None = None) -> None:
        for text in (study.title, study.guidelines, *study.questions):
            check_text(text, "the study's text")
        content = study.model_dump(mode="json")
        with self.database.writing() as connection:
            before = _study(connection)
            if connection.execute(update(setting).where(setting.c.name == "study").values(value=content)).rowcount == 0:
                connection.execute(insert(setting).values(name="study", value=content))
            self._note(connection, "study", labeler_id, None, content)
            if before.overlap != study.overlap:
                run(connection, sql.COUNT_ALL_AGAIN)
        self._counted = (float("-inf"), 0)

    def add_items(self, items: Iterable[Item], priority: float = 0.0, reason: str = "") -> int:
        """Adds the items that are not there yet; returns how many these are."""
        added = 0
        with self.database.writing() as connection:
            for one in items:
                if connection.execute(select(item.c.id).where(item.c.id == one.id)).first():
                    continue
                self._add_item(connection, one, priority, reason)
                added += 1
            self._note(connection, "added", None, None, {"items": added})
        return added

    def _add_item(self, connection: Connection, one: Item, priority: float, reason: str) -> None:
        values = {"id": one.id, "messages": turn_fields(one.prompt), "origin": clean(one.origin), "is_free": True}
        gold = [[one.candidate_id(place) for place in level] for level in one.gold] or None
        more = {"priority": priority, "reason": reason, "gold": gold, "added_at": self.clock()}
        connection.execute(insert(item).values(**values, **more))
        rows = [
            {
                "id": one.candidate_id(place),
                "item_id": one.id,
                "text": made.text,
                "model": made.model,
                "source": dict(made.source),
            }
            for place, made in enumerate(one.candidates)
        ]
        connection.execute(insert(candidate), rows)

    def set_priorities(self, priorities: Mapping[str, tuple[float, str]]) -> None:
        """Which items are asked for first: item id -> (number, the higher the sooner; reason, for the owner)."""
        with self.database.writing() as connection:
            for item_id, (priority, reason) in priorities.items():
                values = {"priority": priority, "reason": reason}
                connection.execute(update(item).where(item.c.id == item_id).values(**values))
            self._note(connection, "priorities", None, None, {"items": len(priorities)})

    def set_gold(self, item_id: str, levels: Sequence[Sequence[str]] | None, labeler_id: int) -> None:
        """Says what is known to be right of an item, or that it is no longer gold (None)."""
        with self.database.writing() as connection:
            if levels is not None:
                Response(levels=tuple(map(tuple, levels))).check(_candidate_ids(connection, item_id))
            gold = None if levels is None else [list(level) for level in levels]
            changed = connection.execute(update(item).where(item.c.id == item_id).values(gold=gold))
            if not changed.rowcount:
                raise NotLentError("no such item")
            self._note(connection, "gold", labeler_id, item_id, {"levels": gold})

    # Lending

    def take_next(self, labeler_id: int) -> Shown | None:
        """The item this person is at, or else the next one; None when nothing is left for them."""
        now = self.clock()
        with self.database.writing() as connection:
            if now - self._expired_at > SECONDS_OF_GRACE:
                self._expire(connection, now)
                self._expired_at = now
            (found,) = run(connection, sql.NEXT, its_labeler=labeler_id)
            if found.id is None:
                return None
            self._lend(connection, found.id, labeler_id, "open", now + 60 * found.lease_minutes)
            return self._show(connection, found.id, labeler_id)

    def _lend(self, connection: Connection, item_id: str, labeler_id: int, state: str, until: float) -> None:
        lent = run(connection, sql.LEND, its_item=item_id, its_labeler=labeler_id, new_state=state, until=until)
        if not lent:
            seed = secrets.randbits(62)
            shown = shuffle(_candidate_ids(connection, item_id), seed)
            values = {"state": state, "lease_until": until, "shown": shown, "seed": seed, "version": 0, "draft": None}
            run(connection, sql.FIRST_LEND, item_id=item_id, labeler_id=labeler_id, **values)
            self._note(connection, "opened", labeler_id, item_id, {"shown": shown, "seed": seed})
        run(connection, sql.COUNT_AGAIN, its_item=item_id)

    def _expire(self, connection: Connection, now: float) -> None:
        for over in run(connection, sql.OVER, now=now):
            self._lend(connection, over.item_id, over.labeler_id, "expired", now)
            self._note(connection, "expired", over.labeler_id, over.item_id, {})

    def open_mine(self, labeler_id: int, item_id: str) -> Shown:
        """An item that this person has been shown before."""
        with self.database.reading() as connection:
            return self._show(connection, item_id, labeler_id)

    def open_aside(self, labeler_id: int, item_id: str) -> Shown:
        """An item for the owner to decide: takes no place of those who rank it."""
        with self.database.writing() as connection:
            if not _candidate_ids(connection, item_id):
                raise NotLentError("no such item")
            row = _assignment(connection, item_id, labeler_id)
            if row is None or row.state in ("open", "expired"):
                self._lend(connection, item_id, labeler_id, "aside", self.clock())
            return self._show(connection, item_id, labeler_id)

    def _show(self, connection: Connection, item_id: str, labeler_id: int) -> Shown:
        row = _expect(connection, item_id, labeler_id)
        texts = {one.id: one.text for one in run(connection, sql.CANDIDATES, its_item=item_id)}
        return Shown(
            item_id,
            tuple(Message(turn["role"], turn["content"]) for turn in row.messages),
            tuple((name, texts[name]) for name in row.shown),
            row.state,
            row.version,
            row.lease_until,
            (row.payload or {}).get("response"),
            row.draft,
        )

    # What people say

    def save_draft(self, labeler_id: int, item_id: str, version: int, draft: Mapping[str, Any]) -> None:
        """Keeps what is not said yet, and the lease with it. An older page's draft is not taken."""
        with self.database.writing() as connection:
            row = _expect(connection, item_id, labeler_id)
            _check_version(row, version)
            is_open = row.state == "open"
            until = self.clock() + 60 * row.lease_minutes if is_open else row.lease_until
            its = {"its_item": item_id, "its_labeler": labeler_id}
            run(connection, sql.DRAFT, **its, new_draft=dict(draft), until=until)

    def rank(
        self, labeler_id: int, item_id: str, version: int, key: str, response: Response, seconds: float | None = None
    ) -> int:
        """Keeps a ranking, or a better one in place of one's own; returns the new version.

        The same words by the same key are the same request again: it changes nothing and returns what it returned.

        Raises:
            ConflictError: `version` is not that of the item now, or the key came with other words before.
            NotLentError: not an item of this person's.
            InputError: the ranking does not fit the item.
        """

        def say(row: Any) -> tuple[str, str, dict[str, Any]]:
            response.check(row.shown)
            is_aside = row.state in ("aside", "adjudicated")
            was_ranked = row.state == "ranked"
            action = "adjudicated" if is_aside else "revised" if was_ranked else "ranked"
            more = {"seconds": seconds, "is_late": row.state == "expired"}
            said = {"response": response.model_dump(mode="json"), **more}
            return action, "adjudicated" if is_aside else "ranked", said

        return self._say(labeler_id, item_id, version, key, say)

    def skip(self, labeler_id: int, item_id: str, version: int, key: str, reason: Comment) -> int:
        """Leaves an item to others; as `rank`."""
        check_text(reason, "the reason")

        def say(row: Any) -> tuple[str, str, dict[str, Any]]:
            return "skipped", "skipped", {"reason": reason}

        return self._say(labeler_id, item_id, version, key, say)

    def _say(
        self,
        labeler_id: int,
        item_id: str,
        version: int,
        key: str,
        say: Callable[[Any], tuple[str, str, dict[str, Any]]],
    ) -> int:
        with self.database.writing() as connection:
            row = _expect(connection, item_id, labeler_id)
            action, state, payload = say(row)
            for before in run(connection, sql.REPEATED, its_labeler=labeler_id, its_key=key):
                if before.item_id != item_id or any(before.payload.get(name) != payload.get(name) for name in WORDS):
                    raise ConflictError("this key was used for another answer")
                return int(before.id)
            _check_version(row, version)
            order = {"shown": row.shown, "seed": row.seed}
            number = self._note(connection, action, labeler_id, item_id, {**payload, **order}, key)
            its = {"its_item": item_id, "its_labeler": labeler_id}
            run(connection, sql.ANSWER, **its, new_state=state, new_version=number)
            if (row.state in sql.COUNTED) != (state in sql.COUNTED):
                run(connection, sql.COUNT_AGAIN, its_item=item_id)
            return number

    def history(self, labeler_id: int, before: int | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """What this person has done, newest first: item, version, state, the prompt's last turn."""
        its = and_(assignment.c.labeler_id == labeler_id, assignment.c.state.in_(sql.DONE))
        found = select(assignment.c.item_id, assignment.c.version, assignment.c.state, item.c.messages)
        found = found.join(item, item.c.id == assignment.c.item_id).where(its)
        if before is not None:
            found = found.where(assignment.c.version < before)
        with self.database.reading() as connection:
            rows = connection.execute(found.order_by(assignment.c.version.desc()).limit(limit)).mappings().all()
        return [
            {
                **{key: row[key] for key in ("item_id", "version", "state")},
                "prompt": row["messages"][-1]["content"][:120],
            }
            for row in rows
        ]

    def progress(self, labeler_id: int) -> Progress:
        with self.database.reading() as connection:
            counts = run(connection, sql.MINE, its_labeler=labeler_id)
            if self.clock() - self._counted[0] > SECONDS_OF_COUNT:
                self._counted = (self.clock(), run(connection, sql.NUM_FREE)[0].num)
        done = sum(count for state, is_free, count in counts if is_free and state in sql.DONE)
        at_it = sum(count for state, is_free, count in counts if not is_free and state == "open")
        by_state = {name: sum(count for state, _, count in counts if state == name) for name in sql.DONE}
        left = max(self._counted[1] - done, 0) + at_it
        return Progress(by_state["ranked"], by_state["skipped"], left)

    def last_event(self) -> int:
        """The number of the latest event, 0 before there is one."""
        with self.database.reading() as connection:
            return connection.execute(select(func.max(event.c.id))).scalar() or 0

    def _note(
        self,
        connection: Connection,
        action: str,
        labeler_id: int | None,
        item_id: str | None,
        payload: Mapping[str, Any],
        key: str | None = None,
    ) -> int:
        values = {"at": self.clock(), "labeler_id": labeler_id, "item_id": item_id, "action": action, "key": key}
        return int(run(connection, sql.NOTE, **values, payload=dict(payload))[0].id)


def shuffle(names: Sequence[str], seed: int) -> list[str]:
    """A random order of sorted names, the same for the same seed."""
    ordered = sorted(names)
    random.Random(seed).shuffle(ordered)
    return ordered


def _study(connection: Connection) -> Study:
    kept = run(connection, sql.STUDY)
    return Study(**kept[0].value) if kept else Study()


def _candidate_ids(connection: Connection, item_id: str) -> list[str]:
    return [one.id for one in run(connection, sql.CANDIDATES, its_item=item_id)]


def _assignment(connection: Connection, item_id: str, labeler_id: int) -> Any:
    return next(iter(run(connection, sql.ASSIGNMENT, its_item=item_id, its_labeler=labeler_id)), None)


def _expect(connection: Connection, item_id: str, labeler_id: int) -> Any:
    row = _assignment(connection, item_id, labeler_id)
    if row is None:
        raise NotLentError("no such item among those you were shown")
    return row


def _check_version(row: Any, version: int) -> None:
    if row.version != version:
        raise ConflictError("this item has been answered since the page was opened, in another tab perhaps")
