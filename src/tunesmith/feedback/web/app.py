"""The web application: routes behind the guard, and what is said when something cannot be done."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import OperationalError

from tunesmith.errors import InputError
from tunesmith.feedback.database import is_full_disk
from tunesmith.feedback.grouping import Group
from tunesmith.feedback.people import EntryError, People
from tunesmith.feedback.store import ConflictError, NotLentError, Store
from tunesmith.feedback.web import entrance, labeling, owner
from tunesmith.feedback.web.guard import Guard, Limiter, Site

log = logging.getLogger("tunesmith.feedback")
STATUS: tuple[tuple[type[InputError], int], ...] = (
    (ConflictError, 409),
    (NotLentError, 404),
    (EntryError, 403),
    (InputError, 400),
)


def make_app(store: Store, people: People, site: Site, token: str) -> Guard:
    """The application for a store. `token` opens the owner's account, once given at `/?token=`."""
    app = make_routes(store, people, site, token)
    return Guard(app, people, site)


def make_routes(store: Store, people: People, site: Site, token: str) -> FastAPI:
    """The routes alone, which trust whoever stands in a request's state."""
    app = FastAPI(title="tunesmith feedback", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.store, app.state.people, app.state.site, app.state.token = store, people, site, token
    app.state.group = Group(store.database)
    app.state.guesses = Limiter(burst=10, per_second=0.05)  # at one name, from all addresses together
    for router in (labeling.router, entrance.router, owner.router):  # what is asked most is found first
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=str(files("tunesmith.feedback.web") / "static")), name="static")
    for kind, status in STATUS:
        app.add_exception_handler(kind, _say_input_error(status))
    app.add_exception_handler(RequestValidationError, _say_invalid)
    app.add_exception_handler(OperationalError, _say_no_database)
    app.add_exception_handler(Exception, _say_our_fault)
    return app


def _say_input_error(status: int) -> Any:
    async def say(_: Request, error: Exception) -> JSONResponse:
        return answer(status, str(error))

    return say


async def _say_invalid(_: Request, error: Exception) -> JSONResponse:
    """Where a request is not as it must be; never what stood there, which may not even be printable."""
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()[:5]]
    return answer(422, "; ".join(problems).encode(errors="replace").decode())


async def _say_no_database(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OperationalError)
    log.error("the store cannot be written: %s", error.orig)
    if is_full_disk(error):
        return answer(507, "not saved: the server's disk is full. Tell the owner; your work is kept in this browser")
    return answer(503, "not saved: the store is busy or gone. It will be tried again", {"retry-after": "5"})


async def _say_our_fault(_: Request, error: Exception) -> JSONResponse:
    number = secrets.token_hex(4)
    log.error("error %s: %s", number, type(error).__name__)
    return answer(500, f"not saved: an error of the server, number {number}. Tell the owner")


def answer(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, dict(headers or {}))
