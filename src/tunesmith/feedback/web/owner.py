"""The owner's page: how it goes, who takes part, what was said, and what is asked."""

from __future__ import annotations

import threading
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import Field

from tunesmith.feedback.export import FORMS, rows_of, settle, to_text
from tunesmith.feedback.forms import Id, Ids
from tunesmith.feedback.overview import overview
from tunesmith.feedback.results import read_results
from tunesmith.feedback.store import Store, Study
from tunesmith.feedback.web.entrance import Body, CallerOf, PeopleOf, PersonOf, StoreOf, show_page
from tunesmith.feedback.web.labeling import to_plain

router = APIRouter()


Number = Annotated[int, Field(ge=1, le=2**53)]


class InvitationBody(Body):
    """Whom to invite."""

    role: Literal["labeler", "owner"] = "labeler"


class BlockBody(Body):
    """Whether an account is shut."""

    is_blocked: bool


class GoldBody(Body):
    """What is known to be right of an item; null when it is no gold item any more."""

    levels: Annotated[tuple[Ids, ...], Field(max_length=9)] | None


class Numbers:
    """The overview, made anew only when something was said since."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        self._made: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        with self._lock:
            if self._made.get("snapshot") != self._store.last_event():
                self._made = overview(self._store.database)
            return self._made


@router.get("/owner", include_in_schema=False)
def show_owner(caller: CallerOf, store: StoreOf) -> HTMLResponse:
    return show_page("owner", caller, store, forms=list(FORMS))


@router.get("/api/owner/overview")
def read_overview(request: Request, store: StoreOf, people: PeopleOf) -> dict[str, Any]:
    """All numbers, and everybody's account."""
    state = request.app.state
    if not hasattr(state, "numbers"):
        state.numbers = Numbers(store)
    numbers: dict[str, Any] = state.numbers.read()
    return {**numbers, "people": people.listing(), "study": store.study().model_dump(mode="json")}


@router.put("/api/owner/study")
def change_study(study: Study, person: PersonOf, store: StoreOf) -> dict[str, Any]:
    """What people are asked, from the next item on."""
    store.change_study(study, person.id)
    return {"study": study.model_dump(mode="json")}


@router.post("/api/owner/invitations")
def invite(body: InvitationBody, person: PersonOf, people: PeopleOf) -> dict[str, Any]:
    """A link that opens one account, once; it is shown now and never again."""
    return {"link": f"join#{people.invite(body.role, person.id)}"}


@router.put("/api/owner/people/{number}")
def set_blocked(number: Number, body: BlockBody, person: PersonOf, people: PeopleOf) -> dict[str, Any]:
    """Shuts an account and ends its sessions, or opens it again. What it said stays."""
    people.set_blocked(number, body.is_blocked, person.id)
    return {"is_blocked": body.is_blocked}


@router.post("/api/owner/items/{item}")
def open_aside(item: Id, person: PersonOf, store: StoreOf) -> dict[str, Any]:
    """An item for the owner to decide."""
    return {"item": to_plain(store.open_aside(person.id, item))}


@router.put("/api/owner/gold/{item}")
def set_gold(item: Id, body: GoldBody, person: PersonOf, store: StoreOf) -> dict[str, Any]:
    """Makes an item a test of those who rank it, or none any more."""
    store.set_gold(item, body.levels, person.id)
    return {"levels": body.levels}


@router.get("/api/owner/export/{form}")
def download(
    form: Literal["rankings", "dpo", "reward", "kto", "csv"], store: StoreOf, ties: Literal["drop", "half"] = "drop"
) -> Response:
    """All that was said so far, as a file; its name has the number of the last event."""
    results = read_results(store.database)
    text = to_text(form, list(rows_of(form, settle(results), results.items, ties)))
    ending = "csv" if form == "csv" else "jsonl"
    kind = "text/csv" if form == "csv" else "application/jsonl"
    name = f"feedback-{form}-{results.snapshot}.{ending}"
    return Response(text, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'})
