"""What a check says: how many rows, which ones, and how to mend them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tunesmith.data.quality.secrets import masked
from tunesmith.records import (
    UNANSWERABLE,
    Conversation,
    Example,
    Judgement,
    LabelledText,
    PlainText,
    Ranking,
    SpanQuestion,
    TaggedWords,
)
from tunesmith.terminal import describe_count

SHOWN = 20
EXCERPT = 100  # characters

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Shown:
    """One row of a finding: its place, what it says, and what is the matter with it where rows differ."""

    origin: str
    excerpt: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    severity   error: training on this, or believing its scores, would be wrong; warning: look at it; note: know it
    rows       indices into the training rows, in order
    removable  those of them that `--fix` leaves out: none when that is for a person to decide
    shown      the first SHOWN rows, a cluster in one piece
    """

    check: str
    severity: Severity
    count: int
    summary: str
    mend: str
    shown: tuple[Shown, ...] = ()
    rows: Sequence[int] = field(default_factory=lambda: array("q"))
    removable: Sequence[int] = field(default_factory=lambda: array("q"))


@dataclass
class Collector:
    """Rows of one finding as a pass over the data meets them."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    shown: list[Shown] = field(default_factory=list)

    def add(self, index: int, row: Example, why: str = "") -> None:
        self.rows.append(index)
        if len(self.shown) < SHOWN:
            self.shown.append(show(row, why))

    def __len__(self) -> int:
        return len(self.rows)

    def finding(self, check: str, severity: Severity, summary: str, mend: str) -> Iterable[Finding]:
        """None when no row was met; `{rows}` in the summary counts them."""
        if self.rows:
            words = summary.format(rows=describe_count(len(self.rows), "row"))
            yield Finding(check, severity, len(self.rows), words, mend, tuple(self.shown), self.rows)


def show(row: Example, why: str = "") -> Shown:
    """Keys and personal data are masked."""
    return Shown(str(row.origin), excerpt(masked(whole_text(row)[: 40 * EXCERPT])), why)


def excerpt(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text[: 4 * EXCERPT].split())
    return line if len(line) <= EXCERPT else line[: EXCERPT - 3] + "..."


def whole_text(row: Example) -> str:
    """Everything that a row says, but not its label."""
    if isinstance(row, LabelledText):
        return row.whole
    if isinstance(row, PlainText):
        return row.text
    if isinstance(row, TaggedWords):
        return " ".join(row.words)
    if isinstance(row, SpanQuestion):
        return f"{row.question}\n{row.context}"
    return "\n".join([*(turn.content for turn in turns_of(row)), *answers_of(row)])


def own_text(row: Example) -> tuple[str, str]:
    """What makes two rows alike, and what must be equal besides: of questions to one passage each has its own words."""
    if isinstance(row, SpanQuestion):
        return "\n".join([row.question, *row.answers]), row.context
    return whole_text(row), ""


def classes_of(row: Example) -> tuple[str, ...]:
    """The names of the classes or tags that a row has; none for scores and conversations."""
    if isinstance(row, TaggedWords):
        return row.tags
    if isinstance(row, SpanQuestion):
        return () if row.answers else (UNANSWERABLE,)
    if not isinstance(row, LabelledText) or isinstance(row.target, float):
        return ()
    return row.target if isinstance(row.target, tuple) else (row.target,)


def turns_of(row: Example) -> Sequence:  # type: ignore[type-arg]
    """What stands before the last answer."""
    if isinstance(row, Conversation):
        return row.messages[:-1]
    return row.prompt if isinstance(row, Ranking | Judgement) else ()


def answers_of(row: Example) -> tuple[str, ...]:
    """What is to be learned from a row of turns: the last answer, or all ranked ones; nothing for labelled texts."""
    if isinstance(row, Conversation):
        return (row.messages[-1].content,)
    if isinstance(row, Ranking):
        return row.answers
    return (row.answer,) if isinstance(row, Judgement) else ()
