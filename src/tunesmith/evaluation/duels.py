"""How often one system is preferred to another, with an interval, and what is left of it when length is no argument.

Pure functions on arrays, D duels. Both systems answer the same prompts; a scorer, or a person, has chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from tunesmith.evaluation.intervals import RESAMPLES, interval_of, resampled
from tunesmith.outcomes import Interval

Floats = NDArray[np.floating[Any]]
# Of a fit, which takes some milliseconds.
RESAMPLED_FITS = 200


@dataclass(frozen=True, slots=True)
class Verdicts:
    """won_D     1 where the first system is preferred, 0 the second, one half where neither is
    longer_D  by how many characters the first one's answer is longer
    """

    won_D: Floats
    longer_D: Floats


def duel(first_D: Floats, second_D: Floats) -> Floats:
    """Who won, by scores: level ones count half."""
    return 0.5 + 0.5 * np.sign(first_D - second_D)


def win_rate(verdicts: Verdicts, seed: int = 0) -> Interval:
    """Share of duels won, and its 95 % bootstrap interval."""
    return _with_interval(verdicts, lambda rows: float(verdicts.won_D[rows].mean()), seed, RESAMPLES)


def length_controlled(verdicts: Verdicts, seed: int = 0) -> Interval:
    """The win rate where both answers are of a length: sigmoid(a) of the model sigmoid(a + b tanh(longer / deviation)),
    fitted by likelihood (Dubois et al. 2024, arXiv 2404.04475, without their terms for models and prompts)."""
    deviation = float(verdicts.longer_D.std())
    if not deviation:
        return win_rate(verdicts, seed)
    shape_D = np.tanh(verdicts.longer_D / deviation)

    def fit(rows: NDArray[np.integer[Any]]) -> float:
        return _at_equal_length(verdicts.won_D[rows], shape_D[rows])

    return _with_interval(verdicts, fit, seed, RESAMPLED_FITS)


def _at_equal_length(won_D: Floats, shape_D: Floats) -> float:
    def loss(ab: Floats) -> tuple[float, Floats]:
        z_D = ab[0] + ab[1] * shape_D
        slope_D = 1 / (1 + np.exp(-z_D)) - won_D
        # A little weight decay: where one side wins every duel the likelihood has no top.
        value = np.logaddexp(0, z_D) - won_D * z_D
        slope = np.array([slope_D.mean(), (slope_D * shape_D).mean()])
        return float(value.mean() + 5e-4 * (ab @ ab)), slope + 1e-3 * ab

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B")
    return float(1 / (1 + np.exp(-found.x[0])))


def _with_interval(verdicts: Verdicts, value: Any, seed: int, resamples: int) -> Interval:
    num = len(verdicts.won_D)
    drawn = [value(rows) for rows in resampled(num, seed, resamples)]
    return interval_of(value(np.arange(num)), drawn, num)
