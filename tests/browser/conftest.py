"""A real browser: Debian's Chromium, driven by Playwright; skipped with a reason where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.feedback.houses import Server, fill, start_server
from tunesmith.feedback.database import open_database
from tunesmith.feedback.people import People
from tunesmith.feedback.store import Store

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="session")
def browser() -> Iterator[sync_api.Browser]:
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no browser: on Debian, apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, headless=True, args=["--no-sandbox"])
        yield opened
        opened.close()


class House:
    """A store of its own and a server on it, which may be killed and started again at the same port."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "feedback.db")
        self.database = open_database(self.path, create=True)
        self.store, self.people = Store(self.database), People(self.database)
        self.server: Server | None = None

    @property
    def url(self) -> str:
        if self.server is None:
            self.server = start_server(self.path)
        return self.server.url

    def restart(self) -> None:
        assert self.server is not None
        self.server.kill()
        self.server = start_server(self.path, self.server.port)

    def close(self) -> None:
        if self.server is not None and self.server.process.poll() is None:
            self.server.kill()
        self.database.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def full_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Many items, one server for the tests of a file that leave it running."""
    made = House(tmp_path_factory.mktemp("house"))
    fill(made.store, 600)
    yield made
    made.close()
