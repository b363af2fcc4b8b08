"""All checks over one data set, in one pass and what the pass makes possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tunesmith.data.quality.findings import SHOWN, Collector, Finding, Shown, classes_of, whole_text
from tunesmith.data.quality.labels import find_class_faults, find_label_errors
from tunesmith.data.quality.sets import (
    CommonAnswers,
    CutAnswers,
    Keys,
    Languages,
    Lengths,
    Test,
    find_contradictions,
    find_exact,
    find_leakage,
    find_near,
)
from tunesmith.data.quality.similar import Clusters, Sketches, find_clusters
from tunesmith.data.quality.texts import ROW_TESTS
from tunesmith.records import Example, Examples
from tunesmith.terminal import Bar, describe_count

SEVERITIES = ("error", "warning", "note")
BAR_FROM = 20_000
BRIEF = 6  # findings in one line


class Pass(Protocol):
    """A check that meets every row once and says at the end what it found. PASSES is the table."""

    def see(self, index: int, row: Example) -> None: ...

    def findings(self) -> Iterator[Finding]: ...


class RowTests:
    """Every test of ROW_TESTS on every row."""

    def __init__(self) -> None:
        self._found = [Collector() for _ in ROW_TESTS]

    def see(self, index: int, row: Example) -> None:
        text = whole_text(row)
        for test, found in zip(ROW_TESTS, self._found, strict=True):
            why = test.why(row, text)
            if why is not None:
                found.add(index, row, why)

    def findings(self) -> Iterator[Finding]:
        for test, found in zip(ROW_TESTS, self._found, strict=True):
            yield from found.finding(test.check, test.severity, test.summary, test.mend)


PASSES: tuple[type[Pass], ...] = (RowTests, CommonAnswers, CutAnswers, Languages)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, worst first, and the data set's card."""

    card: Mapping[str, Any]
    findings: tuple[Finding, ...]
    lengths: tuple[tuple[int, int], ...]
    clusters: Clusters

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def removable(self) -> dict[int, str]:
        """Row -> the first check for which `--fix` leaves it out."""
        found: dict[int, str] = {}
        for finding in self.findings:
            for index in finding.removable:
                found.setdefault(index, finding.check)
        return found

    def brief(self, data: str) -> str:
        """One line: how many rows each error and warning is about."""
        found = [f"{one.check} ({one.count:,})" for one in self.findings if one.severity != "note"]
        if not found:
            return "nothing was found"
        more = f", and {len(found) - BRIEF} more" if len(found) > BRIEF else ""
        return f"{', '.join(found[:BRIEF])}{more}. See: tunesmith data check {data}"

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it; rows are counted from 0 in the order of the data."""
        return {
            "card": dict(self.card),
            "findings": [
                {
                    "check": finding.check,
                    "severity": finding.severity,
                    "count": finding.count,
                    "summary": finding.summary,
                    "mend": finding.mend,
                    "rows": list(finding.rows),
                    "shown": [{"origin": row.origin, "excerpt": row.excerpt, "why": row.why} for row in finding.shown],
                }
                for finding in self.findings
            ],
        }


def check(
    examples: Examples,
    test: Examples | None = None,
    with_labels: bool = True,
    more: Iterable[Finding] = (),
    quiet: bool = True,
) -> Report:
    """Looks at every row.

    Args:
        test: rows that will be tested on; then leakage is looked for.
        with_labels: also look for labels that are probably wrong, which trains classifiers.
        more: findings from elsewhere, a tokenizer's for example.
    """
    keys, sketches, lengths = Keys(), Sketches.of(examples.rows), Lengths()
    passes = [kind() for kind in PASSES]
    counts: Counter[str] = Counter()
    with Bar("check", len(examples.rows), quiet or len(examples.rows) < BAR_FROM) as bar:
        for index, row in enumerate(examples.rows):
            keys.see(row)
            sketches.add(index, row)
            lengths.see(index, row)
            counts.update(classes_of(row))
            for one in passes:
                one.see(index, row)
            if index % 100 == 99:
                bar.advance(steps=100)
    clusters = find_clusters(examples.rows, sketches)
    found = [*find_contradictions(examples.rows, keys)]
    contradicting = {index for finding in found for index in finding.rows}
    found += find_exact(examples.rows, keys)
    found += find_near(examples.rows, keys, clusters.groups(), contradicting)
    for one in passes:
        found += one.findings()
    if counts:
        found += find_class_faults(counts, "word" if examples.task == "token-classification" else "row")
    if with_labels and examples.task == "classification":
        found += find_label_errors(examples.rows, _groups(clusters, keys))
    if test is not None:
        found += _find_leakage(examples, test, keys, sketches)
    found += more
    found.sort(key=lambda finding: (SEVERITIES.index(finding.severity), -finding.count))
    return Report(_card(examples, test, lengths, counts), tuple(found), tuple(lengths.histogram()), clusters)


def _find_leakage(examples: Examples, test: Examples, keys: Keys, sketches: Sketches) -> Iterator[Finding]:
    theirs = Keys()
    for row in test.rows:
        theirs.see(row)
    yield from find_leakage(examples.rows, keys, sketches, Test(test.rows, theirs))
    unseen = Counter(name for row in test.rows for name in classes_of(row) if name not in examples.class_names)
    if unseen:
        shown = tuple(Shown("", f"'{name}'", describe_count(count, "row")) for name, count in unseen.most_common(SHOWN))
        words = f"{describe_count(len(unseen), 'class')} of the test data without a training row"
        yield Finding("unseen classes", "error", sum(unseen.values()), words, "Add rows, or mend the names", shown)


def _groups(clusters: Clusters, keys: Keys) -> np.ndarray:
    """(rows,) a number for each row, equal for rows that say the same or nearly the same."""
    _, inverse = np.unique(keys.question, return_inverse=True)
    first: dict[int, int] = {}
    for row, same in enumerate(inverse.tolist()):
        clusters.join(first.setdefault(same, row), row)
    return np.array([clusters.find(row) for row in range(len(inverse))])


def _card(examples: Examples, test: Examples | None, lengths: Lengths, counts: Counter[str]) -> dict[str, Any]:
    card: dict[str, Any] = {
        "recognised": examples.recognised,
        "task": examples.task,
        "rows": len(examples.rows),
        "fingerprint": examples.fingerprint,
        "characters": lengths.summary(),
    }
    if counts:
        card["classes"] = dict(counts.most_common())
    if test is not None:
        card["test"] = {"rows": len(test.rows), "fingerprint": test.fingerprint}
    return card


def find_long(lengths: list[int], examples: Examples, limit: int, given: str) -> Iterator[Finding]:
    """Rows that a model cannot take whole. `lengths` are tokens by row."""
    long = Collector()
    for index, length in enumerate(lengths):
        if length > limit:
            long.add(index, examples.rows[index], f"{length:,} tokens")
    is_written = examples.task == "generation"
    yield from long.finding(
        "too long",
        "error" if is_written else "warning",
        f"{{rows}} longer than the {limit:,} tokens that '{given}' takes",
        "Shorten them, or train with --too-long cut or skip" if is_written else "Their ends will be cut off",
    )
