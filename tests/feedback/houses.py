"""What the tests of the feedback store and its page share: stores with items, servers as processes, plain requests."""

from __future__ import annotations

import asyncio
import glob
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tunesmith
from tunesmith.feedback.forms import Candidate, Item
from tunesmith.feedback.store import Store
from tunesmith.records import Message

SOURCE = Path(tunesmith.__file__).parents[1]
MODELS = ("base", "tuned", "larger", "reference")


def make_items(count: int, num_answers: int = 4, start: int = 0) -> list[Item]:
    """Items with different prompts; answers get longer from model to model."""
    return [
        Item(
            (Message("user", f"Question {number}: may I build a shed?"),),
            tuple(
                Candidate(
                    f"Answer {place} to {number}." + " More." * (3 * place), MODELS[place % len(MODELS)], {"seed": 0}
                )
                for place in range(num_answers)
            ),
            f"prompts.jsonl:{number + 1}",
        )
        for number in range(start, start + count)
    ]


def run_apart(work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` returns or raises, run in a thread of its own: Playwright's loop may be running in this one."""
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(asyncio.run, work).result()


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def new_key() -> str:
    return secrets.token_hex(16)


# PostgreSQL


def find_postgres() -> Path | None:
    """The folder of a server's programs, newest version first."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(path.split("/")[4]))
    on_path = shutil.which("initdb")
    return Path(found[-1]).parent if found else Path(on_path).parent if on_path else None


@contextmanager
def running_postgres(is_flushing: bool = False) -> Iterator[str]:
    """The address of a server of our own, without a database's name. It refuses to run as root, so it does not.

    A server that outlives no power cut need not flush, which is faster; one whose speed is measured must.
    """
    programs = find_postgres()
    assert programs is not None
    user: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="tunesmith-postgres-"))
    if user:
        shutil.chown(folder, **user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **user}
    made = [programs / "initdb", "-D", folder / "data", "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale", "C"]
    subprocess.run([str(word) for word in made], check=True, **quiet)
    where = ["-D", folder / "data", "-p", port, "-k", folder, "-h", "127.0.0.1"]
    settings = ["-c", "max_connections=200", "-c", f"fsync={'on' if is_flushing else 'off'}"]
    server = subprocess.Popen([str(word) for word in [programs / "postgres", *where, *settings]], **quiet)
    try:
        _wait_for_port(port)
        yield f"postgresql://tester@127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGQUIT)  # at once; nothing of it is needed again
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def new_postgres_database(address: str) -> str:
    import psycopg

    name = f"feedback_{secrets.token_hex(4)}"
    deadline = time.monotonic() + 20
    while True:
        try:
            with psycopg.connect(f"{address}/postgres", autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
            return f"{address}/{name}"
        except psycopg.OperationalError:  # it listens before it is ready
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens at port {port}")


# The page as a process


@dataclass
class Server:
    """`tunesmith feedback serve` at work."""

    process: subprocess.Popen[str]
    port: int
    token: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)
        self._close()

    def stop(self) -> int:
        self.process.terminate()
        code = self.process.wait(30)
        self._close()
        return code

    def _close(self) -> None:
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def start_server(database: str, port: int = 0, *flags: str) -> Server:
    """A server that is ready to answer."""
    command = [sys.executable, "-m", "tunesmith.cli", "feedback", "serve", "--database", database, "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    with tempfile.TemporaryFile("w+") as errors:  # not a pipe, which nobody would read
        process = subprocess.Popen(
            [*command, *flags], env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", line)
        if not found:
            process.kill()
            errors.seek(0)
            raise AssertionError(f"the server said {line!r}: {errors.read()}")
    server = Server(process, int(found[1]), found[2])
    _wait_for_port(server.port)
    return server


@contextmanager
def serving(database: str, *flags: str) -> Iterator[Server]:
    server = start_server(database, 0, *flags)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


# A labeler without a browser


@dataclass
class Client:
    """Requests as the page makes them."""

    url: str
    cookie: str
    csrf: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, content: Any = None, timeout: float = 10) -> tuple[int, Any]:
        """(status, JSON that was answered); 0 when the server is not there."""
        data = None if content is None else json.dumps(content).encode()
        headers = {"Cookie": self.cookie, "X-CSRF-Token": self.csrf, "Origin": self.url, **self.headers}
        if data is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(f"{self.url}/{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"{}")
        except (OSError, ValueError, http.client.HTTPException):  # killed before, within, or after its head
            return 0, {}


def client_of(url: str, session: str) -> Client:
    """Whoever a session token belongs to."""
    from tunesmith.feedback.web.guard import Caller

    port = url.rpartition(":")[2]
    return Client(url, f"tunesmith-feedback-{port}={session}", Caller(None, session).csrf)


def response_of(item: dict[str, Any]) -> dict[str, Any]:
    """The answers as they were shown, the first one best."""
    return {"levels": [[answer["id"]] for answer in item["answers"]]}


def fill(store: Store, count: int, num_answers: int = 4) -> list[Item]:
    items = make_items(count, num_answers)
    store.add_items(items)
    return items
