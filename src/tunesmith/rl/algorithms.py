"""PPO, GRPO, RLOO and online DPO, each on half a page: how the answers of a step are judged token by token, and what
is then minimised.

All draw answers from the policy and score them; the first three make tokens with a positive advantage likelier, within
a clip.

PPO   (Ouyang et al. 2022, arXiv 2203.02155)  a nat of divergence costs beta at each token; a value says what an answer
      is worth so far, and a token's advantage is what came better than that (GAE).
RLOO  (Ahmadian et al. 2024, arXiv 2402.14740)  an answer is one action: its score, less beta times its divergence, is
      set against the mean of the other answers'. No value.
GRPO  (Shao et al. 2024, arXiv 2402.03300)  the score against the mean of all answers to the prompt, by their deviation;
      the divergence stands in the loss and not in the reward.
online DPO  (Guo et al. 2024, arXiv 2402.04792)  the best and the worst answer to a prompt are a pair, for DPO's loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from tunesmith.config_align import AlignConfig, Online
from tunesmith.rl.advantage import GROUPED, gae_BT, k1, k3, shaped_rewards_BT, whiten
from tunesmith.rl.losses import Clip, policy_loss_N, value_loss_N
from tunesmith.rl.rollout import Said, to_padded


@dataclass(frozen=True, slots=True)
class Judged:
    """The answers of a step: who they answer, how they were scored, and what was said of them before the update.

    score_B    more is better, within `cliprange_reward`; what was taken for answers without an end is taken already
    clipped    share of the scores that were not within it
    old        by the policy
    ref_N      log-probabilities by the reference; the policy's own where nothing is held to it
    mask_BT    True at an answer's tokens
    """

    score_B: torch.Tensor
    num_answers: int
    old: Said
    ref_N: torch.Tensor
    mask_BT: torch.Tensor
    clipped: float = 0.0

    @property
    def kl_BT(self) -> torch.Tensor:
        """log pi - log ref of each token (k1)."""
        return to_padded(k1(self.old.logp_N, self.ref_N), self.mask_BT)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the update is told of each token; returns are there where a value is."""

    advantage_N: torch.Tensor
    return_N: torch.Tensor | None = None

    def at(self, places_N: torch.Tensor, device: torch.device) -> Lesson:
        """Of some of the tokens."""
        return_N = None if self.return_N is None else self.return_N[places_N].to(device)
        return Lesson(self.advantage_N[places_N].to(device), return_N)


def teach_ppo(judged: Judged, beta: float, config: AlignConfig) -> Lesson:
    assert judged.old.value_N is not None
    mask_BT = judged.mask_BT
    rewards_BT = shaped_rewards_BT(judged.score_B, judged.kl_BT, mask_BT, beta)
    if config.whiten_rewards:
        rewards_BT = whiten(rewards_BT, mask_BT, shift_mean=False)
    values_BT = to_padded(judged.old.value_N, mask_BT)
    advantages_BT, returns_BT = gae_BT(rewards_BT, values_BT, mask_BT, config.gamma, config.lam)
    return Lesson(whiten(advantages_BT, mask_BT)[mask_BT], returns_BT[mask_BT])


def teach_rloo(judged: Judged, beta: float, config: AlignConfig) -> Lesson:
    total_B = judged.score_B - beta * judged.kl_BT.sum(1)
    return _alike(GROUPED["rloo"](total_B.view(-1, judged.num_answers)), judged.mask_BT)


def teach_grpo(judged: Judged, beta: float, config: AlignConfig) -> Lesson:
    grouping = GROUPED["grpo" if config.scale_rewards == "group" else "dr_grpo"]
    return _alike(grouping(judged.score_B.view(-1, judged.num_answers)), judged.mask_BT)


def teach_online_dpo(judged: Judged, beta: float, config: AlignConfig) -> Lesson:
    """1 for the best answer to a prompt, -1 for the worst, 0 for the others, and for all where scores are alike."""
    score_PK = judged.score_B.view(-1, judged.num_answers)
    side_PK = torch.zeros_like(score_PK)
    side_PK.scatter_add_(1, score_PK.argmax(1, keepdim=True), torch.ones_like(score_PK))
    side_PK.scatter_add_(1, score_PK.argmin(1, keepdim=True), -torch.ones_like(score_PK))
    return _alike(side_PK, judged.mask_BT)


def _alike(advantage_PK: torch.Tensor, mask_BT: torch.Tensor) -> Lesson:
    """Every token of an answer has the answer's advantage."""
    return Lesson(advantage_PK.flatten().repeat_interleave(mask_BT.sum(1)))


def whole_answers_N(logp_N: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """For each token the sum over its answer."""
    owners_N = torch.arange(len(lengths)).repeat_interleave(lengths).to(logp_N.device)
    return logp_N.new_zeros(len(lengths)).index_add(0, owners_N, logp_N)[owners_N]


TEACHERS: Mapping[Online, Callable[[Judged, float, AlignConfig], Lesson]] = {
    "ppo": teach_ppo,
    "rloo": teach_rloo,
    "grpo": teach_grpo,
    "online-dpo": teach_online_dpo,
}


def online_dpo_N(
    moved_N: torch.Tensor, side_N: torch.Tensor, lengths: torch.Tensor, config: AlignConfig
) -> torch.Tensor:
    """-log sigmoid(beta (moved_best - moved_worst)), moved = log pi - log ref of an answer, at each token of all
    answers to the prompt: their mean within answers, then over answers, is the mean over prompts."""
    num_tokens = int(lengths.sum())
    z_B = torch.zeros(len(lengths), device=moved_N.device)
    owners_N = torch.arange(len(lengths)).repeat_interleave(lengths, output_size=num_tokens).to(moved_N.device)
    z_P = config.strength * z_B.index_add(0, owners_N, side_N * moved_N).view(-1, config.num_generations).sum(1)
    return -F.logsigmoid(z_P).repeat_interleave(config.num_generations)[owners_N]


def losses_N(
    now: Said, old: Said, ref_N: torch.Tensor, lesson: Lesson, lengths: torch.Tensor, config: AlignConfig
) -> dict[str, torch.Tensor]:
    """What is minimised, token by token, by what it is for: policy, value, divergence.

    Args:
        lengths: tokens of each answer; all else is of their tokens, end to end.
    """
    high = config.cliprange if config.cliprange_high is None else config.cliprange_high
    clip = Clip(config.cliprange, high, config.cliprange_dual)
    logp_N, old_N = now.logp_N, old.logp_N
    if config.algorithm == "online-dpo":
        return {"policy": online_dpo_N(logp_N - ref_N, lesson.advantage_N, lengths, config)}
    if config.algorithm == "rloo":  # an answer is one action: all of its tokens have its ratio
        logp_N, old_N = whole_answers_N(logp_N, lengths), whole_answers_N(old_N, lengths)
    found = {"policy": policy_loss_N(logp_N, old_N, lesson.advantage_N, clip)}
    if lesson.return_N is not None:
        assert now.value_N is not None
        assert old.value_N is not None
        value_N = value_loss_N(now.value_N, old.value_N, lesson.return_N, config.cliprange_value)
        found["value"] = config.vf_coef * value_N
    if config.algorithm == "grpo" and config.strength:
        found["kl"] = config.strength * k3(now.logp_N, ref_N)
    return found
