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
    ranking_loss_S,
    span_loss_S,
    squared_error_N,
)
from tunesmith.train.preference import Pairs, Preference, preference_loss_S

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
    # Places that a shorter row does not have get no share of a target.
    "extractive-qa": Objective(span_loss_S, frozenset({"z_loss"})),
    # Without a softmax there is no normaliser that could drift.
    "multi-label": Objective(binary_cross_entropy_N, frozenset({"label_smoothing"})),
    "regression": Objective(lambda logits, targets, _: squared_error_N(logits, targets), frozenset()),
    "generation": Objective(cross_entropy_N, _SOFTMAX),
    "text": Objective(cross_entropy_N, _SOFTMAX),
    "ranking": Objective(ranking_loss_S, frozenset({"label_smoothing"})),
}


def refuse_penalty(task: Task, penalty: Penalty) -> None:
    """Raises an InputError when something is asked for that the task's loss does not have."""
    for name, key in (("label_smoothing", "label_smoothing_factor"), ("z_loss", "z_loss")):
        has = OBJECTIVES[task].penalties if task in OBJECTIVES else frozenset()
        if getattr(penalty, name) and name not in has:
            able = ", ".join(other for other, row in OBJECTIVES.items() if name in row.penalties)
            raise InputError(f"{key} is {getattr(penalty, name):g}, which {task} has no use for. It is for {able}")


def judged_losses(
    network: Network, batch: PackedBatch, terms: Penalty | Preference = PLAIN
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Losses (N,) of the judged places, and of tasks that judge the logits: (S, C) of rows, (N, C) of words, (N, 2) of
    all places for spans, (A, 1) of answers that are ranked. Of preferences losses (S,) by the rule, and
    log-probabilities (S, 2) of the answers.

    Run it under `autocast`; losses are float32 whatever the model computes in.
    """
    if isinstance(terms, Preference):
        return preference_losses(network, batch, terms)
    loss = OBJECTIVES[network.task].loss
    if network.task in TASK_HEADS:
        logits = packed_logits(network, batch)
        return loss(logits, batch.targets, terms), logits
    return language_losses_N(network, batch, batch.targets, terms), None


def language_losses_N(
    network: Network, batch: PackedBatch, targets_N: torch.Tensor, penalty: Penalty = PLAIN
) -> torch.Tensor:
    """-log p(target) at `batch.predict_from` of a model that writes, (N,) in float32."""
    if find_language_head(network.model) is None:
        return cross_entropy_N(packed_logits(network, batch), targets_N, penalty)
    return losses_from_hidden_N(network, packed_hidden(network, batch)[batch.predict_from], targets_N, penalty)


def losses_from_hidden_N(
    network: Network, hidden_ND: torch.Tensor, targets_N: torch.Tensor, penalty: Penalty = PLAIN
) -> torch.Tensor:
    """The same from the last hidden states of the places, of a model whose head is a plain product."""
    head = find_language_head(network.model)
    assert head is not None
    dtype = working_dtype(hidden_ND)
    if head.enter is not None:
        hidden_ND = head.enter(hidden_ND)
    bias_V = None if head.bias is None else head.bias.to(dtype)
    return linear_cross_entropy_N(hidden_ND.to(dtype), head.weight, targets_N, head.softcap, penalty, bias_V)


def preference_losses(
    network: Network, batch: PackedBatch, preference: Preference
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses (S,) and log-probabilities (S, 2). The targets of a row are its sign, 1 where its first answer is a good
    one, and the reference's log-probabilities of both answers."""
    pi_S2, lengths_S2 = answer_logprobs(network, batch)
    signs_S, ref_S2 = batch.targets[:, 0], batch.targets[:, 1:]
    pairs = Pairs(pi_S2, ref_S2, lengths_S2, signs_S > 0)
    return preference_loss_S(pairs, preference), pi_S2


def answer_logprobs(network: Network, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(answer | prompt) in nats and the tokens of each answer, (S, K) both; all rows have K answers."""
    answers = batch.answers
    assert answers is not None
    losses_N = language_losses_N(network, batch, answers.tokens)
    zeros_A = losses_N.new_zeros(sum(answers.counts))
    sums_A = zeros_A.index_add(0, answers.owners, -losses_N)
    lengths_A = zeros_A.index_add(0, answers.owners, torch.ones_like(losses_N))
    return sums_A.view(len(answers.counts), -1), lengths_A.view(len(answers.counts), -1)
