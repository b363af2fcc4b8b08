"""The server is killed while people rank: what it has said is saved is saved, once, and it is back within seconds."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from pathlib import Path
from statistics import median

import pytest

from tests.feedback.houses import Client, client_of, fill, new_key, response_of, start_server
from tunesmith.feedback.database import open_database
from tunesmith.feedback.people import People
from tunesmith.feedback.results import read_results
from tunesmith.feedback.store import Store


class Worker(threading.Thread):
    """A labeler who writes down what the server has acknowledged, and sends again what it has not."""

    def __init__(self, client: Client, is_over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.client, self.is_over = client, is_over
        self.ledger: dict[str, int] = {}  # key -> version that was acknowledged
        self.unexpected: list[object] = []

    def run(self) -> None:
        while not self.is_over.is_set():
            status, said = self.client.ask("POST", "api/next", {}, timeout=5)
            if status == 200 and said["item"] is not None:
                self._rank(said["item"])
            elif status in (0, 429):
                time.sleep(0.05)  # the cores are for the server that starts again
            else:
                self.unexpected.append((status, said))

    def _rank(self, item: dict) -> None:  # type: ignore[type-arg]
        body = {
            "item": item["id"],
            "version": item["version"],
            "key": new_key(),
            "response": response_of(item),
            "seconds": 1,
        }
        while not self.is_over.is_set():
            status, said = self.client.ask("POST", "api/rankings", body, timeout=5)
            if status == 200:
                self.ledger[body["key"]] = said["version"]
                return
            if status not in (0, 429):
                self.unexpected.append((status, said))
                return
            time.sleep(0.05)


def kill_again_and_again(tmp_path: Path, kills: int) -> None:
    address = str(tmp_path / "feedback.db")
    database = open_database(address, create=True)
    store, people = Store(database), People(database)
    fill(store, 200 * kills)
    sessions = [people.begin_session(people.find_or_add(f"person {number}").id) for number in range(6)]
    database.close()
    server, rng, is_over = start_server(address), random.Random(0), threading.Event()
    restarts: list[float] = []
    workers = [Worker(client_of(server.url, session), is_over) for session in sessions]
    for worker in workers:
        worker.start()
    for _ in range(kills):
        wait_for_work(workers, rng.randint(6, 20))
        time.sleep(rng.uniform(0, 0.05))  # anywhere within a request
        server.kill()
        begun = time.monotonic()
        server = start_server(address, server.port)
        restarts.append(time.monotonic() - begun)
    time.sleep(0.5)
    is_over.set()
    for worker in workers:
        worker.join(15)
    assert server.stop() == 143
    check_ledger(address, workers, kills)
    answers = sum(len(worker.ledger) for worker in workers)
    print(f"{kills} kills, {answers} answers; restarts {median(restarts):.2f} s, at most {max(restarts):.2f} s")
    assert median(restarts) < 5, "a restart takes long"


def wait_for_work(workers: list[Worker], num_answers: int) -> None:
    """Until so many more answers are acknowledged, so that each kill comes into work however slow the machine is."""
    goal, deadline = sum(len(worker.ledger) for worker in workers) + num_answers, time.monotonic() + 20
    while sum(len(worker.ledger) for worker in workers) < goal and time.monotonic() < deadline:
        time.sleep(0.005)


def check_ledger(address: str, workers: list[Worker], kills: int) -> None:
    with sqlite3.connect(address) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        kept = dict(connection.execute("SELECT key, id FROM event WHERE action = 'ranked'").fetchall())
        (count,) = connection.execute("SELECT count(*) FROM event WHERE action = 'ranked'").fetchone()
    connection.close()
    acknowledged = {key: version for worker in workers for key, version in worker.ledger.items()}
    assert len(acknowledged) > 5 * kills, "too little was at work to prove anything"
    lost = {key: version for key, version in acknowledged.items() if kept.get(key) != version}
    assert lost == {}
    assert count == len(kept), "nothing stands there twice"
    assert [one for worker in workers for one in worker.unexpected] == []
    database = open_database(address)
    rankings = read_results(database).rankings
    database.close()
    assert len({ranked.item for ranked in rankings}) == len(rankings) == count


def test_six_kills_lose_nothing(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, 6)


@pytest.mark.soak
def test_two_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, 200)


def test_the_ledger_would_notice(tmp_path: Path) -> None:
    """An acknowledged answer that is not there, or there twice, is seen."""
    address = str(tmp_path / "feedback.db")
    database = open_database(address, create=True)
    fill(Store(database), 1)
    database.close()
    worker = Worker(Client("", ""), threading.Event())
    worker.ledger = {new_key(): number for number in range(20)}
    with pytest.raises(AssertionError):
        check_ledger(address, [worker], 1)


def test_a_signal_ends_it_with_its_own_code(tmp_path: Path) -> None:
    address = str(tmp_path / "feedback.db")
    open_database(address, create=True).close()
    assert start_server(address).stop() == 143
