"""Stores on both databases: each test that asks for one runs on SQLite, and on PostgreSQL where there is a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.feedback.houses import Clock, find_postgres, new_postgres_database, running_postgres
from tests.feedback.visits import House
from tunesmith.feedback.database import Database, open_database
from tunesmith.feedback.people import People
from tunesmith.feedback.store import Store


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    if find_postgres() is None:
        pytest.skip("no PostgreSQL server: on Debian, apt-get install postgresql")
    with running_postgres() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "feedback.db")
    return new_postgres_database(request.getfixturevalue("postgres"))


@pytest.fixture
def database(address: str) -> Iterator[Database]:
    opened = open_database(address, create=True)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database, clock: Clock) -> Store:
    return Store(database, clock)


@pytest.fixture
def people(database: Database, clock: Clock) -> People:
    return People(database, clock)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    database = open_database(str(tmp_path / "feedback.db"), create=True)
    yield House(database, tmp_path)
    database.close()
