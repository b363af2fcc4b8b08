"""Train, validation and test parts: seeded, stratified, and no text in two of them."""

from __future__ import annotations

import hashlib
import random
import unicodedata
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from tunesmith.data.quality.findings import classes_of
from tunesmith.data.quality.similar import Clusters, Sketches, cluster, find_clusters, find_leaks
from tunesmith.data.store import Subset
from tunesmith.errors import InputError, nearest
from tunesmith.records import (
    Conversation,
    Example,
    Examples,
    LabelledText,
    PlainText,
    SpanQuestion,
    Split,
    TaggedWords,
)

FRACTIONS = (0.8, 0.1, 0.1)
PARTS = ("train", "validation", "test")
# Regression rows are stratified by ten equally filled bins of their score.
SCORE_BINS = 10


def split(
    examples: Examples,
    seed: int,
    fractions: tuple[float, float, float] = FRACTIONS,
    clusters: Clusters | None = None,
) -> Split:
    """Divides rows by `fractions`: by time where rows have one (the latest are the test), else at random.

    Rows with the same text (letter case, white space and Unicode form aside), with nearly the same one, of one
    group, or with questions to one passage stay together.

    Args:
        clusters: rows that say nearly the same; found here when not given.

    Raises:
        InputError: too few rows for three parts.
    """
    groups = find_groups(examples, cluster(examples.rows) if clusters is None else clusters)
    parts = (
        _divide_by_time(examples, groups, fractions) if examples.times else _divide(examples, groups, seed, fractions)
    )
    made = [_subset(examples, indices) for indices in parts]
    for name, part in zip(PARTS, made, strict=True):
        if not part.rows:
            wanted = ", ".join(f"{part} {share:.0%}" for part, share in zip(PARTS, fractions, strict=True))
            raise InputError(
                f"{len(examples.rows)} rows are too few: divided into {wanted}, nothing is left for {name}. "
                "Give more rows, or a test file of its own with --eval-data"
            )
    return Split(made[0], made[1], made[2], _describe(examples, groups, made))


def split_given(
    train: Examples,
    test: Examples,
    seed: int,
    validation_share: float = 0.1,
    clusters: Clusters | None = None,
) -> Split:
    """A test set that was given apart; training rows whose text stands in it, or nearly so, are taken out.

    Args:
        clusters: training rows that say nearly the same; found here when not given.

    Raises:
        InputError: the test set has another task, or classes that training does not have.
    """
    if test.task != train.task:
        raise InputError(f"the data is for {train.task}, the test data for {test.task}")
    for row in test.rows if train.class_names or train.task == "extractive-qa" else ():
        unknown = next((name for name in classes_of(row) if name not in train.class_names), None)
        if unknown is not None:
            known = ", ".join(train.class_names) or "none"
            raise InputError(f"{row.origin}: label '{unknown}' is not among the training labels: {known}")
    sketches = Sketches.filled(train.rows)
    clusters = find_clusters(train.rows, sketches) if clusters is None else clusters
    seen = {key_of(row) for row in test.rows}
    near = find_leaks(train.rows, sketches, test.rows)
    kept = [index for index, row in enumerate(train.rows) if key_of(row) not in seen and index not in near]
    if not kept:
        raise InputError("every training row stands in the test data too, so nothing is left to train on")
    rest = _subset(train, kept)
    groups = find_groups(rest, clusters.among(kept))
    parts = _divide(rest, groups, seed, (1 - validation_share, validation_share, 0.0))
    made = [_subset(rest, indices) for indices in parts[:2]]
    if not made[1].rows or not made[0].rows:
        raise InputError(f"{len(kept)} training rows are too few to set some aside for validation")
    test = Examples(test.task, test.rows, train.class_names, test.recognised, test.fingerprint)
    note = _describe(rest, groups, [*made, test])
    leaked = len(train.rows) - len(kept)
    if leaked:
        note += f"; {leaked:,} training rows stood in the test data or nearly so, taken out"
    return Split(made[0], made[1], test, note)


def take(examples: Examples, max_samples: int | None, seed: int) -> Examples:
    """At most `max_samples` rows, each class in its share; all when None."""
    if max_samples is None or len(examples.rows) <= max_samples:
        return examples
    return _subset(examples, sorted(_interleave(examples, seed)[:max_samples]))


def inputs_of(row: Example) -> Literal["text", "pair", "words", "passage", "turns"]:
    """What a model reads of such a row: what it must be given later, too."""
    if isinstance(row, SpanQuestion):
        return "passage"
    if isinstance(row, TaggedWords):
        return "words"
    if isinstance(row, LabelledText):
        return "pair" if row.pair else "text"
    return "text" if isinstance(row, PlainText) else "turns"


def places_of(parts: Split) -> dict[str, dict[str, list[int]]]:
    """Which rows each part has: lines by file, in order."""
    found: dict[str, dict[str, list[int]]] = {}
    for name in PARTS:
        lines: dict[str, list[int]] = {}
        for row in getattr(parts, name).rows:
            lines.setdefault(row.origin.file, []).append(row.origin.line)
        found[name] = lines
    return found


def weigh(examples: Examples, weights: Mapping[str, float], seed: int) -> Examples:
    """Rows of each named file so many times: all of them for each whole number, a random share for the rest.

    Raises:
        InputError: a file that no row is of.
    """
    files = list(dict.fromkeys(row.origin.file for row in examples.rows))
    unknown = next((name for name in weights if name not in files), None)
    if unknown is not None:
        raise InputError(f"weights: no training row is of '{unknown}': {nearest(unknown, files)}")
    draw = random.Random(f"{seed}/weigh")
    indices: list[int] = []
    for index, row in enumerate(examples.rows):
        weight = weights.get(row.origin.file, 1.0)
        indices += [index] * (int(weight) + (draw.random() < weight % 1))
    if not indices:
        raise InputError("weights: no training row is left. Give larger ones")
    return _subset(examples, indices)


def normalise(row: Example) -> str:
    """What makes two rows the same question: the text, or all turns before the last answer."""
    text = _question_of(row)
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split())


def _question_of(row: Example) -> str:
    if isinstance(row, LabelledText):
        return row.whole
    if isinstance(row, PlainText):
        return row.text
    if isinstance(row, TaggedWords):
        return " ".join(row.words)
    if isinstance(row, SpanQuestion):
        return f"{row.question}\x00{row.context}"
    turns = row.messages[:-1] if isinstance(row, Conversation) else row.prompt
    return "\x00".join(f"{turn.role}: {turn.content}" for turn in turns)


def key_of(row: Example) -> bytes:
    """Sixteen bytes that rows with equal `normalise` share: a million of them fit into memory."""
    return hashlib.blake2b(normalise(row).encode(), digest_size=16).digest()


def find_groups(examples: Examples, clusters: Clusters) -> list[list[int]]:
    """Rows that must stay in one part, by their first one; a row alone is a group too."""
    first: dict[object, int] = {}
    for index, row in enumerate(examples.rows):
        clusters.join(first.setdefault(key_of(row), index), index)
        if isinstance(row, SpanQuestion):  # who has read a passage in training knows it in the test
            clusters.join(first.setdefault(row.context, index), index)
    for index, group in enumerate(examples.groups):
        clusters.join(first.setdefault(group, index), index)
    found: dict[int, list[int]] = defaultdict(list)
    for index in range(len(examples.rows)):
        found[clusters.find(index)].append(index)
    return list(found.values())


def _divide(
    examples: Examples, groups: Sequence[list[int]], seed: int, fractions: tuple[float, float, float]
) -> list[list[int]]:
    """Row indices of each part: within a stratum, groups go to the part that is furthest behind its share; of two
    alike, to the smaller one so far."""
    parts: list[list[int]] = [[] for _ in fractions]
    for _, members in sorted(_strata(examples, groups).items()):
        random.Random(f"{seed}/split").shuffle(members)
        sizes = [0] * len(fractions)
        total = sum(len(group) for group in members)
        for group in members:
            need = [
                (share * total - size, -len(part)) for share, size, part in zip(fractions, sizes, parts, strict=True)
            ]
            chosen = max(range(len(fractions)), key=lambda index: need[index])
            parts[chosen] += group
            sizes[chosen] += len(group)
    return [sorted(part) for part in parts]


def _divide_by_time(
    examples: Examples, groups: Sequence[list[int]], fractions: tuple[float, float, float]
) -> list[list[int]]:
    """The earliest rows to the first part, the latest to the last; a group stands where its latest row does."""
    times = _read_times(examples)
    parts: list[list[int]] = [[] for _ in fractions]
    bounds = [sum(fractions[: at + 1]) * len(examples.rows) for at in range(len(fractions))]
    done = 0
    for group in sorted(groups, key=lambda group: max(times[index] for index in group)):
        at = next((at for at, bound in enumerate(bounds) if done + len(group) / 2 <= bound), len(bounds) - 1)
        parts[at] += group
        done += len(group)
    return [sorted(part) for part in parts]


def _read_times(examples: Examples) -> list[float]:
    """Numbers as they are, dates as ISO 8601 has them in seconds."""
    found = []
    for index, text in enumerate(examples.times):
        try:
            found.append(float(text))
        except ValueError:
            try:
                found.append(datetime.fromisoformat(text).timestamp())
            except ValueError as error:
                raise InputError(
                    f"{examples.rows[index].origin}: the time '{text}' is neither a number nor a date like "
                    "2026-01-31 or 2026-01-31T23:59:00. Mend it, or split without a time"
                ) from error
    return found


def _strata(examples: Examples, groups: Sequence[list[int]]) -> dict[str, list[list[int]]]:
    """Groups by the stratum of their first row."""
    stratum_of = _stratum_of(examples)
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for group in groups:
        strata[stratum_of[group[0]]].append(group)
    return strata


def _stratum_of(examples: Examples) -> list[str]:
    if examples.task not in ("classification", "regression"):
        return [""] * len(examples.rows)
    targets: list[Any] = [row.target for row in examples.rows if isinstance(row, LabelledText)]
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
    rows = Subset(examples.rows, indices)
    return Examples(examples.task, rows, examples.class_names, examples.recognised, rows.fingerprint)


def _describe(examples: Examples, groups: Sequence[list[int]], parts: Iterable[Examples]) -> str:
    sizes = ", ".join(f"{name} {len(part.rows):,}" for name, part in zip(PARTS, parts, strict=True))
    by = "; by time, the latest rows are the test" if examples.times else ""
    together = sum(len(group) > 1 for group in groups)
    if not together:
        return sizes + by
    what = "texts stand more than once or nearly so, each"
    if isinstance(examples.rows[0], SpanQuestion):
        what = "passages with several questions, each"
    if examples.groups:
        what = "groups"
    return f"{sizes}{by}; {together:,} {what} kept in one part"
