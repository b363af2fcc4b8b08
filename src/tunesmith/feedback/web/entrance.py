"""The way in and out: the start-up token, invitations, name and password."""

from __future__ import annotations

import hmac
from functools import cache
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from jinja2 import Template
from pydantic import BaseModel, ConfigDict, Field

from tunesmith.feedback.people import LONGEST_PASSWORD, OWNER, SESSION_SECONDS, SHORTEST_PASSWORD, People, Person
from tunesmith.feedback.store import Store
from tunesmith.feedback.web.guard import Caller, Site, new_visit
from tunesmith.pages import load_template

router = APIRouter()
Reply = TypeVar("Reply", bound=Response)


class Body(BaseModel):
    """Of a request: what is not known is refused."""

    model_config = ConfigDict(extra="forbid")


async def caller_of(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


async def person_of(request: Request) -> Person:
    """Who is signed in; the guard lets nobody else reach a route that asks for it."""
    caller: Caller = request.state.caller
    assert caller.person is not None
    return caller.person


async def store_of(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


async def people_of(request: Request) -> People:
    people: People = request.app.state.people
    return people


CallerOf = Annotated[Caller, Depends(caller_of)]
PersonOf = Annotated[Person, Depends(person_of)]
StoreOf = Annotated[Store, Depends(store_of)]
PeopleOf = Annotated[People, Depends(people_of)]


@cache
def _template(name: str) -> Template:
    return load_template("tunesmith.feedback.web", f"templates/{name}.html.j2")


def show_page(name: str, caller: Caller, store: Store, **values: Any) -> HTMLResponse:
    study = store.study()
    return HTMLResponse(_template(name).render(title=study.title, person=caller.person, csrf=caller.csrf, **values))


@router.get("/", include_in_schema=False)
def begin(request: Request, caller: CallerOf, people: PeopleOf, token: str = "") -> Response:
    """The start-up token becomes a session; the address that held it is left at once."""
    site: Site = request.app.state.site
    if token and hmac.compare_digest(token.encode(), request.app.state.token.encode()):
        owner = people.find_or_add(OWNER, "owner")
        return _let_in(RedirectResponse("owner", 303), site, people.begin_session(owner.id))
    return RedirectResponse("rank" if caller.person is not None else "enter", 303)


@router.get("/enter", include_in_schema=False)
def show_entrance(request: Request, caller: CallerOf, store: StoreOf) -> Response:
    return _show_entrance(request, caller, store, is_new=False)


@router.get("/join", include_in_schema=False)
def show_invitation(request: Request, caller: CallerOf, store: StoreOf) -> Response:
    """The invitation itself stands behind the # of the address, so it is never sent but to accept it."""
    return _show_entrance(request, caller, store, is_new=True)


def _show_entrance(request: Request, caller: Caller, store: Store, is_new: bool) -> Response:
    visit = caller if caller.session else Caller(None, new_visit())
    page = show_page("enter", visit, store, is_new=is_new, shortest=SHORTEST_PASSWORD, longest=LONGEST_PASSWORD)
    return page if caller.session else _let_in(page, request.app.state.site, visit.session)


class Entry(Body):
    """Name and password, and the invitation where there is one."""

    name: Annotated[str, Field(max_length=100)]
    password: Annotated[str, Field(max_length=LONGEST_PASSWORD)]


class Joining(Entry):
    """An invitation that is accepted."""

    invitation: Annotated[str, Field(max_length=100)]


@router.post("/api/sign-in")
def sign_in(request: Request, entry: Entry, people: PeopleOf) -> JSONResponse:
    """A new session, whatever cookie came with the request. An account may be guessed at so often, from wherever."""
    wait = request.app.state.guesses.take(" ".join(entry.name.split()).casefold())
    if wait:
        detail = f"too many attempts at this name. Try again in {wait:.0f} s"
        return JSONResponse({"detail": detail}, 429, {"retry-after": f"{wait + 1:.0f}"})
    token = people.sign_in(entry.name, entry.password)
    return _let_in(JSONResponse({"go_to": "rank"}), request.app.state.site, token)


@router.post("/api/join")
def join(request: Request, joining: Joining, people: PeopleOf) -> JSONResponse:
    """The account of an invitation, which holds once."""
    token = people.join(joining.invitation, joining.name, joining.password)
    return _let_in(JSONResponse({"go_to": "rank"}), request.app.state.site, token)


@router.post("/api/sign-out")
def sign_out(request: Request, caller: CallerOf, people: PeopleOf) -> JSONResponse:
    """Ends the session for good, not in this browser alone."""
    people.sign_out(caller.session)
    return _let_in(JSONResponse({"go_to": "enter"}), request.app.state.site, "", 0)


def _let_in(reply: Reply, site: Site, token: str, seconds: float = SESSION_SECONDS) -> Reply:
    reply.headers["set-cookie"] = site.set_cookie(token, seconds)
    return reply
