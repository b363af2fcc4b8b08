"""Rows that say nearly the same: sketches of their letters, then the exact overlap of those that look alike.

A text is the set of its letter 5-grams; two texts are near duplicates when their sets overlap by THRESHOLD
(Jaccard). MinHash (Broder 1997) makes of each set NUM_HASHES numbers, two of which are equal with the
probability of the overlap; numbers are compared in bands (Indyk and Motwani 1998), so that only rows with an
equal band are looked at. With 16 bands of 4, a pair that overlaps by 0.7 is met with probability
1 - (1 - 0.7^4)^16 = 0.988, one by 0.8 with 0.9998.

5-grams that a tenth of all rows have are an instruction, a form, or "the": they make no two rows alike and do
not count.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from zlib import crc32

import numpy as np

from tunesmith.data.quality.findings import own_text
from tunesmith.records import Example

GRAM = 5  # letters
NUM_BANDS = 16
HASHES_PER_BAND = 4
NUM_HASHES = NUM_BANDS * HASHES_PER_BAND
THRESHOLD = 0.7
# Shingles hashed at once: a text of a million letters takes no more memory than one of some thousand.
SHINGLES_AT_ONCE = 4096
# Fewer letters than this are too few to be nearly the same: "yes" and "yes!" are two answers.
FEWEST_LETTERS = 20

SAMPLE = 2_000  # rows in which common 5-grams are counted
COMMON_SHARE = 0.1
COMMON_BITS = 20
COMMON_FROM = 20  # rows; what fewer share is no custom
SKETCHES_AT_ONCE = 8192  # are put into one array
MOST_COMPARED = 100
FEWEST_SHINGLES = 12  # that are not common; what is left of fewer says too little

_ASCII_LETTERS = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}
_NO_LETTERS = re.compile(r"[\W_]+")
_NOTHING = np.empty(0, dtype=np.uint32)
_TO_COMMON = np.uint32(32 - COMMON_BITS)
_RANDOM = np.random.default_rng(1997)
_FACTORS_H = (_RANDOM.integers(0, 2**31, NUM_HASHES, dtype=np.uint32) << np.uint32(1)) | np.uint32(1)
_MASKS_H = _RANDOM.integers(0, 2**32, NUM_HASHES, dtype=np.uint32)
_POWERS = np.array([0x9E3779B97F4A7C15**power % 2**64 for power in range(GRAM)], dtype=np.uint64)
_KEY_FACTORS = _RANDOM.integers(1, 2**63, HASHES_PER_BAND, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def letters_of(text: str) -> str:
    """Letters and digits in lower case with single blanks: what stays when a text is only dressed otherwise."""
    if text.isascii():
        return " ".join(text.translate(_ASCII_LETTERS).split())
    return _NO_LETTERS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def shingles(text: str) -> np.ndarray:
    """32-bit hashes of the letter 5-grams of a text, one for each place; empty when it is too short."""
    letters = letters_of(text)
    if len(letters) < FEWEST_LETTERS:
        return _NOTHING
    codes = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    windows = len(codes) - GRAM + 1
    mixed = np.zeros(windows, dtype=np.uint64)
    for place in range(GRAM):
        mixed += codes[place : place + windows] * _POWERS[place]
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def row_shingles(row: Example) -> np.ndarray:
    """Those of a row's own text. Where more must be equal for two rows to be alike, they are other ones by that."""
    text, besides = own_text(row)
    return shingles(text) ^ np.uint32(crc32(besides.encode("utf-8", "surrogatepass")))


class Sketches:
    """Sketches of rows as a pass over the data meets them.

    `common` (2^COMMON_BITS,) is True for shingles that do not count, by the first bits of their hashes; the few others
    that share these bits do not count either, in whatever row.
    """

    def __init__(self, common: np.ndarray) -> None:
        self.common = common
        self._parts: list[np.ndarray] = []
        self._waiting: list[np.ndarray] = []
        self._rows: list[int] = []

    @classmethod
    def of(cls, rows: Sequence[Example]) -> Sketches:
        """With the common shingles of these rows, none of which is met yet."""
        step = max(1, len(rows) // SAMPLE)
        found = [distinct(row_shingles(rows[index])) for index in range(0, len(rows), step)]
        values, counts = np.unique(np.concatenate(found), return_counts=True) if found else (_NOTHING, _NOTHING)
        common = np.zeros(2**COMMON_BITS, dtype=bool)
        common[values[counts >= max(COMMON_FROM, COMMON_SHARE * len(found))] >> _TO_COMMON] = True
        return cls(common)

    @classmethod
    def filled(cls, rows: Sequence[Example]) -> Sketches:
        """With the sketch of every row."""
        made = cls.of(rows)
        for index, row in enumerate(rows):
            made.add(index, row)
        return made

    def shingles(self, row: Example) -> np.ndarray:
        """Those of a row that count; none when too few do."""
        found = row_shingles(row)
        found = found[~self.common[found >> _TO_COMMON]]
        return found if len(found) >= FEWEST_SHINGLES else _NOTHING

    def add(self, index: int, row: Example) -> None:
        found = self.shingles(row)
        if not len(found):
            return
        self._rows.append(index)
        self._waiting.append(sketch(found))
        if len(self._waiting) == SKETCHES_AT_ONCE:
            self._parts.append(np.stack(self._waiting))
            self._waiting = []

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows,) indices and (rows, NUM_BANDS) keys."""
        parts = [*self._parts, *([np.stack(self._waiting)] if self._waiting else [])]
        keys = np.concatenate(parts) if parts else np.empty((0, NUM_BANDS), dtype=np.uint64)
        return np.array(self._rows, dtype=np.int64), keys


def sketch(found: np.ndarray) -> np.ndarray:
    """(NUM_BANDS,) keys of a set of shingles."""
    least = np.full(NUM_HASHES, 2**32 - 1, dtype=np.uint32)
    for first in range(0, len(found), SHINGLES_AT_ONCE):
        part = found[first : first + SHINGLES_AT_ONCE]
        hashed = (part[None, :] ^ _MASKS_H[:, None]) * _FACTORS_H[:, None]
        np.minimum(least, hashed.min(axis=1), out=least)
    bands = least.astype(np.uint64).reshape(NUM_BANDS, HASHES_PER_BAND)
    return np.asarray((bands * _KEY_FACTORS).sum(axis=1, dtype=np.uint64))


def distinct(found: np.ndarray) -> np.ndarray:
    """The set of some hashes, in order."""
    ordered = np.sort(found)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard index of two sets of hashes: shared over all."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


class Clusters:
    """Which rows belong together (union-find with path halving)."""

    def __init__(self, size: int) -> None:
        self._parents = np.arange(size, dtype=np.int64)

    def find(self, row: int) -> int:
        parents = self._parents
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = int(parents[row])
        return row

    def join(self, one: int, other: int) -> None:
        """The earlier row stands for both."""
        if one != other:
            first, second = sorted((self.find(one), self.find(other)))
            self._parents[second] = first

    def among(self, rows: Sequence[int]) -> Clusters:
        """The same for some of the rows, which are numbered anew."""
        made = Clusters(len(rows))
        first: dict[int, int] = {}
        for number, row in enumerate(rows):
            made.join(first.setdefault(self.find(row), number), number)
        return made

    def groups(self) -> list[list[int]]:
        """Clusters of two or more rows, by their first one."""
        found: dict[int, list[int]] = defaultdict(list)
        for row in np.flatnonzero(self._parents != np.arange(len(self._parents))).tolist():
            found[self.find(row)].append(row)
        return [[first, *rest] for first, rest in sorted(found.items())]


def cluster(rows: Sequence[Example]) -> Clusters:
    """Joins rows that say nearly the same."""
    return find_clusters(rows, Sketches.filled(rows))


def find_clusters(rows: Sequence[Example], sketches: Sketches, threshold: float = THRESHOLD) -> Clusters:
    """Joins rows whose overlap is `threshold` or more."""
    clusters = Clusters(len(rows))
    shingled = lru_cache(maxsize=4096)(lambda index: distinct(sketches.shingles(rows[index])))
    for one, other in candidates(*sketches.table()):
        if clusters.find(one) != clusters.find(other) and overlap(shingled(one), shingled(other)) >= threshold:
            clusters.join(one, other)
    return clusters


def candidates(indices: np.ndarray, keys: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of rows with an equal band: in a run of equal rows, each with the first and with the one before."""
    for band in range(keys.shape[1]):
        order = np.argsort(keys[:, band], kind="stable")
        sorted_keys = keys[order, band]
        equal = np.flatnonzero(sorted_keys[1:] == sorted_keys[:-1]) + 1
        first, before = -1, -2
        for place in equal.tolist():
            if place != before + 1:
                first = place - 1
            before = place
            yield int(indices[order[first]]), int(indices[order[place]])
            if place - 1 != first:
                yield int(indices[order[place - 1]]), int(indices[order[place]])


def find_leaks(
    rows: Sequence[Example], sketches: Sketches, others: Sequence[Example], threshold: float = THRESHOLD
) -> dict[int, int]:
    """Row -> a row of `others` that says nearly the same."""
    indices, keys = sketches.table()
    theirs = Sketches(sketches.common)
    for index, row in enumerate(others):
        theirs.add(index, row)
    their_indices, their_keys = theirs.table()
    found: dict[int, int] = {}
    for band in range(NUM_BANDS):
        order = np.argsort(their_keys[:, band], kind="stable")
        sorted_keys = their_keys[order, band]
        starts = np.searchsorted(sorted_keys, keys[:, band])
        ends = np.searchsorted(sorted_keys, keys[:, band], side="right")
        for place in np.flatnonzero(ends > starts).tolist():
            ours = int(indices[place])
            if ours in found:
                continue
            shingled = distinct(sketches.shingles(rows[ours]))
            # Rows that share a band with more than that share it with everything.
            for near in their_indices[order[starts[place] : ends[place]]][:MOST_COMPARED].tolist():
                if overlap(shingled, distinct(sketches.shingles(others[near]))) >= threshold:
                    found[ours] = near
                    break
    return found
