"""Requests that nobody thought of: schemathesis makes them from the API's own description. None may be our fault.

The guard stands aside, so that every request reaches a route.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi.responses import JSONResponse
from hypothesis import HealthCheck, given, settings

from tests.feedback.houses import fill, new_postgres_database
from tunesmith.feedback import people as accounts
from tunesmith.feedback.database import open_database
from tunesmith.feedback.people import People, Person
from tunesmith.feedback.store import Store
from tunesmith.feedback.web.app import make_routes
from tunesmith.feedback.web.guard import Caller, Site

SITE = Site(frozenset({"testserver"}), frozenset({"http://testserver"}), "feedback")
EXAMPLES = 20


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def described(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The API as one that is always asked by the owner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, "SCRYPT", {"n": 2, "r": 8, "p": 1})
        patch.setattr(accounts, "NOBODY", "scrypt$2$8$1$AAAA$AAAA")
        if request.param == "sqlite":
            address = str(tmp_path_factory.mktemp("api") / "feedback.db")
        else:
            address = new_postgres_database(request.getfixturevalue("postgres"))
        database = open_database(address, create=True)
        store, people = Store(database), People(database)
        fill(store, 20)
        owner = people.find_or_add("owner", "owner")
        caller = Caller(Person(owner.id, "owner", "owner"), "s" * 43)
        routes = make_routes(store, people, SITE, "t" * 43)

        async def as_owner(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and scope["path"] == "/openapi.json":
                return await JSONResponse(routes.openapi())(scope, receive, send)
            if scope["type"] == "http":
                scope.setdefault("state", {})["caller"] = caller
            await routes(scope, receive, send)

        yield schemathesis.openapi.from_asgi("/openapi.json", as_owner)
        database.close()


@pytest.mark.filterwarnings("default")  # the tool's own
def test_no_request_is_our_fault(described: Any) -> None:
    tried: Counter[str] = Counter()
    for result in described.get_all_operations():
        operation = result.ok()

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def attempt(case: Any) -> None:
            reply = case.call()
            tried[f"{case.method} {case.path}"] += 1
            assert reply.status_code < 500, f"{case.as_curl_command()}\n{reply.text}"

        attempt()
    assert len(tried) > 12
    assert min(tried.values()) >= 1
