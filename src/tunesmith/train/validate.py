"""What a network says about rows, without gradients: losses and outputs, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tunesmith.data.pack import pack, token_batches
from tunesmith.models.load import Network
from tunesmith.models.packed import packed_embeddings
from tunesmith.records import PackedBatch, TokenizedExample
from tunesmith.runtime import autocast
from tunesmith.train.objective import judged_losses


@dataclass(frozen=True, slots=True)
class RowOutputs:
    """Of R rows, in the order given.

    losses      (R,) sum of the losses judged in the row, in nats (squared error for regression)
    num_judged  (R,) places judged: trained tokens, or 1
    logits      (R, C) for classification (C classes) and regression (C = 1); (R, 0) for generation
    """

    losses: np.ndarray
    num_judged: np.ndarray
    logits: np.ndarray

    @property
    def mean_loss(self) -> float:
        """Per judged place, so long answers count as much as they are long."""
        return float(self.losses.sum() / self.num_judged.sum())


@torch.inference_mode()
def validate(network: Network, rows: Sequence[TokenizedExample], dtype: torch.dtype) -> RowOutputs:
    """Losses and outputs of rows that have targets; the model must be in evaluation mode."""
    device = network.model.device
    losses, counts = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
    width = 0 if network.task == "generation" else network.model.config.num_labels
    all_logits = np.zeros((len(rows), width), dtype=np.float32)
    for batch in _batches(rows, network.num_virtual, share=network.is_decoder):
        indices, placed = list(batch.rows), batch.to(device)
        with autocast(device, dtype):
            losses_N, logits = judged_losses(network, placed)
        judged = losses_N.cpu().numpy().astype(np.float64)
        sizes = [rows[index].num_trained if width == 0 else 1 for index in indices]
        for index, part in zip(indices, np.split(judged, np.cumsum(sizes)[:-1]), strict=True):
            losses[index], counts[index] = part.sum(), len(part)
        if logits is not None:
            all_logits[indices] = logits.float().cpu().numpy()
    return RowOutputs(losses, counts, all_logits)


@torch.inference_mode()
def embed(network: Network, rows: Sequence[TokenizedExample], dtype: torch.dtype) -> np.ndarray:
    """(R, D) mean of the last hidden states of each row."""
    device = network.model.device
    found = np.zeros((len(rows), network.model.config.hidden_size), dtype=np.float32)
    for batch in _batches(rows, network.num_virtual):
        with autocast(device, dtype):
            found[list(batch.rows)] = packed_embeddings(network, batch.to(device)).float().cpu().numpy()
    return found


def _batches(rows: Sequence[TokenizedExample], num_virtual: int, share: bool = False) -> Iterator[PackedBatch]:
    """Batches whose `rows` are indices into `rows`."""
    for chosen in token_batches(rows):
        yield pack([replace(rows[index], row=index) for index in chosen], num_virtual, share)
