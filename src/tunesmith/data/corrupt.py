"""Rows that were damaged on purpose, and are to be mended: how encoders and encoder-decoders learn from texts.

What is damaged follows from the seed, the epoch and the row's number alone, so each epoch damages other places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tunesmith.data.stream import Renewed
from tunesmith.records import TokenizedExample

# Of the places to be found again: so many show the mask, so many a token drawn at random, the rest what was there
# (Devlin et al. 2019, arXiv 1810.04805, section 3.1).
SHOWN_MASKED, SHOWN_OTHER = 0.8, 0.1
# Mean length of what one mask of an encoder-decoder stands for, drawn from a Poisson distribution: text infilling
# (Lewis et al. 2019, arXiv 1910.13461, section 2.2), without its masks that stand for nothing.
SPAN = 3.0


@dataclass(frozen=True, slots=True)
class Marks:
    """Ids that a tokenizer has for the purpose. `first` and `last` stand around what an encoder reads, `special` are
    ids that stand for no text, `size` is that of the vocabulary. `start` is what a decoder behind an encoder begins
    with."""

    mask: int
    first: int | None
    last: int
    special: frozenset[int]
    size: int
    start: int | None = None


class Damaged(Renewed):
    """What both kinds have in common: rows of a stream, and a generator of random numbers for each."""

    def __init__(self, rows: Renewed, share: float, marks: Marks, seed: int, epoch: int = 0) -> None:
        self._rows, self._share, self._marks = rows.in_epoch(epoch), share, marks
        self._seed, self._epoch = seed, epoch

    def in_epoch(self, epoch: int) -> Damaged:
        return type(self)(self._rows, self._share, self._marks, self._seed, epoch)

    def __len__(self) -> int:
        return len(self._rows)

    def _draw(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, self._epoch, index))


class Masked(Damaged):
    """For encoders: a share of the tokens is to be found again from all others."""

    @property
    def lengths(self) -> list[int]:
        return [length + self._num_marks for length in self._rows.lengths]

    @property
    def _num_marks(self) -> int:
        return 1 + (self._marks.first is not None)

    def row(self, index: int) -> TokenizedExample:
        marks, draw = self._marks, self._draw(index)
        before = [] if marks.first is None else [marks.first]
        true_T = np.array([*before, *self._rows[index].input_ids, marks.last])
        is_text_T = ~np.isin(true_T, list(marks.special))
        is_judged_T = (draw.random(len(true_T)) < self._share) & is_text_T
        if not is_judged_T.any():  # a row that is very short
            is_judged_T[draw.integers(len(true_T))] = True
        kind_T = draw.random(len(true_T))
        shown_T = np.where(is_judged_T & (kind_T < SHOWN_MASKED), marks.mask, true_T)
        is_other_T = is_judged_T & (kind_T >= SHOWN_MASKED) & (kind_T < SHOWN_MASKED + SHOWN_OTHER)
        shown_T = np.where(is_other_T, draw.integers(marks.size, size=len(true_T)), shown_T)
        target = tuple(true_T[is_judged_T].tolist())
        return TokenizedExample(tuple(shown_T.tolist()), tuple(is_judged_T.tolist()), target, 0, index)


class Noised(Damaged):
    """For encoder-decoders: spans are left out, each behind one mask, and the whole row is to be written."""

    @property
    def lengths(self) -> list[int]:
        """At most: how much is left out is drawn."""
        return [2 * (length + self._num_marks) for length in self._rows.lengths]

    @property
    def _num_marks(self) -> int:
        return 1 + (self._marks.first is not None)

    def row(self, index: int) -> TokenizedExample:
        marks = self._marks
        before = [] if marks.first is None else [marks.first]
        true = list(self._rows[index].input_ids)
        source = [*before, *self._leave_out(true, self._draw(index)), marks.last]
        # The decoder begins with its start; where that is what a text begins with, it is not written once more.
        target = [*([] if marks.first == marks.start else before), *true, marks.last]
        trained = (False,) * len(source) + (True,) * len(target)
        return TokenizedExample((*source, *target), trained, None, 0, index, start=marks.start)

    def _leave_out(self, true: list[int], draw: np.random.Generator) -> list[int]:
        """Spans that do not touch, until the share is left out or no more fit."""
        is_out_T = np.zeros(len(true) + 1, dtype=bool)
        wanted = max(1, round(self._share * len(true)))
        for _ in range(4 * wanted):
            left = wanted - int(is_out_T.sum())
            size = min(left, max(1, int(draw.poisson(SPAN))))
            if left <= 0 or size >= len(true):
                break
            start = int(draw.integers(len(true) - size + 1))
            if not is_out_T[max(0, start - 1) : start + size + 1].any():
                is_out_T[start : start + size] = True
        begins_T = is_out_T & ~np.concatenate([[False], is_out_T[:-1]])
        pairs = zip(true, is_out_T, begins_T, strict=False)
        return [self._marks.mask if begins else token for token, out, begins in pairs if begins or not out]
