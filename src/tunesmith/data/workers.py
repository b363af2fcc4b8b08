"""Many rows turned into ids by several processes, each with a tokenizer of its own.

Python renders a row in one thread only, and the threads of `tokenizers` wait for each other at its cache of words.
A process begins in a second and a half and holds 100 MB, since nothing in it needs torch. It reads rows from its
standard input and writes ids to its standard output until the input ends, so it never outlives the one that asks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from tunesmith.data.ids import Encoded, Encoder
from tunesmith.data.store import Stored, decode
from tunesmith.records import Origin

ROWS_AT_ONCE = 512
ROWS_PER_WORKER = 10_000  # fewer are done before another process would have begun
MOST_WORKERS = 16  # the process that asks hands out and takes in no more
START = "from tunesmith.data.workers import serve; serve()"


def count_workers(num_rows: int) -> int:
    """Processes that are worth starting, at most one for each core that may be used; below two none is."""
    if sys.platform == "win32":  # its pipes are of another kind
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS, num_rows // ROWS_PER_WORKER)


def encode_by_workers(rows: Stored, encoder: Encoder, num_workers: int) -> Iterator[list[Encoded]]:
    """What `encoder` makes of the rows, a list for each ROWS_AT_ONCE of them, in order."""
    with ExitStack() as stack:
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(num_workers):
            idle.put(stack.enter_context(_Worker(encoder)))
        pool = stack.enter_context(ThreadPoolExecutor(num_workers))

        def ask(first: int) -> Future[list[Encoded]]:
            places = range(first, min(first + ROWS_AT_ONCE, len(rows)))
            return pool.submit(_ask_one, idle, [(rows.blob(index), rows.origin(index)) for index in places])

        asked: deque[Future[list[Encoded]]] = deque()
        try:
            for first in range(0, len(rows), ROWS_AT_ONCE):
                asked.append(ask(first))
                if len(asked) > 2 * num_workers:
                    yield asked.popleft().result()
            while asked:
                yield asked.popleft().result()
        finally:
            for future in asked:
                future.cancel()


Raw = list[tuple[bytes, Origin]]


def _ask_one(idle: SimpleQueue[_Worker], raw: Raw) -> list[Encoded]:
    worker = idle.get()
    try:
        return worker.ask(raw)
    finally:
        idle.put(worker)


class _Worker:
    def __init__(self, encoder: Encoder) -> None:
        package = str(Path(__file__).resolve().parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        # One thread: the other cores have a process of their own.
        settings = {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | settings
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions = Connection(os.dup(self._process.stdin.fileno()), readable=False)
        self._answers = Connection(os.dup(self._process.stdout.fileno()), writable=False)
        self._send(encoder.settings)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._questions.close()
        self._answers.close()

    def ask(self, raw: Raw) -> list[Encoded]:
        self._send(raw)
        try:
            answer = self._answers.recv()
        except EOFError:
            code = self._process.wait()
            raise RuntimeError(
                f"a process that turns rows into tokens ended with {code} (-9: the machine's memory was full)"
            ) from None
        if isinstance(answer, str):
            raise RuntimeError(f"a process that turns rows into tokens failed:\n{answer}")
        return list(answer)

    def _send(self, thing: object) -> None:
        with suppress(BrokenPipeError):  # it has ended: said when the answer is asked for
            self._questions.send(thing)


def serve() -> None:
    """The other side: runs in the new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; who asks decides
    questions, answers = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # what a library prints is no answer
    encoder = Encoder(*questions.recv())
    while True:
        try:
            raw = questions.recv()
        except EOFError:
            return
        try:
            made: object = encoder.encode([decode(blob, origin) for blob, origin in raw])
        except Exception:
            made = traceback.format_exc()
        answers.send(made)
