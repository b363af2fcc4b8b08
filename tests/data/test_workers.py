"""Several processes give what one gives, say what went wrong in them, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.data.test_tokenize import CHATML, byte_tokenizer

from tunesmith.data import sources, tokenize, workers
from tunesmith.data.ids import Encoder
from tunesmith.data.store import Stored, Subset
from tunesmith.errors import InputError
from tunesmith.records import Examples

REFUSES_BLUE = "{% if 'blue' in messages[0]['content'] %}{{ raise_exception('no blue') }}{% endif %}" + CHATML


def chats(count: int) -> list[dict[str, Any]]:
    colours = ("red", "green", "blue", "grey <|im_end|> grey")
    return [
        {"prompt": f"{colours[i % 4]} {'word ' * (i % 50)}{i}?", "completion": f"Answer {i}."} for i in range(count)
    ]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(workers, "ROWS_AT_ONCE", 64)
    yield
    assert our_workers() == []


def our_workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if workers.START in child.cmdline()]


def by_workers(monkeypatch: pytest.MonkeyPatch, *given: Any) -> Any:
    monkeypatch.setattr(tokenize, "count_workers", lambda num_rows: 2)
    return tokenize.tokenize(*given)


@pytest.mark.parametrize(("longest", "too_long"), [(10_000, "refuse"), (150, "cut"), (150, "skip")])
def test_as_one_process(longest: int, too_long: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, tokenizer = sources.load(chats(500)), byte_tokenizer(CHATML)
    alone = tokenize.tokenize(examples, tokenizer, longest, too_long)
    together = by_workers(monkeypatch, examples, tokenizer, longest, too_long)
    assert list(together) == list(alone)
    assert (together.signal, together.examples) == (alone.signal, alone.examples)
    assert (alone.signal.num_cut_rows > 0) == (too_long == "cut")


def test_a_subset_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = sources.load([{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(400)])
    examples = Examples("classification", Subset(examples.rows, range(399, 100, -1)), examples.class_names, "", "")
    tokenizer = byte_tokenizer(CHATML)
    alone = list(tokenize.tokenize(examples, tokenizer, 100))
    assert list(by_workers(monkeypatch, examples, tokenizer, 100)) == alone


@pytest.mark.parametrize(("template", "longest"), [(REFUSES_BLUE, 10_000), (CHATML, 150)])
def test_rows_are_refused_in_the_same_words(template: str, longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, tokenizer = sources.load(chats(300)), byte_tokenizer(template)
    with pytest.raises(InputError) as alone:
        tokenize.tokenize(examples, tokenizer, longest)
    with pytest.raises(InputError) as together:
        by_workers(monkeypatch, examples, tokenizer, longest)
    assert str(together.value) == str(alone.value)
    assert "<rows>:3: " in str(alone.value) or longest == 150


def encoding(count: int) -> Iterator[Any]:
    rows = sources.load(chats(count)).rows
    assert isinstance(rows, Stored)
    return workers.encode_by_workers(rows, Encoder(byte_tokenizer(CHATML), 10_000, "refuse", {}), 2)


def test_a_worker_that_ends_is_named() -> None:
    made = encoding(2_000)
    next(made)
    for worker in our_workers():
        worker.send_signal(signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"turns rows into tokens ended with -9"):
        list(made)


def test_what_fails_in_a_worker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sources.load(chats(10)).rows
    assert isinstance(rows, Stored)
    monkeypatch.setattr(type(rows), "blob", lambda self, index: b"no json")
    with pytest.raises(RuntimeError, match=r"failed:\n(?s:.)*JSONDecodeError"):
        list(workers.encode_by_workers(rows, Encoder(byte_tokenizer(CHATML), 100, "refuse", {}), 1))


def test_who_stops_asking_leaves_no_process() -> None:
    made = encoding(2_000)
    next(made)
    assert len(our_workers()) == 2
    made.close()  # type: ignore[attr-defined]


ASKS = """
import sys, time
from tests.data import test_workers
made = test_workers.encoding(20_000)
next(made)
print(*(worker.pid for worker in test_workers.our_workers()), flush=True)
time.sleep(60)
"""


def test_a_killed_asker_leaves_no_process() -> None:
    root = Path(__file__).parents[2]
    asker = subprocess.Popen([sys.executable, "-c", ASKS], stdout=subprocess.PIPE, text=True, cwd=root, env=os.environ)
    assert asker.stdout is not None
    pids = [int(pid) for pid in asker.stdout.readline().split()]
    assert len(pids) == 2
    asker.kill()
    asker.communicate()
    end = time.monotonic() + 20
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(psutil.pid_exists, pids))


def test_few_rows_need_no_workers() -> None:
    assert workers.count_workers(2 * workers.ROWS_PER_WORKER - 1) < 2
