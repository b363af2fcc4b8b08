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
from tunesmith.train.losses import PLAIN, Penalty
from tunesmith.train.objective import judged_losses
from tunesmith.train.preference import Preference


@dataclass(frozen=True, slots=True)
class RowOutputs:
    """Of R rows, in the order given.

    losses      (R,) sum of the losses judged in the row, in nats (squared error for regression)
    num_judged  (R,) places judged: trained tokens or words, or 1
    logits      (R, C) for tasks that judge rows: C classes, 1 for a score. Token classification: (sum(num_judged), C),
                words of the first row first. Ranking: (answers, 1), those of the first row first. Preference: (R, 2),
                the answers' log-probabilities. (R, 0) for generation
    """

    losses: np.ndarray
    num_judged: np.ndarray
    logits: np.ndarray

    @property
    def mean_loss(self) -> float:
        """Per judged place, so long answers count as much as they are long."""
        return float(self.losses.sum() / self.num_judged.sum())


@torch.inference_mode()
def validate(
    network: Network, rows: Sequence[TokenizedExample], dtype: torch.dtype, terms: Penalty | Preference = PLAIN
) -> RowOutputs:
    """Losses and outputs of rows that have targets; the model must be in evaluation mode."""
    device = network.model.device
    losses, counts = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
    places = [row.num_trained if JUDGED[network.task] in ("words", "answers") else 1 for row in rows]
    heights = [_count_logits(network.task, row) for row in rows]
    starts = np.cumsum(heights) - heights
    width = network.model.config.num_labels if network.task in TASK_HEADS else WIDTHS.get(network.task, 0)
    all_logits = np.zeros((sum(heights), width), dtype=np.float32)
    for batch in _batches(rows, network.num_virtual, share=network.is_decoder):
        indices, placed = list(batch.rows), batch.to(device)
        with autocast(device, dtype):
            losses_N, logits = judged_losses(network, placed, terms)
        judged = losses_N.cpu().numpy().astype(np.float64)
        sizes = [places[index] for index in indices]
        for index, part in zip(indices, np.split(judged, np.cumsum(sizes)[:-1]), strict=True):
            losses[index], counts[index] = part.sum(), len(part)
        if logits is not None:
            wanted = [starts[index] + place for index in indices for place in range(heights[index])]
            all_logits[wanted] = logits.float().cpu().numpy()
    return RowOutputs(losses, counts, all_logits)


# Numbers said of a row by models without a head that judges.
WIDTHS: dict[Task, int] = {"preference": 2}


def _count_logits(task: Task, row: TokenizedExample) -> int:
    """How many rows of logits a row has."""
    if JUDGED[task] == "words":
        return row.num_trained
    return len(row.answers) if task == "ranking" else 1


def _share_of_pairs(logits_A1: np.ndarray, rows: Sequence[TokenizedExample]) -> float:
    """Of all pairs of unequal rank, how many have the better answer ahead; equal rewards are half right."""
    right, num = 0.0, 0
    for rewards_K, row in zip(_by_row(logits_A1[:, 0], rows), rows, strict=True):
        ranks_K = np.array(row.target)
        better_KK = ranks_K[:, None] < ranks_K[None, :]
        right += float((0.5 + 0.5 * np.sign(rewards_K[:, None] - rewards_K[None, :]))[better_KK].sum())
        num += int(better_KK.sum())
    return right / max(1, num)


def _by_row(values_A: np.ndarray, rows: Sequence[TokenizedExample]) -> list[np.ndarray]:
    return np.split(values_A, np.cumsum([len(row.answers) for row in rows])[:-1])


def _share_ahead(pi_R2: np.ndarray, rows: Sequence[TokenizedExample]) -> float:
    """Of all rows, how many have their first answer gain more on the reference than the second; of KTO's, the good ones
    more and the bad ones less than what answers to other prompts gain."""
    targets_R3 = np.array([row.target for row in rows], dtype=float)
    moved_R2 = pi_R2 - targets_R3[:, 1:]
    gap_R = (moved_R2[:, 0] - moved_R2[:, 1]) * targets_R3[:, 0]
    return float((0.5 + 0.5 * np.sign(gap_R)).mean())


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
    "ranking": ("accuracy", _share_of_pairs),
    "preference": ("accuracy", _share_ahead),
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
    for chosen in token_batches(rows, share=share):
        yield pack([replace(rows[index], row=index) for index in chosen], num_virtual, share)
