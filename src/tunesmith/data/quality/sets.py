"""What can be wrong between rows: duplicates, leaks, answers that everybody gets, languages, lengths."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.data.quality.findings import (
    SHOWN,
    Collector,
    Finding,
    Shown,
    answers_of,
    excerpt,
    show,
    whole_text,
)
from tunesmith.data.quality.languages import guess_language
from tunesmith.data.quality.similar import Sketches, find_leaks
from tunesmith.data.split import key_of
from tunesmith.data.store import encode
from tunesmith.records import Conversation, Example, LabelledText
from tunesmith.terminal import describe_count

CLUSTER_SHOWN = 3  # rows of each cluster
# An answer to so many different questions, and to so large a share of all, is boilerplate.
COMMON_FROM, COMMON_SHARE = 5, 0.01
# Where so many answers end in a full stop, a long one that does not was cut off.
CLOSED_SHARE = 0.9
CUT_FROM = 200  # characters
LANGUAGE_FROM = 500  # characters tell enough
MAIN_SHARE = 0.8  # of the rows that can be told, in one language, for others to be strangers
ENDS = tuple(".!?\"'”’)]}>。！？…:`|*")


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()


class Keys:
    """Two digests of each row: of all it says, and of the question alone. A million rows take 32 MB."""

    def __init__(self) -> None:
        self._whole, self._question = bytearray(), bytearray()

    def see(self, row: Example) -> None:
        self._whole += _digest(encode(row))
        self._question += key_of(row)

    @property
    def whole(self) -> np.ndarray:
        return np.frombuffer(bytes(self._whole), dtype="V16")

    @property
    def question(self) -> np.ndarray:
        return np.frombuffer(bytes(self._question), dtype="V16")


def count(rows: Sequence[int]) -> str:
    return describe_count(len(rows), "row")


def groups_of(keys: np.ndarray) -> Iterator[list[int]]:
    """Rows with an equal key, two or more, by their first one."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    found = [order[starts[at] : starts[at] + counts[at]] for at in np.flatnonzero(counts > 1)]
    yield from sorted((group.tolist() for group in found), key=lambda group: group[0])


def find_exact(rows: Sequence[Example], keys: Keys) -> Iterator[Finding]:
    groups = list(groups_of(keys.whole))
    if groups:
        extra = array("q", sorted(index for group in groups for index in group[1:]))
        yield Finding(
            "exact duplicates",
            "warning",
            len(extra),
            f"{count(extra)} equal to another one to the letter, in {describe_count(len(groups), 'cluster')}",
            "Keep one of each (--fix), unless a row is to weigh more",
            _show_groups(rows, groups),
            extra,
            extra,
        )


def find_near(
    rows: Sequence[Example], keys: Keys, groups: Sequence[Sequence[int]], contradicting: Container[int]
) -> Iterator[Finding]:
    """Clusters that are more than exact duplicates. Those that contradict are another finding's."""
    whole = keys.whole
    groups = [[index for index in group if index not in contradicting] for group in groups]
    real = [group for group in groups if len(np.unique(whole[list(group)])) > 1]
    if not real:
        return
    extra: list[int] = []
    for group in real:
        first = {whole[index].tobytes(): index for index in reversed(group)}
        extra += sorted(first.values())[1:]  # the others of each are exact duplicates of these
    yield Finding(
        "near duplicates",
        "warning",
        len(extra),
        f"{count(extra)} nearly equal to another one, in {describe_count(len(real), 'cluster')}",
        "Keep one of each (--fix), or see to it that a cluster stays in one part of the split",
        _show_groups(rows, real),
        array("q", sorted(extra)),
        array("q", sorted(extra)),
    )


def _show_groups(rows: Sequence[Example], groups: Sequence[Sequence[int]]) -> tuple[Shown, ...]:
    shown: list[Shown] = []
    for number, group in enumerate(groups, 1):
        for index in group[:CLUSTER_SHOWN]:
            shown.append(show(rows[index], f"cluster {number} of {len(group):,}"))
        if len(shown) >= SHOWN:
            break
    return tuple(shown[:SHOWN])


def find_contradictions(rows: Sequence[Example], keys: Keys) -> Iterator[Finding]:
    """Equal texts with different labels."""
    if not isinstance(rows[0], LabelledText):
        return
    found = []
    for group in groups_of(keys.question):
        targets: Counter[Any] = Counter(_target(rows[index]) for index in group)
        if len(targets) > 1:
            found.append((group, ", ".join(f"{target} ({times:,})" for target, times in targets.most_common(5))))
    if found:
        members = array("q", sorted(index for group, _ in found for index in group))
        shown = [show(rows[group[0]], why) for group, why in found[:SHOWN]]
        yield Finding(
            "contradicting labels",
            "error" if _has_classes(rows) else "warning",
            len(members),
            f"{count(members)} equal to another one that has another label, {describe_count(len(found), 'text')} so",
            "Decide for one label each; no model can learn both",
            tuple(shown),
            members,
        )


def _target(row: Example) -> Any:
    return row.target if isinstance(row, LabelledText) else None


def _has_classes(rows: Sequence[Example]) -> bool:
    return not isinstance(_target(rows[0]), float)


@dataclass(frozen=True, slots=True)
class Test:
    """The rows of the test file."""

    rows: Sequence[Example]
    keys: Keys


def find_leakage(rows: Sequence[Example], keys: Keys, sketches: Sketches, test: Test) -> Iterator[Finding]:
    """Training rows that stand in the test data: to the letter, nearly, or with the same question."""
    whole = np.isin(keys.whole, test.keys.whole)
    question = np.isin(keys.question, test.keys.question) & ~whole
    near = find_leaks(rows, sketches, test.rows)
    nearly = np.array([index in near for index in range(len(rows))], dtype=bool) & ~whole & ~question
    kinds = (
        ("leakage", whole, "found in the test data to the letter"),
        ("leakage: same question", question, "with a question of the test data, and another answer or label"),
        ("leakage: near", nearly, "nearly equal to a row of the test data"),
    )
    for check, mask, words in kinds:
        indices = np.flatnonzero(mask).tolist()
        if indices:
            reasons = [f"beside {test.rows[near[index]].origin}" if index in near else "" for index in indices[:SHOWN]]
            yield Finding(
                check,
                "error",
                len(indices),
                f"{describe_count(len(indices), 'training row')} {words}",
                "Take them out of the training data (--fix): scores would be too good",
                tuple(show(rows[index], why) for index, why in zip(indices[:SHOWN], reasons, strict=True)),
                array("q", indices),
                array("q", indices),
            )


class CommonAnswers:
    """One answer to many questions."""

    def __init__(self) -> None:
        self._counts: Counter[bytes] = Counter()
        self._first: dict[bytes, str] = {}
        self._num_rows = 0

    def see(self, index: int, row: Example) -> None:
        if not isinstance(row, Conversation):
            return
        self._num_rows += 1
        answer = row.messages[-1].content
        key = _digest(" ".join(answer.casefold().split()).encode("utf-8", "surrogatepass"))
        self._counts[key] += 1
        if self._counts[key] == COMMON_FROM:
            self._first[key] = excerpt(answer)

    def findings(self) -> Iterator[Finding]:
        least = max(COMMON_FROM, COMMON_SHARE * self._num_rows)
        common = [(key, self._counts[key]) for key in self._first if self._counts[key] >= least]
        if common:
            common.sort(key=lambda pair: -pair[1])
            total = sum(times for _, times in common)
            shown = tuple(Shown("", self._first[key], f"{times:,} times") for key, times in common[:SHOWN])
            answers = describe_count(len(common), "answer")
            words = f"{answers} given to {int(least):,} questions or more each, {total:,} rows in all"
            mend = "Thin them out, unless the model is to answer like that as often"
            yield Finding("common answers", "warning", total, words, mend, shown)


class CutAnswers:
    """Long answers that end in the middle of a sentence, where nearly all others end with it."""

    def __init__(self) -> None:
        self._open = Collector()
        self._num_answers = self._num_closed = 0

    def see(self, index: int, row: Example) -> None:
        for answer in answers_of(row):
            self._num_answers += 1
            text = answer.rstrip()
            if text.endswith(ENDS):
                self._num_closed += 1
            elif len(text) >= CUT_FROM and text[-1:].isalnum():
                self._open.add(index, row, f"ends with '{text[-30:]}'")

    def findings(self) -> Iterator[Finding]:
        if self._num_answers and self._num_closed >= CLOSED_SHARE * self._num_answers:
            yield from self._open.finding(
                "cut answers",
                "warning",
                "long answers that end in the middle of a sentence, in {rows}; "
                f"{self._num_closed / self._num_answers:.0%} of all end with it",
                "Make them again with a higher limit, or leave them out: the model learns to stop there",
            )


class Languages:
    """Rows in another language than nearly all others; only those that can be told."""

    def __init__(self) -> None:
        self._of: dict[str, Collector] = defaultdict(Collector)

    def see(self, index: int, row: Example) -> None:
        language = guess_language(whole_text(row)[:LANGUAGE_FROM])
        if language:
            self._of[language].add(index, row, language)

    def findings(self) -> Iterator[Finding]:
        sizes = {language: len(rows) for language, rows in self._of.items()}
        main = max(sizes, key=lambda language: sizes[language], default="")
        if not main or sizes[main] < MAIN_SHARE * sum(sizes.values()):
            return
        strangers = Collector()
        for language, rows in sorted(self._of.items(), key=lambda item: -len(item[1])):
            if language != main:
                strangers.rows.extend(rows.rows)
                strangers.shown += rows.shown[: SHOWN - len(strangers.shown)]
        yield from strangers.finding(
            "language",
            "warning",
            f"{{rows}} in another language than {main}, in which {sizes[main]:,} are",
            "Leave them out, unless the model is to know them",
        )


class Lengths:
    """How long rows are, in characters, or in tokens where a tokenizer counts them."""

    def __init__(self) -> None:
        self.counts = array("q")

    def see(self, index: int, row: Example) -> None:
        self.counts.append(len(whole_text(row)))

    def summary(self) -> dict[str, int]:
        found = np.array(self.counts)
        marks = {"shortest": 0, "median": 50, "p95": 95, "p99": 99, "longest": 100}
        return {name: int(np.percentile(found, mark)) for name, mark in marks.items()}

    def histogram(self, bins: int = 24) -> list[tuple[int, int]]:
        """(upper edge, rows) in steps that grow evenly by factor."""
        found = np.maximum(np.array(self.counts), 1)
        edges = np.unique(np.geomspace(1, found.max() + 1, bins).astype(np.int64))
        counts, edges = np.histogram(found, edges) if len(edges) > 1 else (np.array([len(found)]), np.array([0, 1]))
        return [(int(edge), int(size)) for edge, size in zip(edges[1:], counts, strict=True)]
