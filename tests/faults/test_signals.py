"""Asked to stop, in every phase: everything that is done is saved, one line says how to go on."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from tests.faults.survival import Attempt, command, digest

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
    ("train", "tunesmith.train.loop.accumulate", 9, INT),
    ("train", "tunesmith.train.loop.accumulate", 9, HUP),
    ("backward", "tunesmith.train.step.backward", 24, TERM),
    ("evaluate", "tunesmith.tuning.validate", 4, TERM),
    ("checkpoint", "tunesmith.train.checkpoint.write_json", 5, TERM),
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
