"""What a training holds on to of the model it began with: what that said of some rows, and which weights that hangs on.

Shape letters: N judged places, V vocabulary, K of the likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from tunesmith.data.pack import pack, token_batches
from tunesmith.models.load import Network
from tunesmith.models.packed import packed_logits
from tunesmith.records import TokenizedExample
from tunesmith.runtime import autocast
from tunesmith.train.losses import likeliest_divergence_N

# They hold nearly all of the probability; the others count as one.
LIKELIEST = 64
# Of each step: a quarter of what a usual batch costs.
ROWS_A_STEP = 4


@dataclass(frozen=True, slots=True)
class Kept:
    """Rows whose words are to stay as they are.

    kl      weight of KL(base || tuned) at the rows' trained places
    said    of each row, ids (N, K) of the likeliest tokens there and their log-probabilities (N, K) in nats
    ewc     strength of the pull of weights to where they began, by `fisher`: by name, a mean of 1 over all of them
    """

    rows: Sequence[TokenizedExample] = ()
    kl: float = 0.0
    said: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
    ewc: float = 0.0
    fisher: Mapping[str, torch.Tensor] = field(default_factory=dict)


NOTHING_KEPT = Kept()


@torch.inference_mode()
def ask(
    network: Network, rows: Sequence[TokenizedExample], dtype: torch.dtype, likeliest: int = LIKELIEST
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What a network that writes says at the trained places of each row, as `Kept.said` has it.

    `likeliest` beyond the vocabulary means all of it.
    """
    network.model.eval()
    found: list[tuple[torch.Tensor, torch.Tensor]] = [(torch.empty(0), torch.empty(0))] * len(rows)
    for chosen in token_batches(rows):
        batch = pack([replace(rows[index], row=index) for index in chosen], network.num_virtual)
        with autocast(network.model.device, dtype):
            logits_NV = packed_logits(network, batch.to(network.model.device)).float()
        logprobs_NK, ids_NK = logits_NV.log_softmax(-1).topk(min(likeliest, logits_NV.shape[-1]))
        counts = [count_judged(rows[index], network.num_virtual) for index in batch.rows]
        for index, ids, logprobs in zip(batch.rows, ids_NK.split(counts), logprobs_NK.split(counts), strict=True):
            found[index] = (ids.clone(), logprobs.clone())
    return found


def count_judged(row: TokenizedExample, num_virtual: int = 0) -> int:
    """Trained places with something before them to be said from."""
    return row.num_trained - (row.start is None and row.trained[0] and not num_virtual)


def divergence(network: Network, kept: Kept, step: int) -> torch.Tensor:
    """KL(base || tuned) in nats (N,) at the trained places of the rows that are `step`'s turn."""
    indices = dict.fromkeys((step * ROWS_A_STEP + offset) % len(kept.rows) for offset in range(ROWS_A_STEP))
    return divergence_of(network, kept.rows, kept.said, list(indices))


def divergence_of(
    network: Network,
    rows: Sequence[TokenizedExample],
    said: Sequence[tuple[torch.Tensor, torch.Tensor]],
    indices: Sequence[int],
) -> torch.Tensor:
    """The same of the rows at `indices`, in the order in which `pack` lays them."""
    batch = pack([replace(rows[index], row=index) for index in indices], network.num_virtual)
    batch = batch.to(network.model.device)
    ids_NK = torch.cat([said[index][0] for index in batch.rows])
    logprobs_NK = torch.cat([said[index][1] for index in batch.rows])
    return likeliest_divergence_N(packed_logits(network, batch), ids_NK, logprobs_NK)
