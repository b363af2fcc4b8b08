"""Texts end to end as one stream of tokens, cut into rows of like length: what pre-training reads.

Documents stand one behind the other, an end token before the first and behind each. Every token but that first is
learned once an epoch: rows overlap in one token, the last of one being the first that the next one reads. Epochs cut at
other places, since the stream is read as a ring, so that no word always stands at the beginning of a row.
"""

from __future__ import annotations

import random
import tempfile
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, overload

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunesmith.data.words import encode_whole
from tunesmith.errors import InputError
from tunesmith.records import Examples, PlainText, TokenizedExample

TEXTS_AT_ONCE = 256


class Renewed(Sequence[TokenizedExample]):
    """Rows that are others in each epoch, in the same number."""

    @abstractmethod
    def in_epoch(self, epoch: int) -> Renewed:
        """The rows of that epoch, counted from 0."""

    @property
    @abstractmethod
    def lengths(self) -> list[int]:
        """Tokens of each row."""

    @abstractmethod
    def row(self, index: int) -> TokenizedExample:
        """One row; `index` is in range."""

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenizedExample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | Sequence[TokenizedExample]:
        if isinstance(index, slice):
            return [self.row(place) for place in range(*index.indices(len(self)))]
        return self.row(range(len(self))[index])


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids (N,) int32 of texts, in a file without a name; `num_bytes` are those of the texts in UTF-8."""

    ids: Any
    num_bytes: int
    num_texts: int

    def __str__(self) -> str:
        return f"{self.num_texts:,} texts, {self.num_bytes:,} bytes, {len(self.ids) - 1:,} tokens"


def lay_out(examples: Examples, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """The stream of texts.

    Raises:
        InputError: the tokenizer has no token that ends a text.
    """
    end = end_id(tokenizer)
    with tempfile.TemporaryFile() as file:
        np.array([end], dtype=np.int32).tofile(file)
        num_bytes = 0
        for texts in _by_some(examples):
            for ids_T in encode_whole(texts, tokenizer, as_text=True):
                np.append(ids_T, np.int32(end)).tofile(file)
            num_bytes += sum(len(text.encode()) for text in texts)
        file.flush()
        ids_N = np.memmap(file, dtype=np.int32, mode="r")
    return Tokens(ids_N, num_bytes, len(examples.rows))


def _by_some(examples: Examples) -> Iterable[list[str]]:
    for first in range(0, len(examples.rows), TEXTS_AT_ONCE):
        rows = examples.rows[first : first + TEXTS_AT_ONCE]
        yield [row.text for row in rows if isinstance(row, PlainText)]


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id between texts: the one that ends a text, or for BERT's kind the separator.

    Raises:
        InputError: the tokenizer has neither.
    """
    for end in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if end is not None:
            return int(end)
    raise InputError("the tokenizer has neither an eos_token nor a sep_token, so texts would run together. Set one")


class Stream(Renewed):
    """Rows of at most `length` tokens. A row's first token is only read; all others are trained."""

    def __init__(self, tokens: Tokens, length: int, seed: int = 0, epoch: int = 0) -> None:
        self.tokens, self.length = tokens, length
        self._seed = seed
        # The end token stands at both ends, so as a ring the stream has one token less.
        self._around = len(tokens.ids) - 1
        self._step = length - 1
        self._offset = random.Random(f"{seed}/cut/{epoch}").randrange(self._around) if epoch else 0

    def in_epoch(self, epoch: int) -> Stream:
        return Stream(self.tokens, self.length, self._seed, epoch)

    def __len__(self) -> int:
        return (self._around + self._step - 1) // self._step

    @property
    def lengths(self) -> list[int]:
        return [self.length] * (len(self) - 1) + [self._around - self._step * (len(self) - 1) + 1]

    def row(self, index: int) -> TokenizedExample:
        first = index * self._step
        size = min(self.length, self._around - first + 1)
        places = np.arange(self._offset + first, self._offset + first + size) % self._around
        return TokenizedExample(tuple(self.tokens.ids[places].tolist()), _all_but_first(size), None, 0, index)


@cache
def _all_but_first(size: int) -> tuple[bool, ...]:
    return (False, *[True] * (size - 1))


class Overlapping(Renewed):
    """For measuring: rows that begin in the middle of the one before, of which only the second half is judged (of the
    first row all of it), so that nearly every token is judged with half a row before it."""

    def __init__(self, tokens: Tokens, length: int) -> None:
        self._ids, self._length, self._half = tokens.ids, length, max(1, length // 2)

    def in_epoch(self, epoch: int) -> Overlapping:
        return self

    def __len__(self) -> int:
        return 1 + max(0, -(-(len(self._ids) - self._length) // self._half))

    @property
    def lengths(self) -> list[int]:
        return [self._end(index) - self._half * index for index in range(len(self))]

    def _end(self, index: int) -> int:
        return min(len(self._ids), self._half * index + self._length)

    def row(self, index: int) -> TokenizedExample:
        first, end = self._half * index, self._end(index)
        seen = self._end(index - 1) if index else 1  # judged by the rows before, or the first of all
        trained = (False,) * (seen - first) + (True,) * (end - seen)
        return TokenizedExample(tuple(self._ids[first:end].tolist()), trained, None, 0, index)


class Mixed(Renewed):
    """Rows of one stream, and among them those of others, each so many an epoch, read on and on."""

    def __init__(self, main: Renewed, others: Sequence[tuple[Renewed, int]], epoch: int = 0) -> None:
        self._main, self._others, self._epoch = main.in_epoch(epoch), others, epoch

    def in_epoch(self, epoch: int) -> Mixed:
        return Mixed(self._main, self._others, epoch)

    def __len__(self) -> int:
        return len(self._main) + sum(count for _, count in self._others)

    @property
    def lengths(self) -> list[int]:
        return [*self._main.lengths, *(rows.lengths[0] for rows, count in self._others for _ in range(count))]

    def row(self, index: int) -> TokenizedExample:
        place = index - len(self._main)
        if place < 0:
            return self._main[index]
        for rows, count in self._others:
            if place < count:
                turn, at = divmod(self._epoch * count + place, len(rows))
                found = rows.in_epoch(turn)[at]
                return replace(found, row=index)
            place -= count
        raise IndexError(index)


def mix(main: Renewed, others: Sequence[tuple[Renewed, float]]) -> Renewed:
    """`others` with the share of all rows that each shall have.

    Raises:
        InputError: nothing would be left for the main texts.
    """
    if not others:
        return main
    rest = 1 - sum(share for _, share in others)
    if rest <= 0:
        raise InputError(f"mix: the shares are {1 - rest:g} together, which leaves nothing for the data. Lower them")
    return Mixed(main, [(rows, max(1, round(len(main) * share / rest))) for rows, share in others])


class Some(Renewed):
    """So many rows, evenly spread over all."""

    def __init__(self, rows: Renewed, num: int) -> None:
        self._rows, self._num = rows, num

    @staticmethod
    def of(rows: Renewed, num: int | None) -> Renewed:
        """All when there is no number, or there are no more."""
        return rows if num is None or num >= len(rows) else Some(rows, num)

    def in_epoch(self, epoch: int) -> Some:
        return Some(self._rows.in_epoch(epoch), self._num)

    def __len__(self) -> int:
        return self._num

    @property
    def lengths(self) -> list[int]:
        lengths = self._rows.lengths
        return [lengths[self._place(index)] for index in range(self._num)]

    def _place(self, index: int) -> int:
        return index * len(self._rows) // self._num

    def row(self, index: int) -> TokenizedExample:
        return replace(self._rows[self._place(index)], row=index)
