"""What a network says about rows, without gradients: losses and outputs, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tunesmith.data.pack import pack, token_batches
from tunesmith.models.heads import TASK_HEADS
from tunesmith.models.load import Network
from tunesmith.models.packed import packed_embeddings
from tunesmith.records import JUDGED, PackedBatch, Task, TokenizedExample
from tunesmith.runtime import autocast
from tunesmith.train.objective import judged_losses


@dataclass(frozen=True, slots=True)
class RowOutputs:
    """Of R rows, in the order given.

    losses      (R,) sum of the losses judged in the row, in nats (squared error for regression)
    num_judged  (R,) places judged: trained tokens or words, or 1
    logits      (R, C) for tasks that judge rows: C classes, 1 for a score. Token classification: (sum(num_judged), C),
                words of the first row first. (R, 0) for generation
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
    judged_are = JUDGED[network.task]
    places = [1 if judged_are == "rows" else row.num_trained for row in rows]
    starts = np.arange(len(rows)) if judged_are != "words" else np.cumsum(places) - places
    width = network.model.config.num_labels if network.task in TASK_HEADS else 0
    all_logits = np.zeros((sum(places) if judged_are == "words" else len(rows), width), dtype=np.float32)
    for batch in _batches(rows, network.num_virtual, share=network.is_decoder):
        indices, placed = list(batch.rows), batch.to(device)
        with autocast(device, dtype):
            losses_N, logits = judged_losses(network, placed)
        judged = losses_N.cpu().numpy().astype(np.float64)
        sizes = [places[index] for index in indices]
        for index, part in zip(indices, np.split(judged, np.cumsum(sizes)[:-1]), strict=True):
            losses[index], counts[index] = part.sum(), len(part)
        if logits is not None:
            wanted = [starts[index] + word for index, size in zip(indices, sizes, strict=True) for word in range(size)]
            all_logits[wanted] = logits.float().cpu().numpy()
    return RowOutputs(losses, counts, all_logits)


def _share_of_rows(logits_RC: np.ndarray, rows: Sequence[TokenizedExample]) -> float:
    return float((logits_RC.argmax(1) == [row.target for row in rows]).mean())


def _share_of_words(logits_NC: np.ndarray, rows: Sequence[TokenizedExample]) -> float:
    tags_N = np.concatenate([np.array(row.target) for row in rows])
    return float((logits_NC.argmax(1) == tags_N).mean())


def _micro_f1(logits_RC: np.ndarray, rows: Sequence[TokenizedExample]) -> float:
    said_RC, true_RC = logits_RC > 0, np.array([row.target for row in rows], dtype=bool)
    return 2 * float((said_RC & true_RC).sum()) / max(1.0, float(said_RC.sum() + true_RC.sum()))


# What is watched beside the loss while training.
WATCHED: dict[Task, tuple[str, Callable[[np.ndarray, Sequence[TokenizedExample]], float]]] = {
    "classification": ("accuracy", _share_of_rows),
    "multi-label": ("micro_f1", _micro_f1),
    "token-classification": ("accuracy", _share_of_words),
}


def watch(task: Task, outputs: RowOutputs, rows: Sequence[TokenizedExample]) -> dict[str, float]:
    """The loss, and what WATCHED has for the task, by the names they have in a run's log."""
    found = {"validation_loss": outputs.mean_loss}
    if task in WATCHED:
        name, function = WATCHED[task]
        found[f"validation_{name}"] = function(outputs.logits, rows)
    return found


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
