"""Win rates: by hand, against what was put in, and when length alone decides."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.evaluation.duels import Verdicts, duel, length_controlled, win_rate


def test_level_scores_count_half() -> None:
    won = duel(np.array([1.0, 2.0, 3.0, 0.0]), np.array([0.0, 2.0, 5.0, -1.0]))
    assert won.tolist() == [1.0, 0.5, 0.0, 1.0]
    interval = win_rate(Verdicts(won, np.zeros(4)))
    assert interval.value == 0.625
    assert 0 <= interval.low < 0.625 < interval.high <= 1


def test_the_interval_has_its_size() -> None:
    rng = np.random.default_rng(0)
    won = (rng.random(2500) < 0.6).astype(float)
    interval = win_rate(Verdicts(won, np.zeros(2500)))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * np.sqrt(0.24 / 2500), rel=0.1)


def test_what_length_alone_has_won_is_nothing() -> None:
    """The longer answer wins nineteen times of twenty, and the first is longer in seven of ten duels."""
    rng = np.random.default_rng(0)
    longer = np.where(rng.random(2000) < 0.7, 1.0, -1.0) * rng.uniform(50, 100, 2000)
    verdicts = Verdicts(((longer > 0) == (rng.random(2000) < 0.95)).astype(float), longer)
    assert win_rate(verdicts).value == pytest.approx(0.68, abs=0.03)
    assert length_controlled(verdicts).value == pytest.approx(0.5, abs=0.05)


def test_what_was_put_in_comes_out() -> None:
    rng = np.random.default_rng(0)
    longer = rng.normal(30, 40, 6000)
    chance = 1 / (1 + np.exp(-(0.8 + 1.5 * np.tanh(longer / longer.std()))))
    verdicts = Verdicts((rng.random(6000) < chance).astype(float), longer)
    assert length_controlled(verdicts).value == pytest.approx(1 / (1 + np.exp(-0.8)), abs=0.03)
    assert win_rate(verdicts).value > length_controlled(verdicts).value + 0.05
