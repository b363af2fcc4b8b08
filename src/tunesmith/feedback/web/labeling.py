"""What a labeler's page asks for. Everybody reaches their own work alone: whose it is comes from the session."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from pydantic import AfterValidator, Field

from tunesmith.feedback.forms import Comment, Id, Response, Shown
from tunesmith.feedback.grouping import Group
from tunesmith.feedback.people import Person
from tunesmith.feedback.store import Store
from tunesmith.feedback.web.entrance import Body, CallerOf, PersonOf, StoreOf, show_page

router = APIRouter()

MOST_DRAFT = 20_000  # characters


def _short(draft: dict[str, Any]) -> dict[str, Any]:
    """What no database or page could give back (NaN, NUL, half of a surrogate pair) is refused here."""
    text = json.dumps(draft, ensure_ascii=False, allow_nan=False)
    text.encode()
    if len(text) > MOST_DRAFT or "\\u0000" in text:
        raise ValueError(f"a draft may have {MOST_DRAFT:,} characters, and no NUL among them")
    return draft


Version = Annotated[int, Field(ge=0, le=2**53)]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Draft = Annotated[dict[str, Any], AfterValidator(_short)]


class DraftBody(Body):
    """What is not said yet."""

    item: Id
    version: Version
    draft: Draft


class RankingBody(Body):
    """A ranking; `key` is made once by the page and sent again with every attempt."""

    item: Id
    version: Version
    key: Key
    response: Response
    seconds: Seconds | None = None


class SkipBody(Body):
    """An item left to others."""

    item: Id
    version: Version
    key: Key
    reason: Comment = ""


@router.get("/rank", include_in_schema=False)
def show_ranking(caller: CallerOf, store: StoreOf) -> HTMLResponse:
    return show_page("rank", caller, store, study=store.study())


# What writes goes to the group as a function, and is answered when the group's commit is on the disk.


@router.post("/api/next")
async def take_next(request: Request) -> dict[str, Any]:
    """The item this person is at, or the next one."""
    person, store, group = desk_of(request)
    return await group.write(lambda: _next(person, store))


@router.post("/api/rankings")
async def rank(request: Request, body: RankingBody) -> dict[str, Any]:
    """Saved when this is answered, and not before; with the next item."""
    person, store, group = desk_of(request)

    def work() -> dict[str, Any]:
        version = store.rank(person.id, body.item, body.version, body.key, body.response, body.seconds)
        return {"version": version, **_next(person, store)}

    return await group.write(work)


@router.post("/api/skips")
async def skip(request: Request, body: SkipBody) -> dict[str, Any]:
    """As a ranking."""
    person, store, group = desk_of(request)

    def work() -> dict[str, Any]:
        version = store.skip(person.id, body.item, body.version, body.key, body.reason)
        return {"version": version, **_next(person, store)}

    return await group.write(work)


@router.put("/api/draft")
async def save_draft(request: Request, body: DraftBody) -> dict[str, Any]:
    """Keeps a draft, and the item lent."""
    person, store, group = desk_of(request)
    await group.write(lambda: store.save_draft(person.id, body.item, body.version, body.draft))
    return {"version": body.version}


@router.get("/api/items/{item}")
def open_item(item: Id, person: PersonOf, store: StoreOf) -> dict[str, Any]:
    """One of this person's items, to look at again or to change."""
    return {"item": to_plain(store.open_mine(person.id, item))}


@router.get("/api/history")
def list_history(
    person: PersonOf, store: StoreOf, before: Version | None = None, limit: Annotated[int, Field(ge=1, le=100)] = 20
) -> dict[str, Any]:
    """What this person has ranked and skipped, newest first."""
    return {"items": store.history(person.id, before, limit)}


def desk_of(request: Request) -> tuple[Person, Store, Group]:
    """Whose work it is, and where it is kept."""
    caller, state = request.state.caller, request.app.state
    assert caller.person is not None  # the guard lets nobody else in
    return caller.person, state.store, state.group


def _next(person: Person, store: Store) -> dict[str, Any]:
    shown = store.take_next(person.id)
    return {"item": None if shown is None else to_plain(shown), "progress": asdict(store.progress(person.id))}


def to_plain(shown: Shown) -> dict[str, Any]:
    """As JSON; nothing in it says what model an answer is of."""
    return {
        "id": shown.item_id,
        "prompt": [{"role": turn.role, "content": turn.content} for turn in shown.prompt],
        "answers": [{"id": name, "text": text} for name, text in shown.candidates],
        "state": shown.state,
        "version": shown.version,
        "response": shown.response,
        "draft": shown.draft,
    }
