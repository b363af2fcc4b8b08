"""A real browser: Debian's Chromium, driven by Playwright; skipped with a reason where there is none."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from tests.feedback.houses import Server, fill, start_server
from tunesmith.feedback.database import open_database
from tunesmith.feedback.people import People
from tunesmith.feedback.serving import find_site
from tunesmith.feedback.settings import ServeConfig
from tunesmith.feedback.store import Store
from tunesmith.feedback.web.app import make_app

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


class Thread:
    """The page in a thread of the test's: there at once, but nothing that can be killed."""

    def __init__(self, store: Store, people: People) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        site = find_site(ServeConfig(), port)
        settings = uvicorn.Config(make_app(store, people, site, "t" * 43), log_level="error", ws="none")
        self._server, self.url = uvicorn.Server(settings), f"http://127.0.0.1:{port}"
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
        self._listener.close()


class House:
    """A store of its own and the page on it; as a process, it may be killed and started again at the same port."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "feedback.db")
        self.database = open_database(self.path, create=True)
        self.store, self.people = Store(self.database), People(self.database)
        self._server: Server | Thread | None = None

    @property
    def url(self) -> str:
        if self._server is None:
            self._server = Thread(self.store, self.people)
        return self._server.url

    def serve_by_process(self) -> None:
        self._server = start_server(self.path)

    def restart(self) -> None:
        assert isinstance(self._server, Server)
        self._server.kill()
        self._server = start_server(self.path, self._server.port)

    def close(self) -> None:
        if self._server is not None:
            self._server.kill()
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
