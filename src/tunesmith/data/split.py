"""Train, validation and test parts: seeded, stratified, and no text in two of them."""

from __future__ import annotations

import random
import unicodedata
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence

from tunesmith.data.formats import fingerprint
from tunesmith.errors import InputError
from tunesmith.records import Conversation, Example, Examples, LabelledText, Split

FRACTIONS = (0.8, 0.1, 0.1)
PARTS = ("train", "validation", "test")
# Regression rows are stratified by ten equally filled bins of their score.
SCORE_BINS = 10


def split(examples: Examples, seed: int, fractions: tuple[float, float, float] = FRACTIONS) -> Split:
    """Divides rows by `fractions`.

    Rows with the same text (letter case, white space and Unicode form aside) stay together.

    Raises:
        InputError: too few rows for three parts.
    """
    parts = _divide(examples, seed, fractions)
    made = [_subset(examples, indices) for indices in parts]
    for name, part in zip(PARTS, made, strict=True):
        if not part.rows:
            wanted = ", ".join(f"{part} {share:.0%}" for part, share in zip(PARTS, fractions, strict=True))
            raise InputError(
                f"{len(examples.rows)} rows are too few: divided into {wanted}, nothing is left for {name}. "
                "Give more rows, or a test file of its own with --eval-data"
            )
    return Split(made[0], made[1], made[2], _describe(examples, made))


def split_given(train: Examples, test: Examples, seed: int, validation_share: float = 0.1) -> Split:
    """A test set that was given apart; training rows whose text stands in it are taken out.

    Raises:
        InputError: the test set has another task, or classes that training does not have.
    """
    if test.task != train.task:
        raise InputError(f"the data is for {train.task}, the test data for {test.task}")
    for row in test.rows:
        if isinstance(row, LabelledText) and isinstance(row.target, str) and row.target not in train.class_names:
            raise InputError(
                f"{row.origin}: label '{row.target}' is not among the training labels: {', '.join(train.class_names)}"
            )
    seen = {normalise(row) for row in test.rows}
    kept = [index for index, row in enumerate(train.rows) if normalise(row) not in seen]
    if not kept:
        raise InputError("every training row stands in the test data too, so nothing is left to train on")
    rest = _subset(train, kept)
    parts = _divide(rest, seed, (1 - validation_share, validation_share, 0.0))
    made = [_subset(rest, indices) for indices in parts[:2]]
    if not made[1].rows or not made[0].rows:
        raise InputError(f"{len(kept)} training rows are too few to set some aside for validation")
    test = Examples(test.task, test.rows, train.class_names, test.recognised, test.fingerprint)
    note = _describe(rest, [*made, test])
    leaked = len(train.rows) - len(kept)
    if leaked:
        note += f"; {leaked:,} training rows stood in the test data, taken out"
    return Split(made[0], made[1], test, note)


def take(examples: Examples, max_samples: int | None, seed: int) -> Examples:
    """At most `max_samples` rows, each class in its share; all when None."""
    if max_samples is None or len(examples.rows) <= max_samples:
        return examples
    return _subset(examples, sorted(_interleave(examples, seed)[:max_samples]))


def normalise(row: Example) -> str:
    """What makes two rows the same question: the text, or all turns before the last answer."""
    text = row.text if isinstance(row, LabelledText) else _before_answer(row)
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _before_answer(row: Conversation) -> str:
    return "\x00".join(f"{turn.role}: {turn.content}" for turn in row.messages[:-1])


def _divide(examples: Examples, seed: int, fractions: tuple[float, float, float]) -> list[list[int]]:
    """Row indices of each part: within a stratum, groups of equal texts go to the part that is
    furthest behind its share; of two alike, to the smaller one so far."""
    parts: list[list[int]] = [[] for _ in fractions]
    for _, groups in sorted(_strata(examples).items()):
        random.Random(f"{seed}/split").shuffle(groups)
        sizes = [0] * len(fractions)
        total = sum(len(group) for group in groups)
        for group in groups:
            need = [
                (share * total - size, -len(part)) for share, size, part in zip(fractions, sizes, parts, strict=True)
            ]
            chosen = max(range(len(fractions)), key=lambda index: need[index])
            parts[chosen] += group
            sizes[chosen] += len(group)
    return [sorted(part) for part in parts]


def _strata(examples: Examples) -> dict[str, list[list[int]]]:
    """Groups of rows with equal text, by the stratum of their first row."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(examples.rows):
        groups[normalise(row)].append(index)
    stratum_of = _stratum_of(examples)
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for group in groups.values():
        strata[stratum_of[group[0]]].append(group)
    return strata


def _stratum_of(examples: Examples) -> list[str]:
    if examples.task == "generation":
        return [""] * len(examples.rows)
    targets = [row.target for row in examples.rows if isinstance(row, LabelledText)]
    if examples.task == "classification":
        return [str(target) for target in targets]
    scores = [float(target) for target in targets]
    ordered = sorted(scores)
    edges = [ordered[len(ordered) * bin_ // SCORE_BINS] for bin_ in range(1, SCORE_BINS)]
    return [str(bisect_right(edges, score)) for score in scores]


def _interleave(examples: Examples, seed: int) -> list[int]:
    """Row indices in an order of which every beginning has each stratum in its share."""
    by_stratum: dict[str, list[int]] = defaultdict(list)
    for index, stratum in enumerate(_stratum_of(examples)):
        by_stratum[stratum].append(index)
    placed: list[tuple[float, str, int]] = []
    for stratum, indices in sorted(by_stratum.items()):
        random.Random(f"{seed}/take").shuffle(indices)
        placed += [((rank + 0.5) / len(indices), stratum, index) for rank, index in enumerate(indices)]
    return [index for _, _, index in sorted(placed)]


def _subset(examples: Examples, indices: Sequence[int]) -> Examples:
    rows = tuple(examples.rows[index] for index in indices)
    return Examples(examples.task, rows, examples.class_names, examples.recognised, fingerprint(rows))


def _describe(examples: Examples, parts: Iterable[Examples]) -> str:
    sizes = ", ".join(f"{name} {len(part.rows):,}" for name, part in zip(PARTS, parts, strict=True))
    counts: dict[str, int] = defaultdict(int)
    for row in examples.rows:
        counts[normalise(row)] += 1
    repeated = sum(count > 1 for count in counts.values())
    return sizes + (f"; {repeated:,} texts stand more than once, each kept in one part" if repeated else "")
