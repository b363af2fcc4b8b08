"""How often 95 % intervals hold the truth, in 2,000 draws of test sets whose truth is known.

The bootstrap's resamples are as drawn counts of rows here, the same for all draws: of statistics that are functions of
sums over rows one product gives all of them at once.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm, t

from tunesmith.evaluation import intervals
from tunesmith.evaluation.intervals import RESAMPLES, resampled

Floats = NDArray[np.floating]

DRAWS = 2000
SIZES = (50, 100, 600)


def counts_of_rows(num_rows: int) -> Floats:
    """(resamples, rows) by the very indices that metrics are resampled with."""
    return np.array([np.bincount(rows, minlength=num_rows) for rows in resampled(num_rows, 0, RESAMPLES)], np.float32)


def covered(drawn: Floats, truth: float, num_rows: int) -> float:
    """The share of the draws, (resamples, draws), whose interval holds the truth."""
    held = [
        found.low <= truth <= found.high for found in (intervals.interval_of(0.0, one, num_rows) for one in drawn.T)
    ]
    return float(np.mean(held))


def share_of_right(rng: np.random.Generator, counts: Floats) -> tuple[Floats, float]:
    right = rng.random((counts.shape[1], DRAWS)) < 0.8
    return counts @ right.astype(np.float32) / counts.shape[1], 0.8


def absolute_error(rng: np.random.Generator, counts: Floats) -> tuple[Floats, float]:
    errors = np.abs(rng.standard_normal((counts.shape[1], DRAWS), np.float32))
    return counts @ errors / counts.shape[1], float(np.sqrt(2 / np.pi))


def macro_f1(rng: np.random.Generator, counts: Floats) -> tuple[Floats, float]:
    """Three classes that hold equally often, 80 % said right and the others anything."""
    shape = (counts.shape[1], DRAWS)
    true = rng.integers(0, 3, shape)
    said = np.where(rng.random(shape) < 0.7, true, rng.integers(0, 3, shape))
    scores = 0.0
    for label in range(3):
        both = (true == label) & (said == label)
        held = counts @ (1.0 * (true == label) + (said == label)).astype(np.float32)
        scores += 2 * (counts @ both.astype(np.float32)) / np.maximum(held, 1)  # 0 where no row has the class
    return np.asarray(scores) / 3, 0.8


def gap_of_equals(rng: np.random.Generator, counts: Floats) -> tuple[Floats, float]:
    """Right answers of one system minus those of another that is no better; often both are right."""
    shape = (counts.shape[1], DRAWS)
    shared = rng.random(shape)
    one, other = (np.where(rng.random(shape) < 0.7, shared, rng.random(shape)) < 0.8 for _ in range(2))
    return counts @ (1.0 * one - other).astype(np.float32) / counts.shape[1], 0.0


@pytest.mark.parametrize("num_rows", SIZES)
@pytest.mark.parametrize("statistic", [share_of_right, absolute_error, macro_f1])
def test_intervals_hold_the_truth_as_often_as_they_say(statistic, num_rows: int) -> None:  # type: ignore[no-untyped-def]
    drawn, truth = statistic(np.random.default_rng(0), counts_of_rows(num_rows))
    held = covered(drawn, truth, num_rows)
    print(f"{statistic.__name__}, {num_rows} rows: {held:.1%}")
    assert 0.93 <= held <= 0.97


@pytest.mark.parametrize("num_rows", SIZES)
def test_equal_systems_are_seldom_told_apart(num_rows: int) -> None:
    drawn, truth = gap_of_equals(np.random.default_rng(0), counts_of_rows(num_rows))
    told_apart = 1 - covered(drawn, truth, num_rows)
    print(f"equal systems, {num_rows} rows: told apart in {told_apart:.1%}")
    assert told_apart <= 0.06


def test_an_interval_that_is_too_narrow_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "LEVEL", 0.9)
    drawn, truth = share_of_right(np.random.default_rng(0), counts_of_rows(100))
    assert covered(drawn, truth, 100) < 0.93
    drawn, truth = gap_of_equals(np.random.default_rng(0), counts_of_rows(100))
    assert 1 - covered(drawn, truth, 100) > 0.06


def test_expanded_tails_are_those_of_the_paper() -> None:
    """Hesterberg 2015, section 5.3: alpha'/2 = Phi(-sqrt(n / (n - 1)) t of alpha/2 with n - 1 degrees of freedom)."""
    for num_rows in (10, 20, 40):
        low, high = intervals.tails(num_rows)
        factor = np.sqrt(num_rows / (num_rows - 1))
        assert norm.ppf(low / 100) / factor == pytest.approx(t.ppf(0.025, num_rows - 1))
        assert high == pytest.approx(100 - low)
    assert intervals.tails(10**7) == pytest.approx((2.5, 97.5), abs=1e-4)
    assert intervals.tails(1)[0] < 1e-9, "of one row nothing is known"
