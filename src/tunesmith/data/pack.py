"""Rows laid end to end: which rows form a batch, and the tensors of that batch."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from tunesmith.data.share import Family, find_families, is_worth_sharing
from tunesmith.records import PackedAnswers, PackedBatch, PackedSource, Target, TokenizedExample

# Of a pass without gradients: enough to keep the cores busy in matrix products, few enough to stay in little memory.
TOKENS_PER_PASS = 2048


def pack(rows: Sequence[TokenizedExample], num_virtual: int = 0, share: bool = False) -> PackedBatch:
    """One packed batch, longest row first (rows of like length then attend together).

    `num_virtual` places are kept free before each row for virtual (prompt) tokens. With `share`, which only a model
    that never looks ahead can take, a beginning that rows have in common is laid down once. Rows with a source and a
    target are laid on two sheets, and share nothing. The answers of a ranking go on from their prompt, which with
    `share` stands there once.
    """
    if rows[0].start is not None:
        return _pack_two_sided(rows)
    if rows[0].answers:
        return _pack_rankings(rows, num_virtual, share)
    sheet = _Sheet(num_virtual)
    for family in _order(find_families([row.input_ids for row in rows]) if share else [], rows):
        sheet.lay([rows[index] for index in family.rows], family.num_shared)
    return sheet.to_batch()


def _pack_two_sided(rows: Sequence[TokenizedExample]) -> PackedBatch:
    """Longest source first. The decoder reads each target one place late, behind its start, and is judged on all."""
    source, target = _Sheet(0), _Sheet(0)
    for index in _longest_first(range(len(rows)), [len(row.input_ids) - row.num_trained for row in rows]):
        row = rows[index]
        border = len(row.input_ids) - row.num_trained
        source.lay([replace(row, input_ids=row.input_ids[:border], trained=row.trained[:border])], 0)
        target.lay_target(row, row.input_ids[border:])
    read = source.to_batch()
    return replace(target.to_batch(), source=PackedSource(read.input_ids, read.position_ids, read.lengths))


def _pack_rankings(rows: Sequence[TokenizedExample], num_virtual: int, share: bool) -> PackedBatch:
    """Rows as they come, their answers in order."""
    sheet = _Sheet(num_virtual)
    owners: list[int] = []
    num_answers = 0
    for row in rows:
        prompt, borders = row.answers[0], (*row.answers, len(row.input_ids))
        parts = [(*range(prompt), *range(start, end)) for start, end in pairwise(borders)]
        answers = [
            replace(
                row,
                input_ids=tuple(row.input_ids[place] for place in part),
                trained=tuple(row.trained[place] for place in part),
                target=None,
            )
            for part in parts
        ]
        sheet.lay(answers, prompt if share and is_worth_sharing(prompt, len(answers)) else 0)
        for number, answer in enumerate(answers, num_answers):
            owners += [number] * (answer.num_trained - (answer.trained[0] and not num_virtual))
        num_answers += len(answers)
    return sheet.to_rankings(rows, owners)


def _order(families: Sequence[Family], rows: Sequence[TokenizedExample]) -> list[Family]:
    """Rows that share nothing first and by themselves, then each family, longest rows first in each."""
    lengths = [len(row.input_ids) for row in rows]
    sharing = [Family(one.num_shared, _longest_first(one.rows, lengths)) for one in families if one.num_shared]
    taken = {index for family in sharing for index in family.rows}
    alone = _longest_first([index for index in range(len(rows)) if index not in taken], lengths)
    return [*(Family(0, (index,)) for index in alone), *sharing]


def _longest_first(indices: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(indices, key=lambda index: -lengths[index]))


class _Sheet:
    """A batch while rows are laid down."""

    def __init__(self, num_virtual: int) -> None:
        self._num_virtual = num_virtual
        self._ids: list[int] = []
        self._positions: list[int] = []
        self._lengths: list[int] = []
        self._parents: list[int] = []
        self._predict_from: list[int] = []
        self._targets: list[Target] = []
        self._types: list[int] = []
        self._rows: list[int] = []

    def lay(self, rows: Sequence[TokenizedExample], num_shared: int) -> None:
        """Rows whose first `num_shared` tokens are the same."""
        ids = [[0] * self._num_virtual + list(row.input_ids) for row in rows]
        beginning, parent = range(0), -1
        if num_shared:
            parent = len(self._lengths)
            beginning = self._add(ids[0][: self._num_virtual + num_shared], 0, -1)
        for row, row_ids in zip(rows, ids, strict=True):
            own = self._add(row_ids[len(beginning) :], len(beginning), parent)
            places = [*beginning, *own]
            self._judge(row, places)
            if row.second_at:
                self._types += [0] * (len(self._ids) - len(self._types))
                for place in places[self._num_virtual + row.second_at :]:
                    self._types[place] = 1

    def lay_target(self, row: TokenizedExample, target: Sequence[int]) -> None:
        """What a decoder reads and writes: place by place the token before, and the token judged."""
        assert row.start is not None
        self._predict_from += self._add([row.start, *target[:-1]], 0, -1)
        self._targets += target
        self._rows.append(row.row)

    def _add(self, ids: Sequence[int], position: int, parent: int) -> range:
        """A segment; returns the places where it stands."""
        start = len(self._ids)
        self._ids += ids
        self._positions += range(position, position + len(ids))
        self._lengths.append(len(ids))
        self._parents.append(parent)
        return range(start, start + len(ids))

    def _judge(self, row: TokenizedExample, places: Sequence[int]) -> None:
        """`places` says where in the batch each token of the row stands."""
        self._rows.append(row.row)
        own = places[self._num_virtual :]
        if isinstance(row.target, tuple) and row.offsets:
            self._predict_from += own
            self._targets.append((*row.target, len(own)))
            return
        if isinstance(row.target, tuple) and any(row.trained):
            self._predict_from += [place for place, trained in zip(own, row.trained, strict=True) if trained]
            self._targets += row.target
            return
        if row.target is not None:
            self._predict_from.append(places[0])
            self._targets.append(row.target)
            return
        for token, trained in enumerate(row.trained):
            place = self._num_virtual + token
            if trained and place:
                self._predict_from.append(places[place - 1])
                self._targets.append(row.input_ids[token])

    def to_batch(self) -> PackedBatch:
        first = self._targets[0] if self._targets else 0
        is_score = isinstance(first[0] if isinstance(first, tuple) else first, float | bool)
        types = self._types + [0] * (len(self._ids) - len(self._types)) if self._types else None
        return PackedBatch(
            input_ids=torch.tensor(self._ids),
            position_ids=torch.tensor(self._positions),
            lengths=tuple(self._lengths),
            parents=tuple(self._parents),
            predict_from=torch.tensor(self._predict_from, dtype=torch.int64),
            targets=torch.tensor(self._targets, dtype=torch.float32 if is_score else torch.int64),
            rows=tuple(self._rows),
            num_virtual=self._num_virtual,
            token_types=None if types is None else torch.tensor(types),
        )

    def to_rankings(self, rows: Sequence[TokenizedExample], owners: Sequence[int]) -> PackedBatch:
        """`owners` names the answer of each judged token."""
        batch = self.to_batch()
        width = max(len(_numbers(row)) for row in rows)
        answers = PackedAnswers(batch.targets, torch.tensor(owners), tuple(len(row.answers) for row in rows))
        return replace(
            batch,
            targets=torch.tensor([[*_numbers(row), *[0] * (width - len(_numbers(row)))] for row in rows]),
            rows=tuple(row.row for row in rows),
            answers=answers,
        )


def _numbers(row: TokenizedExample) -> tuple[float, ...]:
    return row.target if isinstance(row.target, tuple) else ()


def epoch_batches(num_rows: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Row indices of each batch of an epoch: every row once, in an order given by seed and epoch."""
    order = list(range(num_rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return [order[start : start + batch_size] for start in range(0, num_rows, batch_size)]


def find_longest(rows: Sequence[TokenizedExample], batches: Iterable[list[int]]) -> list[int]:
    """The batch with the most tokens."""
    lengths = lengths_of(rows)
    return max(batches, key=lambda batch: sum(lengths[index] for index in batch))


def lengths_of(rows: Sequence[TokenizedExample]) -> Sequence[int]:
    """Tokens of each row, without making rows that know it."""
    known: Sequence[int] | None = getattr(rows, "lengths", None)
    return [len(row.input_ids) for row in rows] if known is None else known


def token_batches(
    rows: Sequence[TokenizedExample], max_tokens: int = TOKENS_PER_PASS, share: bool = False
) -> list[list[int]]:
    """Row indices in batches of at most `max_tokens` tokens (or one longer row), longest first.

    For passes without gradients, where the order of rows is free. With `share` rows that begin alike come into the same
    batches, and their beginning counts once, as `pack` lays it down.
    """
    lengths = lengths_of(rows)
    pieces = [piece for family in _families_of(rows, share) for piece in _cut(family, lengths, max_tokens)]
    batches: list[list[int]] = []
    room = 0
    for size, indices in sorted(pieces, key=lambda piece: -lengths[piece[1][0]]):
        if not batches or size > room:
            batches.append([])
            room = max_tokens
        batches[-1] += indices
        room -= size
    return batches


def _families_of(rows: Sequence[TokenizedExample], share: bool) -> list[Family]:
    """Answers of a ranking share their own prompt and no other, rows of two sides nothing."""
    if share and rows and not rows[0].answers and rows[0].start is None:
        return find_families([row.input_ids for row in rows])
    return [Family(0, (index,)) for index in range(len(rows))]


def _cut(family: Family, lengths: Sequence[int], max_tokens: int) -> list[tuple[int, list[int]]]:
    """A family in pieces of at most so many tokens: (tokens, rows), longest rows first."""
    pieces: list[tuple[int, list[int]]] = []
    for index in _longest_first(family.rows, lengths):
        own = lengths[index] - family.num_shared
        if pieces and pieces[-1][0] + own <= max_tokens:
            pieces[-1] = (pieces[-1][0] + own, [*pieces[-1][1], index])
        else:
            pieces.append((lengths[index], [index]))
    return pieces
