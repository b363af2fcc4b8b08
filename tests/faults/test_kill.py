"""kill -9 at any moment, the same command again, and in the end the very run that was never interrupted."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.faults.sabotages import SABOTAGES
from tests.faults.survival import CASES, Attempt, Survival, command, digest, steps_logged, survive

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and forking")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("survival")


@pytest.fixture(scope="module")
def uninterrupted(place: Path) -> Callable[[str], dict[str, str]]:
    """What a method's run is when nothing happens to it."""

    @cache
    def digest_of(method: str) -> dict[str, str]:
        attempt = Attempt(command(method, place, place / method), place / f"{method}.txt")
        assert attempt.finish() == 0, (place / f"{method}.txt").read_text()[-2000:]
        return digest(place / method)

    return digest_of


def assert_all_ended_as(done: Survival, whole: dict[str, str]) -> None:
    """Every run that was killed on its way, with each step logged once and nothing but kills."""
    for run, found in zip(done.runs, done.digests, strict=True):
        assert found == whole, run
        steps = steps_logged(run)
        assert steps == list(range(1, len(steps) + 1))
    assert "Traceback" not in done.log.read_text()


KILLS = [pytest.param(method, 8, marks=pytest.mark.slow) for method in ("full", "lora")]
KILLS += [pytest.param(method, 100, marks=pytest.mark.soak) for method in CASES]


@pytest.mark.parametrize(("method", "num_kills"), KILLS)
def test_a_killed_run_ends_as_the_uninterrupted_one(
    method: str, num_kills: int, place: Path, uninterrupted: Callable[[str], dict[str, str]]
) -> None:
    done = survive(method, place, num_kills, seed=num_kills)
    print(f"{method}: {num_kills} kills, {done.in_save} of them inside a save, {len(done.runs)} runs")
    assert_all_ended_as(done, uninterrupted(method))
    assert done.in_save >= 0.3 * num_kills, done


@pytest.mark.slow
def test_learning_by_trial_ends_as_if_never_killed(place: Path, uninterrupted: Callable[[str], dict[str, str]]) -> None:
    done = survive("ppo", place, num_kills=6, seed=6)
    assert_all_ended_as(done, uninterrupted("ppo"))
    assert done.in_save >= 1, done


@pytest.mark.soak
def test_pretraining_ends_as_if_never_killed(place: Path, uninterrupted: Callable[[str], dict[str, str]]) -> None:
    """Through several passes, each of which cuts and masks at other places."""
    done = survive("pretrain", place, num_kills=4, seed=2)
    assert_all_ended_as(done, uninterrupted("pretrain"))
    assert done.in_save >= 1, done


def some_soaked(parts: Iterable[str], *kept: str) -> list[Any]:
    """The parts as parameters, those not kept for every run only in soaks."""
    return [part if part in kept else pytest.param(part, marks=pytest.mark.soak) for part in parts]


@pytest.fixture(scope="module")
def interrupted(place: Path) -> Path:
    """Killed a step after a checkpoint, some steps after the best evaluation."""
    attempt = Attempt(command("full", place, place / "cut"), place / "cut.txt", stop_after=21)
    assert attempt.finish() == -9
    return place / "cut"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["", *some_soaked(SABOTAGES, "optimizer", "generators", "position", "best")])
def test_each_part_of_the_state_is_needed(
    part: str, interrupted: Path, place: Path, uninterrupted: Callable[[str], dict[str, str]]
) -> None:
    """A part that is not restored must show, else the comparison above proves nothing."""
    copy = place / f"without-{part}"
    shutil.copytree(interrupted, copy)
    attempt = Attempt(command("full", place, copy), place / "sabotage.txt", sabotage=part)
    assert attempt.finish() == 0, (place / "sabotage.txt").read_text()[-2000:]
    assert (digest(copy) == uninterrupted("full")) == (part == "")


@pytest.fixture(scope="module")
def interrupted_trial(place: Path) -> Path:
    attempt = Attempt(command("ppo", place, place / "cut-trial"), place / "cut-trial.txt", stop_after=7)
    assert attempt.finish() == -9
    return place / "cut-trial"


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", ["", *some_soaked(["weights", "optimizer", "position", "schedule", "best", "beta"], "optimizer", "beta")]
)
def test_each_part_of_a_trial_is_needed(
    part: str, interrupted_trial: Path, place: Path, uninterrupted: Callable[[str], dict[str, str]]
) -> None:
    copy = place / f"trial-without-{part}"
    shutil.copytree(interrupted_trial, copy)
    attempt = Attempt(command("ppo", place, copy), place / "trial-sabotage.txt", sabotage=part)
    assert attempt.finish() == 0, (place / "trial-sabotage.txt").read_text()[-2000:]
    assert (digest(copy) == uninterrupted("ppo")) == (part == "")
