"""KL(base || tuned) on text that the base has written itself, which needs no data set.

The questions are ours and other ones than those that `kl_to_base` and `ewc` hold on to: what was trained is no test.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from tunesmith.evaluation.predictions import Predictions
from tunesmith.evaluation.probe import read_general
from tunesmith.methods.keeping import own_words
from tunesmith.models.load import Network
from tunesmith.records import TokenizedExample
from tunesmith.runtime import autocast
from tunesmith.train.kept import ask, count_judged, divergence_of

LIKELIEST = 256  # of the tokens that the base could have said; the others count as one
WORDS = 64  # of an answer at most, in tokens


def write_own_words(base: Network, dtype: torch.dtype, likeliest: int = LIKELIEST) -> dict[str, torch.Tensor]:
    """The base's answers to general questions, drawn at temperature 1, and what else it could have said.

    Returns:
        input_ids, trained (T,): R rows end to end; lengths, start (R,), -1 where a row has no start;
        ids, logprobs (N, K): the K likeliest tokens at each of the N trained places, in nats.
    """
    rows = own_words(base, dtype, read_general("prompts").splitlines(), seed=1, length=WORDS)
    said = ask(base, rows, dtype, likeliest)
    return {
        "input_ids": torch.tensor([token for row in rows for token in row.input_ids]),
        "trained": torch.tensor([flag for row in rows for flag in row.trained]),
        "lengths": torch.tensor([len(row.input_ids) for row in rows]),
        "start": torch.tensor([-1 if row.start is None else row.start for row in rows]),
        "ids": torch.cat([ids for ids, _ in said]).cpu().to(torch.int32),
        "logprobs": torch.cat([logprobs for _, logprobs in said]).cpu(),
    }


@torch.inference_mode()
def diverge(network: Network, words: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Predictions:
    """KL(base || network) of each row of `write_own_words`, as losses in nats beside the number of its tokens."""
    rows, device = _rows_of(words), network.model.device
    counts = [count_judged(row, network.num_virtual) for row in rows]
    said = [
        (ids.to(device).long(), logprobs.to(device))
        for ids, logprobs in zip(words["ids"].split(counts), words["logprobs"].split(counts), strict=True)
    ]
    losses = []
    for index in range(len(rows)):
        with autocast(device, dtype):
            losses.append(float(divergence_of(network, rows, said, [index]).sum()))
    return Predictions("generation", [""] * len(rows), [None] * len(rows), np.array(losses), np.array(counts))


def _rows_of(words: Mapping[str, torch.Tensor]) -> list[TokenizedExample]:
    lengths = words["lengths"].tolist()
    parts = zip(
        words["input_ids"].split(lengths), words["trained"].split(lengths), words["start"].tolist(), strict=True
    )
    return [
        TokenizedExample(tuple(ids.tolist()), tuple(trained.tolist()), None, 0, at, start=None if start < 0 else start)
        for at, (ids, trained, start) in enumerate(parts)
    ]
