"""What is minimised: from a packed batch to the loss of each place that is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tunesmith.errors import InputError
from tunesmith.models.heads import TASK_HEADS, find_language_head
from tunesmith.models.load import Network
from tunesmith.models.packed import packed_hidden, packed_logits
from tunesmith.records import PackedBatch, Task
from tunesmith.runtime import working_dtype
from tunesmith.train.losses import (
    PLAIN,
    Penalty,
    binary_cross_entropy_N,
    cross_entropy_N,
    linear_cross_entropy_N,
    squared_error_N,
)

Loss = Callable[[torch.Tensor, torch.Tensor, Penalty], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Objective:
    """One row of OBJECTIVES: logits and targets to losses (N,), and which parts of a Penalty it can have."""

    loss: Loss
    penalties: frozenset[str]


_SOFTMAX = frozenset({"label_smoothing", "z_loss"})

OBJECTIVES: dict[Task, Objective] = {
    "classification": Objective(cross_entropy_N, _SOFTMAX),
    "token-classification": Objective(cross_entropy_N, _SOFTMAX),
    # Without a softmax there is no normaliser that could drift.
    "multi-label": Objective(binary_cross_entropy_N, frozenset({"label_smoothing"})),
    "regression": Objective(lambda logits, targets, _: squared_error_N(logits, targets), frozenset()),
    "generation": Objective(cross_entropy_N, _SOFTMAX),
}


def refuse_penalty(task: Task, penalty: Penalty) -> None:
    """Raises an InputError when something is asked for that the task's loss does not have."""
    for name, key in (("label_smoothing", "label_smoothing_factor"), ("z_loss", "z_loss")):
        if getattr(penalty, name) and name not in OBJECTIVES[task].penalties:
            able = ", ".join(other for other, row in OBJECTIVES.items() if name in row.penalties)
            raise InputError(f"{key} is {getattr(penalty, name):g}, which {task} has no use for. It is for {able}")


def judged_losses(
    network: Network, batch: PackedBatch, penalty: Penalty = PLAIN
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Losses (N,) of the judged places, and of tasks that judge the logits: (S, C) of rows, (N, C) of words.

    Run it under `autocast`; losses are float32 whatever the model computes in.
    """
    loss = OBJECTIVES[network.task].loss
    if network.task in TASK_HEADS:
        logits = packed_logits(network, batch)
        return loss(logits, batch.targets, penalty), logits
    head = find_language_head(network.model)
    if head is None:
        return loss(packed_logits(network, batch), batch.targets, penalty), None
    hidden_ND = packed_hidden(network, batch)[batch.predict_from]
    dtype = working_dtype(hidden_ND)
    if head.enter is not None:
        hidden_ND = head.enter(hidden_ND)
    weight_VD, bias_V = head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype)
    return linear_cross_entropy_N(hidden_ND.to(dtype), weight_VD, batch.targets, head.softcap, penalty, bias_V), None
