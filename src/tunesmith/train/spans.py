"""The likeliest answer in a window of a passage.

Shape letters: T tokens of a window, R windows, N tokens of all windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.records import TokenizedExample


def best_spans(logits_N2: np.ndarray, rows: Sequence[TokenizedExample], longest: int) -> np.ndarray:
    """(R, 4) what `best_span` says of each window. `logits_N2` has the tokens of the first window first."""
    ends = np.cumsum([len(row.input_ids) for row in rows])
    parts = np.split(logits_N2, ends[:-1])
    return np.array([best_span(part, row, longest) for part, row in zip(parts, rows, strict=True)])


def best_span(logits_T2: np.ndarray, row: TokenizedExample, longest: int) -> tuple[float, int, int, float]:
    """The highest sum of begin and end over spans of the passage of at most `longest` tokens, the span's first and last
    place, and the same sum of the first token, which stands for no answer (Devlin et al. 2019, section 4.3).

    A window in which no token has a character of the passage has the sum -inf.
    """
    offsets_T2 = np.array(row.offsets).reshape(-1, 2)
    outside_T = offsets_T2[:, 0] >= offsets_T2[:, 1]
    begin_T, end_T = (np.where(outside_T, -np.inf, logits_T2[:, which]) for which in (0, 1))
    best = (-np.inf, 0, 0)
    for more in range(min(longest, len(begin_T))):
        sums = begin_T[: len(begin_T) - more] + end_T[more:]
        first = int(sums.argmax())
        best = max(best, (float(sums[first]), first, first + more), key=lambda span: span[0])
    return (*best, float(logits_T2[0].sum()))
