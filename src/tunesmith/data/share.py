"""Which rows of a batch share a beginning that is worth computing once.

A chat template's system prompt, an instruction before every row, a few-shot block, several answers to one prompt:
in a decoder no token sees what comes after it, so what is said of a common beginning is the same for all rows
that begin with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Attention to a shared beginning takes more and smaller operations; below this many tokens saved it does not pay.
LEAST_SAVED = 64
# Rows of a family: more would save little more, and looking for it would take the square of them.
MOST_ROWS = 64


@dataclass(frozen=True, slots=True)
class Family:
    """Rows, by index, whose first `num_shared` tokens are the same; a row alone shares nothing."""

    num_shared: int
    rows: tuple[int, ...]


def is_worth_sharing(num_shared: int, num_rows: int) -> bool:
    """Whether so many rows with so many first tokens in common are computed sooner as a family."""
    return num_shared * (num_rows - 1) >= LEAST_SAVED


def find_families(rows: Sequence[tuple[int, ...]]) -> list[Family]:
    """Divides rows of ids so that the fewest tokens are left, each family counting `LEAST_SAVED` against it and of at
    most `MOST_ROWS`.

    Rows with a common beginning are neighbours in lexicographic order, so a family is a range of it, and the best
    division is found by dynamic programming over the ends of ranges. Every row keeps a token of its own.
    """
    order = sorted(range(len(rows)), key=rows.__getitem__)
    common = [_count_common(rows[a], rows[b]) for a, b in pairwise(order)]
    saved, start_of = [0] * (len(order) + 1), [0] * (len(order) + 1)
    shared = [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        saved[end], start_of[end] = saved[end - 1], end - 1
        reach = len(rows[order[end - 1]]) - 1
        for start in range(end - 2, max(-1, end - 1 - MOST_ROWS), -1):
            reach = min(reach, common[start], len(rows[order[start]]) - 1)
            gain = saved[start] + reach * (end - 1 - start) - LEAST_SAVED
            if gain > saved[end]:
                saved[end], start_of[end], shared[end] = gain, start, reach
    return _read_back(order, start_of, shared)


def _read_back(order: list[int], start_of: list[int], shared: list[int]) -> list[Family]:
    families, end = [], len(order)
    while end:
        start = start_of[end]
        families.append(Family(shared[end], tuple(order[start:end])))
        end = start
    return families


def _count_common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Length of the common beginning, by halving: comparing slices is much faster than a loop over ids."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
