"""Rows laid end to end: which rows form a batch, and the tensors of that batch."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from tunesmith.records import PackedBatch, TokenizedExample

# Of a pass without gradients: enough to keep the cores busy in matrix products, few enough to stay in little memory.
TOKENS_PER_PASS = 2048


def pack(rows: Sequence[TokenizedExample], num_virtual: int = 0) -> PackedBatch:
    """One packed batch, longest row first (rows of like length then attend together).

    `num_virtual` places are kept free before each row for virtual (prompt) tokens.
    """
    rows = sorted(rows, key=lambda row: -len(row.input_ids))
    ids: list[int] = []
    positions: list[int] = []
    predict_from: list[int] = []
    targets: list[int] = []
    for row in rows:
        start = len(ids)
        ids += [0] * num_virtual + list(row.input_ids)
        positions += range(num_virtual + len(row.input_ids))
        if row.target is not None:
            predict_from.append(start)
            continue
        first = start + num_virtual
        places = [place for place, trained in enumerate(row.trained) if trained and first + place > start]
        predict_from += [first + place - 1 for place in places]
        targets += [row.input_ids[place] for place in places]
    judged = [row.target for row in rows if row.target is not None] or targets
    return PackedBatch(
        input_ids=torch.tensor(ids),
        position_ids=torch.tensor(positions),
        lengths=tuple(num_virtual + len(row.input_ids) for row in rows),
        predict_from=torch.tensor(predict_from, dtype=torch.int64),
        targets=torch.tensor(judged, dtype=torch.float32 if isinstance(judged[0], float) else torch.int64)
        if judged
        else torch.empty(0, dtype=torch.int64),
        rows=tuple(row.row for row in rows),
        num_virtual=num_virtual,
    )


def epoch_batches(num_rows: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Row indices of each batch of an epoch: every row once, in an order given by seed and epoch."""
    order = list(range(num_rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return [order[start : start + batch_size] for start in range(0, num_rows, batch_size)]


def token_batches(rows: Sequence[TokenizedExample], max_tokens: int = TOKENS_PER_PASS) -> list[list[int]]:
    """Row indices in batches of at most `max_tokens` tokens (or one longer row), longest first.

    For passes without gradients, where the order of rows is free.
    """
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].input_ids))
    batches: list[list[int]] = []
    room = 0
    for index in order:
        size = len(rows[index].input_ids)
        if not batches or size > room:
            batches.append([])
            room = max_tokens
        batches[-1].append(index)
        room -= size
    return batches
