"""Systems of a comparison at work, each in a process of its own: started, stopped, kept, read back.

Its peak memory is its own, and one that fails or is killed does not lose the others. What is finished is not
run again when the command is repeated; a method that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.config_compare import CompareConfig
from tunesmith.errors import InputError
from tunesmith.evaluation.search import Search, seek, share
from tunesmith.evaluation.systems import (
    RUN,
    WITH_RAG,
    run_baseline,
    run_method,
    run_reader,
    states_of,
    tune_config,
)
from tunesmith.evaluation.trials import Trainings
from tunesmith.outcomes import Interval, System
from tunesmith.records import Split
from tunesmith.signals import Stopped, listening
from tunesmith.storage import sha256_of, write_json
from tunesmith.terminal import describe_seconds, say

RESULT = "system.json"
PREDICTIONS = "predictions.json"
SEARCH, TRIALS = "search.json", "search"
# A checkpoint is made within them; a system that takes longer to stop is not waited for.
SECONDS_TO_STOP = 30


@dataclass(frozen=True, slots=True)
class Job:
    """One system to run: `key` changes with everything its result depends on. A reader is a method whose finished run
    answers once more, behind passages."""

    name: str
    kind: str
    folder: Path
    config: CompareConfig
    parts: Split
    key: str
    is_reader: bool = False

    @property
    def is_searched(self) -> bool:
        """Whether its learning rate is looked for: one that is given is not."""
        config = self.config
        is_tuned = self.kind == "method" and not self.is_reader
        return is_tuned and config.budget is not None and self.name not in config.learning_rates


def run_all(jobs: Sequence[Job]) -> list[System]:
    """One after the other; those that are searched share what is left of the budget."""
    return [run_or_reuse(job, f"[{number}/{len(jobs)}] {job.name}", jobs) for number, job in enumerate(jobs, 1)]


def run_or_reuse(job: Job, label: str, jobs: Sequence[Job] = ()) -> System:
    finished = _read_system(job)
    if finished is not None:
        say(f"{label}: finished before, not run again")
        return finished
    say(f"{label} ...")
    if job.is_searched:
        _search_apart(job, label, jobs)
    system = _run_apart(job)
    _describe(label, system, job.parts.test.task)
    return system


def _describe(label: str, system: System, task: str) -> None:
    if system.error:
        say(f"{label}: failed: {system.error.splitlines()[0]}", style="red")
        return
    shown = [f"{name} {interval}" for name, interval in list(system.metrics.items())[:2]]
    say(f"{label}: {', '.join(shown)} in {system.total_seconds:.0f} s")


def start_server() -> None:
    """The small server that systems are forked from begins its imports, which take seconds, while we read data."""
    if sys.platform != "win32":
        from multiprocessing import forkserver  # does not exist on Windows

        multiprocessing.set_forkserver_preload(["tunesmith.evaluation.systems"])
        forkserver.ensure_running()


def _search_apart(job: Job, label: str, jobs: Sequence[Job]) -> None:
    """Before the method's own process, whose memory is then its own. Whatever goes wrong, the method is run."""
    found = _read_search(job)
    if found is None:
        found = Search(share(job.config.budget or 0.0, [_read_search(one) for one in jobs if one.is_searched]))
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(job.folder / SEARCH, {"key": job.key, "search": found})
    if not found.is_over:
        say(f"{label}: {describe_seconds(found.seconds - found.spent)} to look for a learning rate")
        started = time.monotonic()
        exit_code = _apart(_seek, job)
        found = _read_search(job) or found
        if not found.is_over:
            found.is_over, found.spent = True, found.spent + time.monotonic() - started
            found.note = f"the method's own rate: the search failed, {_death_note(exit_code)}"
            write_json(job.folder / SEARCH, {"key": job.key, "search": found})
    say(f"{label}: learning rate {found.note}")


def _read_search(job: Job) -> Search | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        saved = json.loads((job.folder / SEARCH).read_text(encoding="utf-8"))
        if saved["key"] == job.key:
            return Search.from_mapping(saved["search"])
    return None


def _seek(job: Job) -> None:
    """Whatever goes wrong is written down, not raised."""
    found = _read_search(job)
    assert found is not None
    trainings = Trainings(
        job.folder / TRIALS, partial(tune_config, job.config, job.name), job.parts, states_of(job.folder)
    )
    save = partial(write_json, job.folder / SEARCH, {"key": job.key, "search": found})
    try:
        seek(found, trainings, job.config.warmup_ratio, save)
    except Exception as error:
        found.is_over, found.note = True, f"the method's own rate: the search failed, {type(error).__name__}: {error}"
        save()
    trainings.take_over(found, job.folder / RUN)


def _run_apart(job: Job) -> System:
    exit_code = _apart(_run_system, job)
    system = _read_system(job, with_errors=True)
    if system is not None:
        return system
    return System(job.name, _kind(job), "", error=_death_note(exit_code))


def _apart(work: Callable[[Job], None], job: Job) -> int | None:
    """In a process of its own; returns its exit code. Where forking from a small server is possible the imports are
    shared."""
    context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    process = context.Process(target=_work, args=(work, job), name=job.name)
    process.start()
    try:
        process.join()
    except BaseException:
        process.terminate()
        process.join(SECONDS_TO_STOP)
        process.kill()
        raise
    exit_code: int | None = process.exitcode
    return exit_code


def _kind(job: Job) -> Any:
    return job.kind


def _death_note(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        hint = " (often: out of memory)" if exit_code == -9 else ""
        return f"its process was ended by signal {-exit_code}{hint}"
    return f"its process ended with code {exit_code} and left no result"


def _work(work: Callable[[Job], None], job: Job) -> None:
    """The life of a system's process, or of a search's."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        with listening():
            work(job)
    except KeyboardInterrupt as stopped:
        sys.exit(stopped.exit_code if isinstance(stopped, Stopped) else 130)


def _follow_parent() -> None:
    """When the comparison is killed, what it has started saves its state and ends too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        signal.raise_signal(signal.SIGTERM)


def _run_system(job: Job) -> None:
    """Whatever goes wrong is written down, not raised."""
    digest = ""
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / RESULT).unlink(missing_ok=True)
        if job.is_reader:
            system, predictions = run_reader(_tuned(job), job.config, job.parts)
        elif job.kind == "method":
            search = _read_search(job) if job.is_searched else None
            system, predictions = run_method(job.name, job.folder, job.config, job.parts, search)
        else:
            system, predictions = run_baseline(job.name, job.folder, job.config, job.parts)
        write_json(job.folder / PREDICTIONS, predictions.to_mapping())
        digest = sha256_of(job.folder / PREDICTIONS)
    except InputError as error:
        system = System(job.name, _kind(job), "", error=str(error))
    except Exception as error:
        system = System(job.name, _kind(job), "", error=f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    write_json(job.folder / RESULT, {"key": job.key, "system": system, "predictions_sha256": digest})


def _tuned(reader: Job) -> System:
    """The finished system whose run a reader answers with."""
    name = reader.name.removesuffix(WITH_RAG)
    try:
        saved = json.loads((reader.folder.with_name(name) / RESULT).read_text(encoding="utf-8"))
        tuned = system_from(saved["system"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{name} left no result, so nothing can answer with it") from error
    if tuned.error:
        raise InputError(f"{name} failed, so nothing can answer with it")
    return tuned


def _read_system(job: Job, with_errors: bool = False) -> System | None:
    """What a system came to; None when it is not finished, was asked another thing, or is damaged."""
    path = job.folder / RESULT
    if not path.is_file():
        return None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["key"] != job.key or (saved["system"]["error"] and not with_errors):
            return None
        system = system_from(saved["system"])
        is_intact = bool(system.error) or sha256_of(job.folder / PREDICTIONS) == saved["predictions_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        is_intact = False
    if not is_intact:
        say(f"{job.name}: its files in {job.folder} are damaged, so it is run again", style="yellow")
        return None
    return system


def system_from(plain: Mapping[str, Any]) -> System:
    """A System as it was before it became JSON."""
    values = dict(plain)
    values["metrics"] = {name: _interval(value) for name, value in plain["metrics"].items()}
    values["difference"] = None if plain["difference"] is None else _interval(plain["difference"])
    values["curve"], values["samples"] = tuple(plain["curve"]), tuple(plain["samples"])
    values["forgotten"], values["seeds"] = tuple(plain.get("forgotten", ())), tuple(plain.get("seeds", ()))
    return System(**values)


def _interval(plain: Mapping[str, Any]) -> Interval:
    return Interval(*(float("nan") if plain[key] is None else plain[key] for key in ("value", "low", "high")))
