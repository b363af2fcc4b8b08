"""How far people agree: five measures, each with a bootstrap interval over items, and why where there is none.

Pure functions of rankings. Beside them stand what others found: InstructGPT's labelers chose the same answer of two
72.6 +-1.5 % of the time, held-out labelers 77.3 +-1.3 % (Ouyang et al. 2022, arXiv 2203.02155, section 3.4).

Each measure is a function of sums over items, so a bootstrap resample of items is a weighted sum.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.feedback.pairs import Ranks, compare, comparisons

INSTRUCTGPT = {"training labelers": (0.726, 0.015), "held-out labelers": (0.773, 0.013)}
RESAMPLES = 1000
TAILS = (2.5, 97.5)
MOST_RANKS = 10  # nine answers, and what is left unranked

Rankings = Mapping[str, Ranks]  # of one item, by labeler
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measure:
    """`value` with its 95 % interval, over so many items; None and a reason where it is not defined."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    num_items: int
    why: str = ""


def measure_agreement(items: Mapping[str, Rankings], seed: int = 0, resamples: int = RESAMPLES) -> list[Measure]:
    """All measures, over the items that two people or more have ranked."""
    shared = [rankings for rankings in items.values() if len(rankings) > 1]
    people = {name for rankings in shared for name in rankings}
    found = []
    for name, add_up, function, undefined in MEASURES:
        if not shared:
            why = "no item was ranked by two people. Let the overlap be 2 or more"
            found.append(Measure(name, None, None, None, 0, why))
        elif name == "Cohen's kappa" and len(people) != 2:
            why = f"it is of two people, these are {len(people)}; Fleiss' kappa is of more"
            found.append(Measure(name, None, None, None, len(shared), why))
        else:
            sums = np.array([add_up(rankings) for rankings in shared])
            value, low, high = bootstrap(sums, function, seed, resamples)
            why = undefined if value is None else "" if low is not None else "a single item gives no interval"
            found.append(Measure(name, value, low, high, len(shared), why))
    return found


def bootstrap(
    sums: Floats, function: Callable[[Floats], float], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float | None, float | None, float | None]:
    """A function of sums (items, parts) over items, with its 95 % percentile interval over resamples of items
    (Efron and Tibshirani 1993). None for what is not defined."""
    value = function(sums.sum(0))
    if np.isnan(value):
        return None, None, None
    drawn = np.array([function(total) for total in resample(sums, seed, resamples)])
    drawn = drawn[~np.isnan(drawn)]
    if len(sums) < 2 or not len(drawn):
        return value, None, None
    low, high = np.percentile(drawn, TAILS)
    return value, float(low), float(high)


def resample(sums: Floats, seed: int, resamples: int) -> Iterator[Floats]:
    """The total of as many items drawn with replacement, again and again."""
    rng, num_items = np.random.default_rng(seed), len(sums)
    shares = np.full(num_items, 1 / num_items)
    return (np.tensordot(rng.multinomial(num_items, shares), sums, 1) for _ in range(resamples))


# Do two people choose the same of two answers?


def count_pairs(rankings: Rankings) -> Floats:
    """(pairs on which two people agree, pairs), over all two people and all two answers that both told apart."""
    agreed = judged = 0
    for one, other in combinations(rankings.values(), 2):
        for pair in comparisons(one):
            outcome = compare(other[pair.first], other[pair.second])
            if pair.outcome and outcome:
                judged += 1
                agreed += pair.outcome == outcome
    return np.array([agreed, judged], dtype=float)


def pairwise_agreement(total: Floats) -> float:
    return _ratio(total[0], total[1])


# Kappa: is a pair's first answer worse, alike or better?


def votes_on_pairs(rankings: Rankings) -> Floats:
    """(pairs, 3): how many people said worse, alike, better; of pairs of answers that two people or more judged."""
    votes: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for ranks in rankings.values():
        for pair in comparisons(ranks):
            votes[pair.first, pair.second][pair.outcome] += 1
    rows = [[counts[outcome] for outcome in (-1, 0, 1)] for counts in votes.values() if counts.total() > 1]
    return np.array(rows, dtype=float).reshape(-1, 3)


def add_up_votes(rankings: Rankings) -> Floats:
    """(5,): the pairs' shares of agreeing two people, summed; pairs; votes for worse, alike, better."""
    votes = votes_on_pairs(rankings)
    sizes = votes.sum(1)
    shares = ((votes**2).sum(1) - sizes) / (sizes * (sizes - 1))
    return np.array([shares.sum(), len(votes), *votes.sum(0)])


def fleiss_kappa(total: Floats) -> float:
    """Fleiss 1971; where pairs are judged by different numbers of people, each pair counts once."""
    votes = total[2:]
    return _above_chance(_ratio(total[0], total[1]), float((votes**2).sum()) / max(float(votes.sum()) ** 2, 1.0))


def cross_tabulate(rankings: Rankings) -> Floats:
    """(9,): a table of 3 x 3, what the first of two people (by name) said of each pair, and what the second said."""
    table = np.zeros((3, 3))
    one, other = (rankings[name] for name in sorted(rankings))
    for pair in comparisons(one):
        outcome = compare(other[pair.first], other[pair.second])
        if outcome is not None:
            table[pair.outcome + 1, outcome + 1] += 1
    return table.ravel()


def cohen_kappa(total: Floats) -> float:
    """Cohen 1960."""
    table = total.reshape(3, 3)
    num_pairs = max(float(table.sum()), 1.0)
    chance = float(table.sum(0) @ table.sum(1)) / num_pairs**2
    return _above_chance(_ratio(np.trace(table), table.sum()), chance)


def _ratio(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else float("nan")


def _above_chance(observed: float, expected: float) -> float:
    return float("nan") if expected > 1 - 1e-9 else (observed - expected) / (1 - expected)


# Krippendorff's alpha: the ranks of single answers


def filled(ranks: Ranks) -> dict[str, int]:
    """Every answer with a rank: unranked ones share the one after the last."""
    last = max((rank for rank in ranks.values() if rank is not None), default=0)
    return {name: last + 1 if rank is None else rank for name, rank in ranks.items()}


def coincide(rankings: Rankings) -> Floats:
    """(100,): a table of 10 x 10, how often two people gave one answer these two ranks, each answer weighing as much as
    the people who ranked it."""
    values: dict[str, list[int]] = defaultdict(list)
    for ranks in rankings.values():
        for name, rank in filled(ranks).items():
            values[name].append(rank - 1)
    table = np.zeros((MOST_RANKS, MOST_RANKS))
    for unit in values.values():
        counts = np.bincount(unit, minlength=MOST_RANKS).astype(float)
        table += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    return table.ravel()


def krippendorff_alpha(total: Floats) -> float:
    """1 - observed / expected disagreement, ordinal: two ranks differ by the square of the number of values between
    them, their own by half (Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, section D)."""
    table = total.reshape(MOST_RANKS, MOST_RANKS)
    totals = table.sum(1)
    middles = np.cumsum(totals) - totals / 2
    differences = (middles[:, None] - middles[None, :]) ** 2
    expected = float(totals @ differences @ totals)
    observed = float((table * differences).sum())
    return float("nan") if expected == 0 else 1 - float(totals.sum() - 1) * observed / expected


# Kendall's tau-b: the rank vectors of two people


def add_up_taus(rankings: Rankings) -> Floats:
    """(sum of tau-b, how many), over every two people neither of whom tied all answers (Kendall 1945).

    Of rank vectors, not of orders: [1, 2, 0, 3] and [3, 1, 0, 2] agree as orders (1/3) and contradict as ranks (-1/3).
    """
    found = []
    for one, other in combinations((filled(ranks) for ranks in rankings.values()), 2):
        vectors = [np.array([ranks[name] for name in sorted(one)]) for ranks in (one, other)]
        if all(np.ptp(vector) for vector in vectors):
            found.append(kendall_tau(*vectors))
    return np.array([sum(found), len(found)], dtype=float)


def kendall_tau(one: NDArray[Any], other: NDArray[Any]) -> float:
    """tau-b: pairs in the same order less those in opposite ones, by the geometric mean of the pairs that each vector
    tells apart. scipy's takes longer to import than the page takes to start."""
    x, y = (np.sign(vector[:, None] - vector[None, :]) for vector in (one, other))
    return float((x * y).sum() / np.sqrt(np.abs(x).sum() * np.abs(y).sum()))


def mean_tau(total: Floats) -> float:
    return _ratio(total[0], total[1])


ALIKE = "everybody always said the same one thing, so chance alone would agree as well"
MEASURES: tuple[tuple[str, Callable[[Rankings], Floats], Callable[[Floats], float], str], ...] = (
    ("pairwise agreement", count_pairs, pairwise_agreement, "no two people told the same two answers apart"),
    ("Cohen's kappa", cross_tabulate, cohen_kappa, ALIKE),
    ("Fleiss' kappa", add_up_votes, fleiss_kappa, ALIKE),
    ("Krippendorff's alpha", coincide, krippendorff_alpha, "all ranks are equal: there is nothing to disagree about"),
    (
        "Kendall's tau-b",
        add_up_taus,
        mean_tau,
        "of every two people one tied all answers: there is no order to compare",
    ),
)
"""Name, what is summed over items, the measure of the sums, and why it may not be defined."""


def agreement_by_labeler(items: Mapping[str, Rankings]) -> dict[str, float | None]:
    """Of each person's pairs, the share on which another one agrees who told the same answers apart."""
    sums: dict[str, Floats] = defaultdict(lambda: np.zeros(2))
    for rankings in items.values():
        for one, other in combinations(rankings, 2):
            counts = count_pairs({one: rankings[one], other: rankings[other]})
            sums[one] += counts
            sums[other] += counts
    return {name: None if not judged else float(agreed / judged) for name, (agreed, judged) in sums.items()}


def by_item(rankings: Iterable[tuple[str, str, Ranks]]) -> dict[str, dict[str, Ranks]]:
    """(item, labeler, ranks) gathered by item and labeler."""
    found: dict[str, dict[str, Ranks]] = defaultdict(dict)
    for item, labeler, ranks in rankings:
        found[item][labeler] = ranks
    return dict(found)


def contested(items: Mapping[str, Rankings]) -> list[tuple[str, float]]:
    """Items on which people contradict each other, the worst first, with the share of pairs on which they do."""
    found = []
    for item, rankings in items.items():
        agreed, judged = count_pairs(rankings) if len(rankings) > 1 else (0.0, 0.0)
        if judged and agreed < judged:
            found.append((item, float(1 - agreed / judged)))
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))
