"""How strong models are by what people preferred, and what else decides: the place an answer stood at, its length.

Bradley and Terry 1952: model i beats model j with probability 1 / (1 + exp(s_j - s_i)); a tie is half a win for each,
as in Chatbot Arena (Chiang et al. 2024, arXiv 2403.04132). Intervals are over resamples of items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.feedback.agreement import RESAMPLES, TAILS, bootstrap, resample
from tunesmith.feedback.forms import Candidate, Ranked
from tunesmith.feedback.pairs import comparisons, preferences

Floats = NDArray[np.float64]
PRIOR = 0.1  # of a win, and a loss, of every model against every other: what never lost has an end to its strength so


@dataclass(frozen=True, slots=True)
class Strength:
    """A model's strength in nats, 0 on average, with its 95 % interval; what it won of its comparisons, ties half."""

    model: str
    strength: float
    low: float
    high: float
    win_rate: float
    num_comparisons: int


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its 95 % interval, of `count` comparisons; None where there are none."""

    value: float | None
    low: float | None
    high: float | None
    count: int


def rate_models(
    rankings: Sequence[Ranked],
    candidates: Mapping[str, Mapping[str, Candidate]],
    seed: int = 0,
    resamples: int = RESAMPLES // 5,
) -> list[Strength]:
    """The models whose answers were compared, strongest first; empty when there are fewer than two.

    Args:
        candidates: by item, by id.
    """
    models = sorted({made.model for of_item in candidates.values() for made in of_item.values()})
    place = {model: at for at, model in enumerate(models)}
    wins: dict[str, Floats] = {}
    for ranked in rankings:
        table = wins.setdefault(ranked.item, np.zeros((len(models), len(models))))
        for pair in comparisons(ranked.ranks):
            one, other = (place[candidates[ranked.item][name].model] for name in (pair.first, pair.second))
            if one != other:
                table[one, other] += (1 + pair.outcome) / 2
                table[other, one] += (1 - pair.outcome) / 2
    if len(models) < 2 or not wins:
        return []
    tables = np.array(list(wins.values()))
    total = tables.sum(0)
    drawn = np.array([fit_strengths(table) for table in resample(tables, seed, resamples)])
    low, high = np.percentile(drawn, TAILS, axis=0)
    played = total + total.T
    found = [
        Strength(model, float(s), float(lo), float(hi), float(w / max(n, 1)), int(n))
        for model, s, lo, hi, w, n in zip(
            models, fit_strengths(total), low, high, total.sum(1), played.sum(1), strict=True
        )
    ]
    return sorted(found, key=lambda one: -one.strength)


def fit_strengths(wins: Floats, prior: float = PRIOR) -> Floats:
    """(models,) strengths, 0 on average, that make wins[i, j], wins of i over j, likeliest.

    Newton's method on the logistic likelihood, which is concave. `prior` wins are added for every two models.
    """
    num_models = len(wins)
    wins = wins + prior * (1 - np.eye(num_models))
    played = wins + wins.T
    strengths = np.zeros(num_models)
    for _ in range(100):
        expected = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
        gradient = wins.sum(1) - (played * expected).sum(1)
        curvature = played * expected * (1 - expected)
        # The likelihood does not change when all strengths rise alike: a constant more makes the matrix regular.
        hessian = np.diag(curvature.sum(1)) - curvature + np.ones_like(curvature)
        step = np.linalg.solve(hessian, gradient)
        strengths = strengths + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-10:
            break
    centred: Floats = strengths - strengths.mean()
    return centred


def rate_first_place(rankings: Iterable[Ranked], seed: int = 0) -> Share:
    """How often the answer that was shown first is preferred to another one; 0.5 where places do not matter."""
    counts = []
    for ranked in rankings:
        first = ranked.shown[0]
        won = [pair.winner == first for pair in preferences(ranked.ranks) if first in (pair.first, pair.second)]
        counts.append((sum(won), len(won)))
    return _share(counts, seed)


def rate_longer(rankings: Iterable[Ranked], candidates: Mapping[str, Mapping[str, Candidate]], seed: int = 0) -> Share:
    """How often the longer of two answers, in characters, is preferred."""
    counts = []
    for ranked in rankings:
        sizes = {name: len(made.text) for name, made in candidates[ranked.item].items()}
        won = [
            sizes[pair.winner] > sizes[pair.loser]
            for pair in preferences(ranked.ranks)
            if sizes[pair.winner] != sizes[pair.loser]
        ]
        counts.append((sum(won), len(won)))
    return _share(counts, seed)


def rate_ties(rankings: Iterable[Ranked], seed: int = 0) -> Share:
    """How many of the comparisons are ties."""
    counts = []
    for ranked in rankings:
        outcomes = [pair.outcome == 0 for pair in comparisons(ranked.ranks)]
        counts.append((sum(outcomes), len(outcomes)))
    return _share(counts, seed)


def _share(counts: Sequence[tuple[int, int]], seed: int) -> Share:
    sums = np.array(counts, dtype=float).reshape(-1, 2)
    num_all = int(sums[:, 1].sum())
    return Share(*bootstrap(sums, _rate, seed), num_all) if num_all else Share(None, None, None, 0)


def _rate(total: Floats) -> float:
    return float(total[0] / total[1]) if total[1] else float("nan")
