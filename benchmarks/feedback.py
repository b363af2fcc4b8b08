"""The ranking page under load: so many people rank at once, none waits long and none loses a thing.

    python benchmarks/feedback.py [--labelers 1000] [--seconds 300] [--think 10] [--postgres] [--json FILE]

The server is `tunesmith feedback serve` in a process of its own, on SQLite, or on a PostgreSQL server that is started
for it. Each labeler has a session and a connection, thinks for a time drawn from an exponential distribution, and
submits, which also brings the next item. While thinking they rank one answer after another at random moments, and
drafts are sent as the page sends them: a while after a change, unless another one or the submit comes first. Latency
is from the first byte sent to the last received. At the end every acknowledged answer is looked up in the store.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' houses

from tests.feedback.houses import client_of, make_items, new_postgres_database, running_postgres, serving

from tunesmith.feedback.database import open_database
from tunesmith.feedback.people import People
from tunesmith.feedback.results import read_results
from tunesmith.feedback.store import Store

SECONDS_TO_DRAFT = 1.5  # after a change: SOON in web/static/drafts.js


@dataclass
class Tally:
    """What all labelers have seen together: milliseconds by kind of request, statuses, acknowledged keys."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: {"submit": [], "draft": [], "next": []})
    statuses: Counter[int] = field(default_factory=Counter)
    acknowledged: dict[str, int] = field(default_factory=dict)
    reconnects: int = 0


class Connection:
    """One labeler's connection, opened again when the server has closed it for being idle."""

    def __init__(self, port: int, headers: str, tally: Tally) -> None:
        self._port, self._headers, self._tally = port, headers, tally
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, kind: str, method: str, path: str, content: Any) -> Any:
        body = json.dumps(content).encode()
        request = f"{method} /{path} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n\r\n".encode() + body
        begun = time.perf_counter()
        for _ in range(3):
            try:
                status, said = await self._exchange(request)
                break
            except (OSError, asyncio.IncompleteReadError, ValueError):
                self._streams = None
                self._tally.reconnects += 1
        else:
            status, said = 0, {}
        self._tally.latencies[kind].append(1000 * (time.perf_counter() - begun))
        self._tally.statuses[status] += 1
        return said if status == 200 else None

    async def _exchange(self, request: bytes) -> tuple[int, Any]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.partition("content-length:")[2].split("\r\n")[0])
        return int(head.split(" ")[1]), json.loads(await reader.readexactly(length))


async def label(connection: Connection, options: argparse.Namespace, until: float, tally: Tally) -> None:
    await asyncio.sleep(random.uniform(0, options.think))  # nobody begins at the same moment
    said = await connection.ask("next", "POST", "api/next", {})
    while said is not None and said["item"] is not None:
        item, key = said["item"], secrets.token_hex(16)
        levels = [[answer["id"]] for answer in item["answers"]]
        about = {"item": item["id"], "version": item["version"]}
        begun, thought = time.monotonic(), random.expovariate(1 / options.think)
        if begun + thought > until:
            return
        changes = sorted(random.uniform(0, thought) for _ in levels)
        for count, (change, following) in enumerate(pairwise([*changes, thought]), 1):
            if following - change > SECONDS_TO_DRAFT:
                await asyncio.sleep(begun + change + SECONDS_TO_DRAFT - time.monotonic())
                draft = {"at": 1, "levels": levels[:count], "unranked": [name for (name,) in levels[count:]]}
                await connection.ask("draft", "PUT", "api/draft", {**about, "draft": draft})
        await asyncio.sleep(begun + thought - time.monotonic())
        body = {**about, "key": key, "response": {"levels": levels}, "seconds": thought}
        said = await connection.ask("submit", "POST", "api/rankings", body)
        if said is not None:
            tally.acknowledged[key] = said["version"]


async def load(url: str, sessions: list[str], options: argparse.Namespace, tally: Tally) -> None:
    until = time.monotonic() + options.seconds
    work = []
    for session in sessions:
        client = client_of(url, session)
        headers = {
            "Host": url.removeprefix("http://"),
            "Origin": url,
            "Cookie": client.cookie,
            "X-CSRF-Token": client.csrf,
        }
        lines = "".join(
            f"{name}: {value}\r\n" for name, value in {**headers, "Content-Type": "application/json"}.items()
        )
        work.append(label(Connection(int(url.rpartition(":")[2]), lines, tally), options, until, tally))
    await asyncio.gather(*work)


def run(options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        if options.postgres:
            address = new_postgres_database(stack.enter_context(running_postgres(is_flushing=True)))
        else:
            address = str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "feedback.db")
        database = open_database(address, create=True)
        stack.callback(database.close)
        people = People(database)
        Store(database).add_items(make_items(int(2 * options.labelers * (options.seconds / options.think + 2))))
        names = [f"labeler {number}" for number in range(options.labelers)]
        sessions = [people.begin_session(people.find_or_add(name).id) for name in names]
        server = stack.enter_context(serving(address))
        process = psutil.Process(server.process.pid)
        tally, before = Tally(), process.memory_info().rss
        begun, spent = time.monotonic(), seconds_at_work(process)
        asyncio.run(load(server.url, sessions, options, tally))
        seconds = time.monotonic() - begun
        cores = {who: round((now - spent[who]) / seconds, 2) for who, now in seconds_at_work(process).items()}
        after = process.memory_info().rss
        kept = {ranked.event for ranked in read_results(database).rankings}
        items = Counter(ranked.item for ranked in read_results(database).rankings)
    return {
        "database": "PostgreSQL" if options.postgres else "SQLite",
        "labelers": options.labelers,
        "seconds": round(seconds, 1),
        "machine": f"{psutil.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "acknowledged": len(tally.acknowledged),
        "lost": len(set(tally.acknowledged.values()) - kept),
        "ranked_twice": sum(count > 1 for count in items.values()),
        "errors": sum(count for status, count in tally.statuses.items() if status != 200),
        "statuses": dict(tally.statuses),
        "reconnects": tally.reconnects,
        "submits_per_second": round(len(tally.latencies["submit"]) / seconds, 1),
        "milliseconds": {kind: percentiles(values) for kind, values in tally.latencies.items()},
        "drafts_per_second": round(len(tally.latencies["draft"]) / seconds, 1),
        "cores_at_work": cores,
        "server_mb": [round(before / 1e6), round(after / 1e6)],
    }


def seconds_at_work(server: psutil.Process) -> dict[str, float]:
    """Of the cores, so far: for the server, for the labelers (this process), and for everything on this machine."""
    whole = psutil.cpu_times()
    return {
        "server": sum(server.cpu_times()[:2]),
        "labelers": time.process_time(),
        "all": sum(whole) - whole.idle - getattr(whole, "iowait", 0),
    }


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{level}": round(float(np.percentile(values, level)), 1) for level in (50, 95, 99, 100)} if values else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--think", type=float, default=10, help="mean, in seconds")
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = run(options)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
