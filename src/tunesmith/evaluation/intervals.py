"""95 % intervals from bootstrap draws (Efron & Tibshirani 1993).

Of few rows a percentile interval is too narrow, by about the step from a normal deviate to Student's t and from n to
n - 1. Hesterberg's expanded percentiles (The American Statistician 69, 2015, section 5.3) take the same draws and look
further out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from tunesmith.outcomes import Interval

Indices = NDArray[np.integer[Any]]

LEVEL = 0.95
RESAMPLES = 1000


def resampled(num_rows: int, seed: int, resamples: int) -> Iterator[Indices]:
    """(rows,) indices drawn with replacement, one resample at a time: all at once would be 8 bytes x resamples
    x rows, and count as memory of the system that is judged."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, num_rows, num_rows) for _ in range(resamples))


def tails(num_rows: int) -> tuple[float, float]:
    """The percentiles between which the interval of a statistic of so many rows lies; 2.5 and 97.5 of very many."""
    free = max(num_rows - 1, 1)
    low = float(norm.cdf(-np.sqrt(1 + 1 / free) * t.ppf((1 + LEVEL) / 2, free)))
    return 100 * low, 100 * (1 - low)


def interval_of(value: float, drawn: Sequence[float], num_rows: int) -> Interval:
    """Of draws that resampled so many rows; those for which the statistic is undefined are left out."""
    defined = np.array(drawn)[~np.isnan(drawn)]
    if not len(defined):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(defined, tails(num_rows))
    return Interval(value, float(low), float(high))
