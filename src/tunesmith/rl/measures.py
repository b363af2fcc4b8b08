"""The numbers of a step, by the names that TRL has made known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tunesmith.config_align import AlignConfig
from tunesmith.rl.algorithms import Judged, Lesson
from tunesmith.rl.losses import ratios_N
from tunesmith.rl.rollout import Rollout, Said, share_distinct


@dataclass
class Update:
    """What one optimizer step was like; sums over tokens by their weight, but `gap`, the largest |ratio - 1|."""

    sums: dict[str, float] = field(default_factory=dict)
    weight: float = 0.0
    num_tokens: int = 0
    gap: float = 0.0
    ptx: float | None = None
    grad_norm: float = 0.0

    @torch.no_grad()
    def note(
        self, losses: dict[str, torch.Tensor], now: Said, old: Said, weight_N: torch.Tensor, config: AlignConfig
    ) -> None:
        """A pass over some of its tokens."""
        ratio_N = ratios_N(now.logp_N, old.logp_N)
        high = config.cliprange if config.cliprange_high is None else config.cliprange_high
        is_out_N = (ratio_N < 1 - config.cliprange) | (ratio_N > 1 + high)
        self.gap = max(self.gap, float((ratio_N - 1).abs().max()))
        parts = {f"loss/{name}_avg": (weight_N * loss_N).sum() for name, loss_N in losses.items()}
        per_token = {
            "policy/approxkl_avg": (now.logp_N - old.logp_N).square() / 2,
            "policy/clipfrac_avg": is_out_N.float(),
            "policy/entropy_avg": -now.logp_N,
            "val/ratio": ratio_N,
            "ratio_square": ratio_N.square(),
        }
        if now.value_N is not None and old.value_N is not None and config.cliprange_value is not None:
            per_token["val/clipfrac_avg"] = ((now.value_N - old.value_N).abs() > config.cliprange_value).float()
        for name, part in (parts | {name: x_N.sum() for name, x_N in per_token.items()}).items():
            self.sums[name] = self.sums.get(name, 0.0) + float(part)
        self.num_tokens += len(ratio_N)

    @property
    def loss(self) -> float:
        return sum(value for name, value in self.sums.items() if name.startswith("loss/"))

    @property
    def means(self) -> dict[str, float]:
        found = {
            name: value if name.startswith("loss/") else value / self.num_tokens for name, value in self.sums.items()
        }
        found["val/ratio_var"] = max(0.0, found.pop("ratio_square") - found["val/ratio"] ** 2)
        return found | {"grad_norm": self.grad_norm} | ({} if self.ptx is None else {"loss/ptx": self.ptx})


def summarise(updates: Sequence[Update]) -> dict[str, float]:
    """Means over the updates of a step, and of its first one, which is taken where old and new are the same."""
    each = [update.means for update in updates]
    found = {name: float(np.mean([means[name] for means in each])) for name in each[0]}
    first = {"first_ratio_gap": updates[0].gap, "first_approxkl": each[0]["policy/approxkl_avg"]}
    return found | first


def measure(rollout: Rollout, judged: Judged, lesson: Lesson, beta: float) -> dict[str, float]:
    """Of the answers, before the update."""
    kl_B = judged.kl_BT.sum(1)
    score_B, lengths_B = judged.score_B, rollout.lengths.float()
    score, kl = float(score_B.mean()), float(kl_B.mean())
    finished = [answer.finished for answer in rollout.flat]
    deviation_P = score_B.view(-1, judged.num_answers).std(1, correction=0)
    # What whoever drew a token thought of it, and what whoever is trained does.
    drawn_N = torch.tensor([logprob for answer in rollout.flat for logprob in answer.logprobs])
    found = {
        "objective/kl": kl,
        "objective/entropy": float(-judged.old.logp_N.sum()) / len(score_B),
        "objective/non_score_reward": -beta * kl,
        "objective/rlhf_reward": score - beta * kl,
        "objective/scores": score,
        "reward_std": float(score_B.std(correction=0)),
        "frac_reward_clipped": judged.clipped,
        "frac_reward_zero_std": float((deviation_P < 1e-6).float().mean()),
        "kl_coef": beta,
        "response_length": float(lengths_B.mean()),
        "length_correlation": correlation(lengths_B, score_B),
        "share_finished": float(np.mean(finished)),
        "share_distinct": share_distinct(rollout),
        "val/num_eos_tokens": float(sum(finished)),
        "sampler_gap": float((drawn_N - judged.old.logp_N).abs().max()),
    }
    if lesson.return_N is not None and judged.old.value_N is not None:
        left = (lesson.return_N - judged.old.value_N).var(correction=0)
        found["value_explained"] = float(1 - left / lesson.return_N.var(correction=0).clamp(min=1e-8))
    return found


def correlation(x_B: torch.Tensor, y_B: torch.Tensor) -> float:
    """0 where one of them does not vary."""
    x_B, y_B = x_B - x_B.mean(), y_B - y_B.mean()
    size = float(x_B.norm() * y_B.norm())
    return float(x_B @ y_B) / size if size > 1e-12 else 0.0
