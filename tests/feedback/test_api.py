"""Requests that nobody thought of: schemathesis makes them from the API's own description. None may be our fault."""

from __future__ import annotations

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from tests.feedback.houses import fill
from tunesmith.feedback.database import open_database
from tunesmith.feedback.people import People, Person
from tunesmith.feedback.store import Store
from tunesmith.feedback.web.app import make_routes
from tunesmith.feedback.web.guard import Caller, Site

SITE = Site(frozenset({"testserver"}), frozenset({"http://testserver"}), "feedback")


@pytest.mark.filterwarnings("default")  # of the tool's own
def test_no_request_is_our_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard stands aside, so that every request reaches a route."""
    monkeypatch.setattr("tunesmith.feedback.people.SCRYPT", {"n": 2, "r": 8, "p": 1})
    monkeypatch.setattr("tunesmith.feedback.people.NOBODY", "scrypt$2$8$1$AAAA$AAAA")
    database = open_database(str(tmp_path / "feedback.db"), create=True)
    store, people = Store(database), People(database)
    fill(store, 20)
    owner = people.find_or_add("owner", "owner")
    routes = make_routes(store, people, SITE, "t" * 43)

    async def as_owner(scope, receive, send):  # type: ignore[no-untyped-def]
        scope.setdefault("state", {})["caller"] = Caller(Person(owner.id, "owner", "owner"), "s" * 43)
        await routes(scope, receive, send)

    schema = schemathesis.openapi.from_dict(routes.openapi())
    statuses: set[int] = set()
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @schemathesis.pytest.parametrize  # type: ignore[misc]
        def unused() -> None: ...

        _ = operation
    database.close()
    assert statuses
