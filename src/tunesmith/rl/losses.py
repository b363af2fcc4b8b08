"""What is minimised when answers have advantages: pure functions on flat tensors, N tokens of all answers end to
end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Aggregation = Literal["sequence", "token", "constant"]
# exp of more overflows nothing, and says the same: clipped.
LARGEST_LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True)
class Clip:
    """How far a ratio may move from 1 before it stops being worth anything: to 1 - low and 1 + high; and above `dual`,
    which is larger, it stops being a reproach to tokens of a negative advantage."""

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None


def policy_loss_N(logp_N: torch.Tensor, old_N: torch.Tensor, advantage_N: torch.Tensor, clip: Clip) -> torch.Tensor:
    """max(-A rho, -A clip(rho)), rho = pi / pi_old (Schulman et al. 2017, arXiv 1707.06347, equation 7).

    With `dual` c, where A < 0, at most -A c: else a token that has become far likelier since it was drawn weighs
    without bound (Ye et al. 2020, arXiv 1912.09729, equation 5).
    """
    ratio_N = ratios_N(logp_N, old_N)
    loss_N = torch.maximum(-advantage_N * ratio_N, -advantage_N * ratio_N.clamp(1 - clip.low, 1 + clip.high))
    if clip.dual is None:
        return loss_N
    return torch.where(advantage_N < 0, torch.minimum(loss_N, -advantage_N * clip.dual), loss_N)


def ratios_N(logp_N: torch.Tensor, old_N: torch.Tensor) -> torch.Tensor:
    return (logp_N - old_N).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()


def value_loss_N(
    value_N: torch.Tensor, old_N: torch.Tensor, return_N: torch.Tensor, cliprange: float | None
) -> torch.Tensor:
    """max((V - R)^2, (V_clipped - R)^2) / 2, V_clipped within `cliprange` of what it was: the value's share in the code
    of Ziegler et al. 2019. Without a cliprange the plain square."""
    square_N = (value_N - return_N).square()
    if cliprange is not None:
        near_N = old_N + (value_N - old_N).clamp(-cliprange, cliprange)
        square_N = torch.maximum(square_N, (near_N - return_N).square())
    return square_N / 2


def weights_N(lengths: torch.Tensor, how: Aggregation, longest: int) -> torch.Tensor:
    """What each token's loss counts, so that a sum is the loss of a batch however it is divided into passes.

    sequence   mean over an answer's tokens, then over answers (GRPO)
    token      mean over all tokens (DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.3)
    constant   sum over an answer's tokens by `longest`, then mean over answers (Dr. GRPO)
    """
    num_answers = len(lengths)
    each_B = {
        "sequence": 1.0 / (lengths * num_answers),
        "token": torch.full_like(lengths, 1.0 / float(lengths.sum()), dtype=torch.float32),
        "constant": torch.full_like(lengths, 1.0 / (longest * num_answers), dtype=torch.float32),
    }[how]
    return each_B.repeat_interleave(lengths)
