"""Rankings as comparisons of two answers.

A ranking of K answers holds K (K - 1) / 2 comparisons. What was ranked beats what was left unranked; two answers
that were both left unranked were not compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

Ranks = Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers of one item. `outcome` is 1 where `first` is better, -1 where `second` is, 0 for a tie."""

    first: str
    second: str
    outcome: int

    @property
    def winner(self) -> str:
        return self.first if self.outcome > 0 else self.second

    @property
    def loser(self) -> str:
        return self.second if self.outcome > 0 else self.first


def compare(one: int | None, other: int | None) -> int | None:
    """1 where the first rank is the better one, -1, 0 for a tie; None where neither was ranked."""
    if one is None and other is None:
        return None
    if one is None or other is None:
        return 1 if other is None else -1
    return (one < other) - (one > other)


def comparisons(ranks: Ranks) -> Iterator[Comparison]:
    """Every comparison that a ranking holds, ties among them; `first` has the smaller id, so the order of a pair says
    nothing of who won it."""
    for first, second in combinations(sorted(ranks), 2):
        outcome = compare(ranks[first], ranks[second])
        if outcome is not None:
            yield Comparison(first, second, outcome)


def preferences(ranks: Ranks) -> Iterator[Comparison]:
    """The comparisons without ties: what InstructGPT's reward model learns from (Ouyang et al. 2022, appendix C.2)."""
    return (pair for pair in comparisons(ranks) if pair.outcome)
