"""How well rewards agree with rankings: pairs, calibration, and what length alone would say.

Pure functions on arrays. A pair is two answers to one prompt of unequal rank; P pairs. Resamples draw prompts, not
pairs: pairs of one prompt hang together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from tunesmith.evaluation.intervals import RESAMPLES, interval_of, resampled
from tunesmith.outcomes import Interval

Floats = NDArray[np.floating[Any]]
NUM_BINS = 10
# By how much longer the better answer is, in characters.
LENGTH_GAPS = (-np.inf, -100.0, -20.0, 20.0, 100.0, np.inf)


@dataclass(frozen=True, slots=True)
class Pairs:
    """gap_P     reward of the better answer less that of the worse
    longer_P  length of the better answer less that of the worse, in characters
    prompt_P  which prompt the pair belongs to
    """

    gap_P: Floats
    longer_P: Floats
    prompt_P: NDArray[np.integer[Any]]

    def __len__(self) -> int:
        return len(self.gap_P)


def pairs_of(
    rewards: Sequence[Sequence[float]],
    ranks: Sequence[Sequence[int]],
    lengths: Sequence[Sequence[int]],
    prompts: Sequence[Hashable] | None = None,
) -> Pairs:
    """All pairs, of each ranking its own; rankings are of a prompt each, or of those in `prompts`."""
    found = []
    places: dict[Hashable, int] = {}
    named = range(len(ranks)) if prompts is None else prompts
    for name, reward, rank, length in zip(named, rewards, ranks, lengths, strict=True):
        prompt = places.setdefault(name, len(places))
        for a, b in combinations(range(len(rank)), 2):
            if rank[a] != rank[b]:
                better, worse = (a, b) if rank[a] < rank[b] else (b, a)
                found.append((reward[better] - reward[worse], length[better] - length[worse], prompt))
    table = np.array(found, dtype=float).reshape(-1, 3)
    return Pairs(table[:, 0], table[:, 1], table[:, 2].astype(int))


def wins(gap_P: Floats) -> Floats:
    """1 where the better answer is ahead, one half where both are level."""
    return 0.5 + 0.5 * np.sign(gap_P)


def mean_by_prompt(value_P: Floats, prompt_P: NDArray[np.integer[Any]], seed: int = 0) -> Interval:
    """Mean over pairs with the 95 % interval of a bootstrap over prompts (Efron & Tibshirani 1993)."""
    num = int(prompt_P.max()) + 1
    sums, counts = np.bincount(prompt_P, value_P, num), np.bincount(prompt_P, minlength=num)
    drawn = [sums[rows].sum() / max(1, counts[rows].sum()) for rows in resampled(num, seed, RESAMPLES)]
    return interval_of(float(value_P.mean()), drawn, num)


def log_loss(gap_P: Floats) -> float:
    """Mean of -log sigmoid(gap) in nats; log 2 says nothing."""
    return float(np.logaddexp(0, -gap_P).mean())


def calibration(gap_P: Floats) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error, and the reliability diagram's bins (Guo et al. 2017, arXiv 1706.04599, equation 3).

    Of each pair the side that the rewards favour is taken, said with sigmoid(|gap|), from one half to 1, and is right
    or not. Bins of equal width; the error is the mean distance of confidence and accuracy, weighed by pairs.
    """
    confidence_P, right_P = 1 / (1 + np.exp(-np.abs(gap_P))), wins(gap_P)
    places_P = np.minimum(((confidence_P - 0.5) * 2 * NUM_BINS).astype(int), NUM_BINS - 1)
    error, bins = 0.0, []
    for place in range(NUM_BINS):
        chosen = places_P == place
        if chosen.any():
            said, found = float(confidence_P[chosen].mean()), float(right_P[chosen].mean())
            error += float(chosen.mean()) * abs(said - found)
            bins.append({"confidence": said, "accuracy": found, "pairs": int(chosen.sum())})
    return error, bins


def best_temperature(gap_P: Floats) -> float:
    """What all rewards should be divided by for the least log-loss on these pairs (Platt scaling without an offset)."""
    found = minimize_scalar(lambda x: log_loss(gap_P / np.exp(x)), bounds=(-5.0, 5.0), method="bounded")
    return float(np.exp(found.x))


def by_length(pairs: Pairs) -> list[dict[str, Any]]:
    """Accuracy by how much longer the better answer is, in characters."""
    rows = []
    for low, high in pairwise(LENGTH_GAPS):
        chosen = (pairs.longer_P > low) & (pairs.longer_P <= high)
        if chosen.any():
            accuracy = float(wins(pairs.gap_P[chosen]).mean())
            rows.append({"above": low, "to": high, "pairs": int(chosen.sum()), "accuracy": accuracy})
    return rows


def best_of_n(rewards: Sequence[Sequence[float]], ranks: Sequence[Sequence[int]]) -> list[dict[str, float]]:
    """For each n: of n answers to a prompt the one with the highest reward is taken; `beats` is the share of all other
    answers to that prompt that people rank below it, ties half. Exact over all draws of n (the unbiased estimate of
    Nakano et al. 2021, arXiv 2112.09332, appendix I); one half at n = 1. `best` is what people's own choice would have.
    """
    rows = []
    for n in range(1, max(map(len, ranks), default=0) + 1):
        fit = [
            (np.asarray(reward), _beaten(rank)) for reward, rank in zip(rewards, ranks, strict=True) if len(rank) >= n
        ]
        beats = [_expected(beaten[np.argsort(-reward, kind="stable")], n) for reward, beaten in fit]
        best = [_expected(-np.sort(-beaten), n) for _, beaten in fit]
        rows.append({"n": n, "prompts": len(fit), "beats": float(np.mean(beats)), "best": float(np.mean(best))})
    return rows


def _beaten(ranks: Sequence[int]) -> Floats:
    """Of each answer the share of the others that are ranked below it, ties half."""
    rank_K = np.asarray(ranks)
    won_KK = 0.5 + 0.5 * np.sign(rank_K[None, :] - rank_K[:, None])
    return (won_KK.sum(1) - 0.5) / max(1, len(rank_K) - 1)


def _expected(value_K: Floats, n: int) -> float:
    """Mean of what is first among n drawn without return, where values stand in the order of preference."""
    num = len(value_K)
    return float(sum(comb(num - place - 1, n - 1) * value for place, value in enumerate(value_K)) / comb(num, n))


def describe(pairs: Pairs) -> dict[str, Any]:
    """All of it, as a report has it. Nothing of pairs that there are none of."""
    if not len(pairs):
        return {"pairs": 0}
    error, bins = calibration(pairs.gap_P)
    return {
        "pairs": len(pairs),
        "prompts": len(np.unique(pairs.prompt_P)),
        "accuracy": mean_by_prompt(wins(pairs.gap_P), pairs.prompt_P),
        "longer_wins": mean_by_prompt(wins(pairs.longer_P), pairs.prompt_P),
        "log_loss": log_loss(pairs.gap_P),
        "calibration_error": error,
        "temperature": best_temperature(pairs.gap_P),
        "reliability": bins,
        "by_length_gap": by_length(pairs),
    }
