"""Requests to the page as browsers make them, in one process: a store behind its guard, and people with cookies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from fastapi.testclient import TestClient

from tests.feedback.houses import fill, new_key
from tunesmith.feedback.database import Database
from tunesmith.feedback.people import People, Person
from tunesmith.feedback.store import Store
from tunesmith.feedback.web.app import make_app
from tunesmith.feedback.web.guard import Caller, Site

ORIGIN = "http://127.0.0.1:8421"
SITE = Site(frozenset({"127.0.0.1:8421", "localhost:8421"}), frozenset({ORIGIN, "http://localhost:8421"}), "feedback")
TOKEN = "t" * 43


class House:
    """A store behind the page, and people in it. `folder` is where the store's files are."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.folder = folder
        self.store, self.people = Store(database), People(database)
        self.app = make_app(self.store, self.people, SITE, TOKEN)
        fill(self.store, 3)

    def visit(self, name: str | None = None, role: Any = "labeler") -> Visitor:
        if name is None:
            return Visitor(self, None, "")
        person = self.people.find_or_add(name, role)
        return Visitor(self, person, self.people.begin_session(person.id))


class Visitor:
    """Somebody with a browser of their own."""

    def __init__(self, house: House, person: Person | None, session: str) -> None:
        self.person, self.session = person, session
        self.client = TestClient(house.app, base_url=ORIGIN, follow_redirects=False)

    def ask(self, method: str, path: str, content: Any = None, **headers: str | None) -> httpx.Response:
        """A request as the page makes it; a header given as None is left out."""
        sent: dict[str, str | None] = {"origin": ORIGIN, "x-csrf-token": Caller(None, self.session).csrf}
        if self.session:
            sent["cookie"] = f"feedback={self.session}"
        if method not in ("GET", "HEAD"):
            sent["content-type"] = "application/json"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        kept = {name: value for name, value in sent.items() if value is not None}
        return self.client.request(method, path, json=content, headers=kept)


def take(visitor: Visitor) -> dict[str, Any]:
    reply = visitor.ask("POST", "/api/next", {})
    assert reply.status_code == 200, reply.text
    item: dict[str, Any] = reply.json()["item"]
    return item


def ranking_of(item: dict[str, Any]) -> dict[str, Any]:
    levels = [[answer["id"]] for answer in item["answers"]]
    return {"item": item["id"], "version": item["version"], "key": new_key(), "response": {"levels": levels}}
