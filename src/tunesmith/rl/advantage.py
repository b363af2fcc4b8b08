"""From rewards to advantages: the mathematics of PPO, GRPO and RLOO, and of the divergence that holds them back.

Pure functions on padded tensors. Shape letters: B answers, T tokens of the longest, P prompts, K answers to each. A
mask (B, T) is True at an answer's tokens, which stand first in their row. Log-probabilities are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

Grouping = Literal["grpo", "dr_grpo", "rloo"]


def k1(logp: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """log pi - log ref: unbiased for KL(pi || ref) where the tokens are drawn from pi; may be negative (Schulman
    2020)."""
    return logp - ref


def k2(logp: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """(log pi - log ref)^2 / 2: biased, and the one whose own gradient is that of the KL in the mean (Schulman
    2020)."""
    return (logp - ref).square() / 2


def k3(logp: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """ref / pi - 1 - log(ref / pi): unbiased and never negative (Schulman 2020); what GRPO has in its loss."""
    return (ref - logp).exp() - 1 - (ref - logp)


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over places where the mask is True."""
    return (x * mask).sum() / mask.sum()


def whiten(
    x: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True, unbiased: bool = False, eps: float = 1e-8
) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) over the mask, and mean added again unless `shift_mean`.

    The variance is the population's, as in the code of Ziegler et al. 2019 (arXiv 1909.08593); `unbiased` divides by
    one less. What the mask leaves out becomes 0.
    """
    num = mask.sum()
    if int(num) < 2:
        raise ValueError("fewer than two numbers cannot be whitened")
    mean = masked_mean(x, mask)
    variance = ((x - mean).square() * mask).sum() / (num - 1 if unbiased else num)
    white = (x - mean) * torch.rsqrt(variance + eps)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)


def shaped_rewards_BT(score_B: torch.Tensor, kl_BT: torch.Tensor, mask_BT: torch.Tensor, beta: float) -> torch.Tensor:
    """-beta KL at each token, and the score at an answer's last one (Ouyang et al. 2022, section 3.5; there the score
    stands at the end of the text, not one place behind it)."""
    rewards_BT = -beta * kl_BT * mask_BT
    last_B = mask_BT.sum(1) - 1
    return rewards_BT.scatter_add(1, last_B[:, None], score_B[:, None])


def gae_BT(
    rewards_BT: torch.Tensor, values_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages sum over l of (gamma lambda)^l delta_(t+l), delta_t = r_t + gamma V_(t+1) - V_t, and returns A + V
    (Schulman et al. 2016, arXiv 1506.02438, equation 16). Behind its last token an answer is worth nothing more."""
    advantages_BT = torch.zeros_like(rewards_BT)
    ahead_B = torch.zeros_like(rewards_BT[:, 0])
    next_value_B = torch.zeros_like(ahead_B)
    for place in reversed(range(rewards_BT.shape[1])):
        is_there_B = mask_BT[:, place]
        delta_B = rewards_BT[:, place] + gamma * next_value_B - values_BT[:, place]
        ahead_B = torch.where(is_there_B, delta_B + gamma * lam * ahead_B, 0.0)
        next_value_B = torch.where(is_there_B, values_BT[:, place], 0.0)
        advantages_BT[:, place] = ahead_B
    return advantages_BT, torch.where(mask_BT, advantages_BT + values_BT, 0.0)


def grpo_PK(score_PK: torch.Tensor) -> torch.Tensor:
    """(R - mean) / (deviation + 1e-4) among the answers to a prompt (Shao et al. 2024, arXiv 2402.03300, section
    4.1.2); the deviation is the unbiased one. All alike: 0."""
    return dr_grpo_PK(score_PK) / (score_PK.std(1, keepdim=True) + 1e-4)


def dr_grpo_PK(score_PK: torch.Tensor) -> torch.Tensor:
    """R - mean: without the division, which favours prompts that are nearly always, or never, answered well (Liu et al.
    2025, arXiv 2503.20783)."""
    return score_PK - score_PK.mean(1, keepdim=True)


def rloo_PK(score_PK: torch.Tensor) -> torch.Tensor:
    """R less the mean of the other answers', which is K / (K - 1) times R less the mean of all (Ahmadian et al. 2024,
    arXiv 2402.14740, equation 8)."""
    num = score_PK.shape[1]
    return dr_grpo_PK(score_PK) * num / (num - 1)


GROUPED: Mapping[Grouping, Callable[[torch.Tensor], torch.Tensor]] = {
    "grpo": grpo_PK,
    "dr_grpo": dr_grpo_PK,
    "rloo": rloo_PK,
}


@dataclass(frozen=True, slots=True)
class Controller:
    """What a nat of divergence costs. With a target it is steered: e = clip(KL / target - 1, -0.2, 0.2), beta times
    1 + e n / horizon after n answers, KL being an answer's sum (Ziegler et al. 2019, arXiv 1909.08593, section 2.2)."""

    target: float | None = None
    horizon: float = 10_000.0

    def adjust(self, beta: float, kl: float, num_answers: int) -> float:
        if self.target is None:
            return beta
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return beta * (1 + error * num_answers / self.horizon)
