"""Losses as sums over what is judged. Whoever calls divides: by all judged places of an accumulation
window, so that one step of 8 rows and 8 steps of 1 row give the same gradient.

Shape letters: N judged places, V vocabulary or classes, C classes of which any number may hold, S rows, K answers to a
prompt, A answers of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

Ranking = Literal["pairs", "plackett-luce"]


@dataclass(frozen=True, slots=True)
class Penalty:
    """What training may add to a cross-entropy; both come out of the pass that makes it.

    label_smoothing  e: the target has the probability 1 - e, and e is spread over all V (Szegedy et al. 2016,
                     arXiv 1512.00567); where each class holds or not by itself, over these two
    z_loss           c: adds c log(sum(exp(logits)))^2, which keeps logits from drifting (Chowdhery et al. 2022,
                     arXiv 2204.02311, section 5)
    tied             weight of two answers of equal rank, each of which is preferred by half; 0 leaves them out
    centre           c: adds c (r_i + r_j)^2 for each pair of rewards, which keeps them about 0 (Eisenstein et al. 2023,
                     arXiv 2312.09244, section 3)
    ranking          of rankings: by pairs, or as a whole
    margin           m: a better answer is to be ahead by m for each rank that lies between the two (Touvron et al.
                     2023, arXiv 2307.09288, section 3.2.2, where it grows with the strength of the preference)
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    tied: float = 0.0
    centre: float = 0.0
    ranking: Ranking = "pairs"
    margin: float = 0.0


PLAIN = Penalty()


def cross_entropy_N(logits_NV: torch.Tensor, targets_N: torch.Tensor, penalty: Penalty = PLAIN) -> torch.Tensor:
    """-log softmax(logits)[target] in nats, computed in float32. Returns (N,)."""
    logits_NV = logits_NV.float()
    losses_N = F.cross_entropy(logits_NV, targets_N, reduction="none", label_smoothing=penalty.label_smoothing)
    return losses_N + penalty.z_loss * logits_NV.logsumexp(-1).square() if penalty.z_loss else losses_N


def binary_cross_entropy_N(logits_NC: torch.Tensor, targets_NC: torch.Tensor, penalty: Penalty = PLAIN) -> torch.Tensor:
    """-y log(p) - (1 - y) log(1 - p) with p = sigmoid(logit), mean over the C classes, in float32. Returns (N,)."""
    targets_NC = targets_NC.float()
    if penalty.label_smoothing:
        targets_NC = targets_NC * (1 - penalty.label_smoothing) + penalty.label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits_NC.float(), targets_NC, reduction="none").mean(-1)


def ranking_loss_S(rewards_A1: torch.Tensor, ranks_SK: torch.Tensor, penalty: Penalty = PLAIN) -> torch.Tensor:
    """The loss of each prompt's ranking, by the rule that the penalty names, in float32. Returns (S,).

    Args:
        rewards_A1: of all answers, those to the first prompt first.
        ranks_SK: rising from 1, equal ones are ties, 0 where there is no answer.
    """
    rewards_SK = torch.zeros_like(ranks_SK, dtype=torch.float32).masked_scatter(ranks_SK > 0, rewards_A1.float())
    return RANKINGS[penalty.ranking](rewards_SK, ranks_SK, penalty)


def pairs_S(rewards_SK: torch.Tensor, ranks_SK: torch.Tensor, penalty: Penalty) -> torch.Tensor:
    """Mean over the pairs of a prompt's answers of -log sigmoid(r_better - r_worse).

    So a prompt with nine answers, 36 pairs, counts as one with four does (Ouyang et al. 2022, arXiv 2203.02155,
    equation 1).
    """
    is_there_SK = ranks_SK > 0
    gap_SKK = rewards_SK[:, :, None] - rewards_SK[:, None, :]
    both_SKK = is_there_SK[:, :, None] & is_there_SK[:, None, :]
    wins_SKK = (both_SKK & (ranks_SK[:, :, None] < ranks_SK[:, None, :])).float()
    # A tied pair stands in both of its places, each for half of it.
    ties_SKK = (both_SKK & (ranks_SK[:, :, None] == ranks_SK[:, None, :])).float().tril(-1)
    weights_SKK = wins_SKK + 0.5 * penalty.tied * (ties_SKK + ties_SKK.transpose(1, 2))
    if penalty.margin:
        steps_SKK = ranks_SK[:, None, :] - ranks_SK[:, :, None]
        gap_SKK = gap_SKK - penalty.margin * (steps_SKK - 1).clamp(min=0)
    losses_SKK = -F.logsigmoid(gap_SKK)
    if penalty.label_smoothing:
        losses_SKK = losses_SKK + penalty.label_smoothing * gap_SKK  # -log sigmoid(-d) = d - log sigmoid(d)
    if penalty.centre:
        losses_SKK = losses_SKK + penalty.centre * (rewards_SK[:, :, None] + rewards_SK[:, None, :]).square()
    num_pairs_S = weights_SKK.sum((1, 2))
    return (weights_SKK * losses_SKK).sum((1, 2)) / num_pairs_S.clamp(min=1e-9)


def plackett_luce_S(rewards_SK: torch.Tensor, ranks_SK: torch.Tensor, penalty: Penalty) -> torch.Tensor:
    """-log of the probability of the order: the best answer is drawn from all with the odds exp(r), then the next one
    from those that are left, and so on (Luce 1959; Plackett 1975; the ListMLE of Xia et al. 2008).

    Each answer is drawn from itself and those below it, so tied answers are never set against each other. Where only
    the best is told and all others are tied this is the softmax of Ziegler et al. 2019 (arXiv 1909.08593, equation 1).
    """
    below_SKK = (ranks_SK[:, None, :] > ranks_SK[:, :, None]) | torch.eye(
        ranks_SK.shape[1], device=ranks_SK.device
    ).bool()
    among_SK = rewards_SK[:, None, :].expand_as(below_SKK).masked_fill(~below_SKK, -torch.inf).logsumexp(-1)
    return ((among_SK - rewards_SK) * (ranks_SK > 0)).sum(1)


RANKINGS: Mapping[Ranking, Callable[[torch.Tensor, torch.Tensor, Penalty], torch.Tensor]] = {
    "pairs": pairs_S,
    "plackett-luce": plackett_luce_S,
}


def likeliest_divergence_N(logits_NV: torch.Tensor, ids_NK: torch.Tensor, logprobs_NK: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats (N,), of p's K likeliest tokens and of all others taken together, in float32.

    Taking tokens together can only make a divergence smaller (the data-processing inequality); with K = V it is all of
    it. `ids_NK` and `logprobs_NK` are of p; q = softmax(logits), which alone gets a gradient.
    """
    q_NK = logits_NV.float().log_softmax(-1).gather(-1, ids_NK)
    inside_N = (logprobs_NK.exp() * (logprobs_NK - q_NK)).sum(-1)
    rest_p_N, rest_q_N = (1 - logs_NK.exp().sum(-1) for logs_NK in (logprobs_NK, q_NK))
    if ids_NK.shape[1] == logits_NV.shape[1]:
        return inside_N
    least = torch.finfo(torch.float32).eps  # of a rest that rounding has eaten up
    rest_p_N, rest_q_N = rest_p_N.clamp(min=least), rest_q_N.clamp(min=least)
    return inside_N + rest_p_N * (rest_p_N.log() - rest_q_N.log())


def span_loss_S(logits_N2: torch.Tensor, targets_S3: torch.Tensor, penalty: Penalty = PLAIN) -> torch.Tensor:
    """Mean of -log p(first place) and -log p(last place), each over all places of a row, in float32. Returns (S,).

    (Devlin et al. 2019, arXiv 1810.04805, section 4.2, where it is their sum; transformers takes the mean.)

    Args:
        logits_N2: of all places of all rows, those of the first row first: as a beginning, as an end.
        targets_S3: first and last place of the answer within its row, and how many places the row has.
    """
    counts_S = targets_S3[:, 2]
    is_there_SL = torch.arange(int(counts_S.max()), device=counts_S.device) < counts_S[:, None]
    outside_SL = torch.full(is_there_SL.shape, -torch.inf, device=logits_N2.device)
    ends = (
        cross_entropy_N(
            outside_SL.masked_scatter(is_there_SL, logits_N2[:, which].float()), targets_S3[:, which], penalty
        )
        for which in (0, 1)
    )
    return sum(ends) / 2  # type: ignore[return-value]


def squared_error_N(predictions_N1: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """(prediction - target)^2 in float32. Returns (N,)."""
    return (predictions_N1.float().squeeze(-1) - targets_N.float()).square()


def linear_cross_entropy_N(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    softcap: float | None = None,
    penalty: Penalty = PLAIN,
    bias_V: torch.Tensor | None = None,
) -> torch.Tensor:
    """-log softmax(hidden weight^T + bias)[target] in nats (N,), without ever holding all logits (N, V).

    The vocabulary makes logits the largest tensor of a small model's step. They are made a chunk of rows
    at a time. With a frozen weight the gradient of the hidden states is made in the same go, since each
    loss depends on its own row alone; with a trained one the chunks are made again on the way back. Products are in
    the type of the hidden states; a weight of another type is rounded to it each time, and no copy is kept.
    `softcap` c replaces a logit z by c*tanh(z/c) (Gemma 2).
    """
    losses: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, targets_N, softcap, penalty, bias_V
    )
    return losses


# A chunk's float32 logits stay within 64 MiB.
CHUNK_ELEMENTS = 2**24


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, softcap, penalty, bias_V):  # type: ignore[no-untyped-def]  # noqa: PLR0913
        wants_hidden, wants_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1] or ctx.needs_input_grad[5]
        ctx.softcap, ctx.penalty = softcap, penalty
        keeps = (hidden_ND, weight_VD, targets_N, bias_V)
        weight_VD = weight_VD.to(hidden_ND.dtype)
        losses_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        grad_ND = torch.empty_like(hidden_ND) if wants_hidden and not wants_weight else None
        for rows in _chunks(hidden_ND, weight_VD):
            loss, slope_CV = _chunk(hidden_ND[rows], weight_VD, targets_N[rows], softcap, penalty, bias_V)
            losses_N[rows] = loss
            if grad_ND is not None:
                torch.mm(slope_CV.to(weight_VD.dtype), weight_VD, out=grad_ND[rows])
        ctx.save_for_backward(*(keeps if grad_ND is None else (grad_ND,)))
        return losses_N

    @staticmethod
    def backward(ctx, upstream_N):  # type: ignore[no-untyped-def]
        if len(ctx.saved_tensors) == 1:
            (grad_ND,) = ctx.saved_tensors
            return grad_ND * upstream_N[:, None].to(grad_ND.dtype), None, None, None, None, None
        hidden_ND, weight_VD, targets_N, bias_V = ctx.saved_tensors
        of_weight, weight_VD = weight_VD.dtype, weight_VD.to(hidden_ND.dtype)
        grad_ND, grad_VD = torch.empty_like(hidden_ND), torch.zeros_like(weight_VD)
        grad_V = None if bias_V is None else torch.zeros_like(bias_V)
        for rows in _chunks(hidden_ND, weight_VD):
            _, slope_CV = _chunk(hidden_ND[rows], weight_VD, targets_N[rows], ctx.softcap, ctx.penalty, bias_V)
            slope_CV = slope_CV.mul_(upstream_N[rows, None]).to(weight_VD.dtype)
            torch.mm(slope_CV, weight_VD, out=grad_ND[rows])
            grad_VD.addmm_(slope_CV.T, hidden_ND[rows])
            if grad_V is not None:
                grad_V += slope_CV.sum(0)
        return grad_ND, grad_VD.to(of_weight), None, None, None, grad_V


def _chunks(hidden_ND: torch.Tensor, weight_VD: torch.Tensor) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // len(weight_VD))
    return [slice(start, start + size) for start in range(0, len(hidden_ND), size)]


def _chunk(
    hidden_CD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_C: torch.Tensor,
    softcap: float | None,
    penalty: Penalty,
    bias_V: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of a chunk and their derivative by the product before the cap, in float32.

    With n = log(sum(exp(z))), p = exp(z - n) and t the target the loss is n - (1 - e) z_t - e mean(z) + c n^2 and its
    derivative p (1 + 2 c n) - (1 - e) [v = t] - e / V.
    """
    product_CV = F.linear(hidden_CD, weight_VD, bias_V).float()
    logits_CV = product_CV if softcap is None else softcap * torch.tanh(product_CV / softcap)
    smoothing, z_loss = penalty.label_smoothing, penalty.z_loss
    flat_CV = None if softcap is None else 1 - (logits_CV / softcap).square()
    at_target_C1 = logits_CV.gather(-1, targets_C[:, None])
    loss_C1 = (smoothing - 1) * at_target_C1
    if smoothing:
        loss_C1 -= smoothing * logits_CV.mean(-1, keepdim=True)
    # e^(z - max) and its sum give both the loss and its derivative, in one tensor.
    highest_C1 = logits_CV.amax(-1, keepdim=True)
    slope_CV = logits_CV.sub_(highest_C1).exp_()
    total_C1 = slope_CV.sum(-1, keepdim=True)
    normaliser_C1 = highest_C1 + total_C1.log()
    loss_C1 += normaliser_C1
    slope_CV.div_(total_C1)
    if z_loss:
        loss_C1 += z_loss * normaliser_C1.square()
        slope_CV.mul_(1 + 2 * z_loss * normaliser_C1)
    if smoothing:
        slope_CV.sub_(smoothing / slope_CV.shape[1])
    slope_CV.scatter_add_(-1, targets_C[:, None], torch.full_like(at_target_C1, smoothing - 1))
    return loss_C1.squeeze(-1), slope_CV if flat_CV is None else slope_CV.mul_(flat_CV)
