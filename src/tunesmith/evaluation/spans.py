"""The answer to a question, from what a network says of each window of its passage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.data.tokens import TokenRows
from tunesmith.records import UNANSWERABLE, Examples, SpanQuestion
from tunesmith.train.validate import RowOutputs


@dataclass(frozen=True, slots=True)
class Found:
    """The best span of a passage.

    text    as it stands there; empty where the passage is said not to answer
    start   its first character
    margin  how far it is ahead of no answer, in logits: sum of begin and end of the span minus that of no answer
    """

    text: str
    start: int
    margin: float


def find_answers(examples: Examples, rows: TokenRows, outputs: RowOutputs, names: Sequence[str]) -> list[Found]:
    """One for each question that has windows among the rows, in order.

    Over the windows of a question the span with the highest sum of begin and end is taken, and no answer is as likely
    as in the window where it is least so: another window's passage says nothing about the question. Where `names` knows
    of unanswerable questions and no answer is the likelier, that is said (Devlin et al. 2019, section 4.3, with a
    threshold of 0).
    """
    places: dict[int, list[int]] = defaultdict(list)
    for place, example in enumerate(rows.examples):
        places[example].append(place)
    found = []
    for example, windows in places.items():
        row = examples.rows[example]
        assert isinstance(row, SpanQuestion)
        said_W4 = outputs.logits[windows].astype(float)
        best = int(said_W4[:, 0].argmax())
        score, first, last, _ = said_W4[best]
        margin = float(score - said_W4[:, 3].min())
        offsets = np.array(rows[windows[best]].offsets).reshape(-1, 2)
        start, end = int(offsets[int(first), 0]), int(offsets[int(last), 1])
        is_silent = not np.isfinite(score) or (UNANSWERABLE in names and margin < 0)
        found.append(Found("" if is_silent else row.context[start:end], start, margin))
    return found
