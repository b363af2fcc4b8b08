"""Weaknesses, planted one by one: each rule that is tested elsewhere is seen to fail once it is taken out.

`holds` is the rule as a request. It must be true of the page as it is, and false of the page with the weakness.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi.testclient import TestClient
from sqlalchemy import text

from tests.feedback.visits import ORIGIN, House, Visitor, ranking_of, take
from tunesmith.errors import InputError
from tunesmith.feedback import database as databases
from tunesmith.feedback import people as accounts
from tunesmith.feedback import serving, statements
from tunesmith.feedback import store as stores
from tunesmith.feedback.database import open_database
from tunesmith.feedback.people import People
from tunesmith.feedback.settings import ServeConfig
from tunesmith.feedback.web import app as web_app
from tunesmith.feedback.web import guard

Patch = pytest.MonkeyPatch
PASSWORD = "correct horse battery"


@dataclass(frozen=True)
class Weakness:
    """What is taken out, and the rule that then no longer holds."""

    name: str
    plant: Callable[[Patch], None]
    holds: Callable[[House], bool]


def nothing(*_: object, **__: object) -> None:
    return None


def with_cors(made: Callable[..., FastAPI]) -> Callable[..., FastAPI]:
    def make(*details: Any) -> FastAPI:
        app = made(*details)
        app.add_middleware(CORSMiddleware, allow_origins=["*"])
        return app

    return make


def any_file(folder: StaticFiles, path: str) -> tuple[str, Any]:
    found = os.path.join(str(folder.directory), path)
    return (found, os.stat(found)) if os.path.exists(found) else ("", None)


async def say_all(_: object, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": f"not saved: {error}"}, 500)


def anybodys(connection: Any, item_id: str, _: int) -> Any:
    found = text("SELECT labeler_id FROM assignment WHERE item_id = :item")
    labeler = connection.execute(found, {"item": item_id}).scalar()
    return stores._assignment(connection, item_id, labeler)


prepare_sqlite, open_file = databases._prepare_sqlite, os.open


def hasty(connection: Any, record: object) -> None:
    prepare_sqlite(connection, record)
    connection.execute("PRAGMA synchronous = NORMAL")


def open_to_all_eyes(patch: Patch) -> None:
    def open_loosely(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        return open_file(path, flags, 0o644 if mode == 0o600 else mode, **more)

    patch.setattr(os, "open", open_loosely)
    patch.setattr(Path, "chmod", nothing)


# The rules


def refuses_the_network(_: House) -> bool:
    try:
        serving.find_site(ServeConfig(host="0.0.0.0"), 8421)
    except InputError:
        return True
    return False


def status(house: House, name: str | None, method: str, path: str, content: Any = None, **headers: str | None) -> int:
    return house.visit(name).ask(method, path, content, **headers).status_code


def tells_no_other_site(house: House) -> bool:
    reply = house.visit("ann").ask("GET", "/api/history", origin="http://evil.example")
    return not [name for name in reply.headers if name.startswith("access-control")]


def signs_in(house: House, name: str, password: str) -> int:
    return Visitor(house, None, "v" * 43).ask("POST", "/api/sign-in", {"name": name, "password": password}).status_code


def slows_guesses_down(house: House) -> bool:
    return [signs_in(house, "ann", "wrong") for _ in range(12)][-1] == 429


def slows_guesses_from_everywhere_down(house: House) -> bool:
    house.app._entries = guard.Limiter(1000, 1000)  # as if each came from another address
    return [signs_in(house, "ann", "wrong") for _ in range(12)][-1] == 429 and signs_in(house, "ben", "wrong") == 403


def slows_requests_down(house: House) -> bool:
    house.app._requests = guard.Limiter(burst=3, per_second=0.01)
    ann = house.visit("ann")
    return [ann.ask("POST", "/api/next", {}).status_code for _ in range(4)] == [200, 200, 200, 429]


def gives_a_new_session(house: House) -> bool:
    house.people.join(house.people.invite(), "Ann", PASSWORD)
    planted = Visitor(house, None, "p" * 43)
    reply = planted.ask("POST", "/api/sign-in", {"name": "Ann", "password": PASSWORD})
    return "p" * 43 not in reply.headers["set-cookie"]


def ends_a_session(house: House) -> bool:
    ann = house.visit("ann")
    ann.ask("POST", "/api/sign-out", {})
    return ann.ask("POST", "/api/next", {}).status_code == 401


def shuts_out(house: House) -> bool:
    ann, owner = house.visit("ann"), house.visit("owner", "owner")
    assert ann.person is not None
    owner.ask("PUT", f"/api/owner/people/{ann.person.id}", {"is_blocked": True})
    return ann.ask("POST", "/api/next", {}).status_code == 401


def keeps_work_apart(house: House) -> bool:
    ann, ben = house.visit("ann"), house.visit("ben")
    item = take(ann)
    return ben.ask("GET", f"/api/items/{item['id']}").status_code == 404


def ends_an_invitation(house: House) -> bool:
    token = house.people.invite()
    house.people.clock = lambda: time.time() + 8 * 24 * 3600
    try:
        house.people.join(token, "Ann", PASSWORD)
    except InputError:
        return True
    return False


def repeats_safely(house: House) -> bool:
    ann = house.visit("ann")
    body = ranking_of(take(ann))
    return [ann.ask("POST", "/api/rankings", body).status_code for _ in range(2)] == [200, 200]


def overwrites_nothing(house: House) -> bool:
    ann = house.visit("ann")
    item = take(ann)
    return [ann.ask("POST", "/api/rankings", ranking_of(item)).status_code for _ in range(2)] == [200, 409]


def refuses_large_bodies(house: House) -> bool:
    return status(house, "ann", "POST", "/api/next", {"x": "x" * 300_000}) == 413


def hides_what_failed(house: House) -> bool:
    def fail(*_: object) -> None:
        raise RuntimeError("the secret of /srv/feedback.db")

    house.store.history = fail  # type: ignore[method-assign,assignment]
    ann = house.visit("ann")
    ann.client = TestClient(house.app, base_url=ORIGIN, raise_server_exceptions=False)
    return "secret" not in ann.ask("GET", "/api/history").text


def writes_through(house: House) -> bool:
    with house.store.database.reading() as connection:
        return connection.execute(text("PRAGMA synchronous")).scalar() == 2


def is_the_owners_alone(house: House) -> bool:
    return all(file.stat().st_mode & 0o077 == 0 for file in house.folder.iterdir())


HOST_OR_ORIGIN = ("_check_place", nothing)
WEAKNESSES = [
    Weakness("open to the network", lambda patch: patch.setattr(serving, "find_site", nothing), refuses_the_network),
    Weakness(
        "any host",
        lambda patch: patch.setattr(guard.Guard, *HOST_OR_ORIGIN),
        lambda house: status(house, "ann", "GET", "/enter", host="evil.example") == 421,
    ),
    Weakness(
        "any origin",
        lambda patch: patch.setattr(guard.Guard, *HOST_OR_ORIGIN),
        lambda house: status(house, "ann", "POST", "/api/next", {}, origin="http://evil.example") == 403,
    ),
    Weakness(
        "a method forgotten",
        lambda patch: patch.setattr(guard, "SAFE", {*guard.SAFE, "DELETE"}),
        lambda house: status(house, "ann", "DELETE", "/api/next", origin="http://evil.example") == 403,
    ),
    Weakness(
        "no token of the page",
        lambda patch: patch.setattr(guard.hmac, "compare_digest", lambda one, other: True),
        lambda house: status(house, "ann", "POST", "/api/next", {}, x_csrf_token="") == 403,
    ),
    Weakness(
        "other sites may read",
        lambda patch: patch.setattr(web_app, "make_routes", with_cors(web_app.make_routes)),
        tells_no_other_site,
    ),
    Weakness(
        "no headers",
        lambda patch: patch.setattr(guard, "HEADERS", {}),
        lambda house: (
            "frame-ancestors 'none'"
            in house.visit("ann").ask("GET", "/rank").headers.get("content-security-policy", "")
        ),
    ),
    Weakness(
        "a route for everybody",
        lambda patch: patch.setattr(guard, "PUBLIC", {*guard.PUBLIC, "/rank"}),
        lambda house: status(house, None, "GET", "/rank") == 303,
    ),
    Weakness(
        "labelers are owners",
        lambda patch: patch.setattr(guard, "_check_person", nothing),
        lambda house: status(house, "ann", "GET", "/api/owner/overview") == 403,
    ),
    Weakness(
        "any file",
        lambda patch: patch.setattr(StaticFiles, "lookup_path", any_file),
        lambda house: "import" not in house.visit().ask("GET", "/static/%2e%2e/app.py").text,
    ),
    Weakness(
        "a default password",
        lambda patch: patch.setattr(accounts, "NOBODY", accounts.hash_password(PASSWORD)),
        lambda house: house.visit("ann") and signs_in(house, "ann", PASSWORD) == 403,
    ),
    Weakness("guesses", lambda patch: patch.setattr(guard.Limiter, "take", lambda *_: 0.0), slows_guesses_down),
    Weakness(
        "guesses from everywhere",
        lambda patch: patch.setattr(web_app, "Limiter", lambda **_: guard.Limiter(1000, 1000)),
        slows_guesses_from_everywhere_down,
    ),
    Weakness("a flood", lambda patch: patch.setattr(guard.Guard, "_check_rate", nothing), slows_requests_down),
    Weakness(
        "session fixation",
        lambda patch: patch.setattr(People, "sign_in", lambda *_: "p" * 43),
        gives_a_new_session,
    ),
    Weakness("sessions that do not end", lambda patch: patch.setattr(People, "sign_out", nothing), ends_a_session),
    Weakness("blocking is only written down", lambda patch: patch.setattr(People, "set_blocked", nothing), shuts_out),
    Weakness("work of anybody", lambda patch: patch.setattr(stores, "_expect", anybodys), keeps_work_apart),
    Weakness(
        "invitations without an end",
        lambda patch: patch.setattr(accounts, "INVITATION_SECONDS", 1e9),
        ends_an_invitation,
    ),
    Weakness(
        "a retry is another answer",
        lambda patch: patch.setattr(statements, "REPEATED", statements.REPEATED.where(text("1 = 0"))),
        repeats_safely,
    ),
    Weakness("an older page wins", lambda patch: patch.setattr(stores, "_check_version", nothing), overwrites_nothing),
    Weakness("bodies of any size", lambda patch: patch.setattr(guard, "MOST_BYTES", 2**40), refuses_large_bodies),
    Weakness(
        "errors that tell all", lambda patch: patch.setattr(web_app, "_say_our_fault", say_all), hides_what_failed
    ),
    Weakness("writes that wait", lambda patch: patch.setattr(databases, "_prepare_sqlite", hasty), writes_through),
    Weakness(
        "a store for all eyes",
        open_to_all_eyes,
        is_the_owners_alone,
    ),
]


@pytest.mark.parametrize("weakness", WEAKNESSES, ids=[one.name.replace(" ", "-") for one in WEAKNESSES])
def test_a_weakness_is_noticed(tmp_path: Path, monkeypatch: Patch, weakness: Weakness) -> None:
    monkeypatch.setattr(accounts, "SCRYPT", {"n": 2, "r": 8, "p": 1})  # tests need no slow passwords
    monkeypatch.setattr(accounts, "NOBODY", "scrypt$2$8$1$AAAA$AAAA")
    found = []
    for name in ("sound", "weak"):
        if name == "weak":
            weakness.plant(monkeypatch)
        (tmp_path / name).mkdir()
        database = open_database(str(tmp_path / name / "feedback.db"), create=True)
        found.append(weakness.holds(House(database, tmp_path / name)))
        database.close()
    assert found == [True, False]
