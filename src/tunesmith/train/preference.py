"""Learning from preferences without a reward model: the losses, from log-probabilities of whole answers.

Each row is a prompt with two answers. For all rules but KTO the first is the better one. KTO takes one answer at a
time, good or bad, and sets it against an answer to another prompt (its second), which says how far the model has moved.

Shape letters: S rows; a trailing 2 is (first, second). "pi" is the model that is trained, "ref" the model as it began.
All log-probabilities are sums over an answer's tokens in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

Rule = Literal["dpo", "robust-dpo", "ipo", "kto", "orpo", "simpo"]


@dataclass(frozen=True, slots=True)
class Preference:
    """By what rule, and its numbers.

    beta    how much a nat of log-probability counts; of ORPO the weight of the odds (lambda there)
    noise   e: the share of preferences that are the wrong way round (`dpo`: cDPO; `robust-dpo`)
    margin  gamma: SimPO wants the better answer ahead by so much
    sft     weight of the better answer's negative log-likelihood per token, beside the rule's own loss
    good, bad  KTO: weights of answers that are good and bad
    """

    rule: Rule = "dpo"
    beta: float = 0.1
    noise: float = 0.0
    margin: float = 0.0
    sft: float = 0.0
    good: float = 1.0
    bad: float = 1.0

    @property
    def needs_reference(self) -> bool:
        return self.rule not in ("orpo", "simpo")


@dataclass(frozen=True, slots=True)
class Pairs:
    """What the rules are told, of S rows.

    pi_S2       log pi(answer | prompt)
    ref_S2      the same by the reference; zeros where the rule takes none
    lengths_S2  tokens of each answer
    is_good_S   whether the first answer is a good one; of pairs always
    """

    pi_S2: torch.Tensor
    ref_S2: torch.Tensor
    lengths_S2: torch.Tensor
    is_good_S: torch.Tensor

    @property
    def moved_S2(self) -> torch.Tensor:
        """log pi - log ref."""
        return self.pi_S2 - self.ref_S2

    @property
    def mean_S2(self) -> torch.Tensor:
        """Log-probability per token."""
        return self.pi_S2 / self.lengths_S2


def preference_loss_S(pairs: Pairs, preference: Preference) -> torch.Tensor:
    """(S,) losses by a rule."""
    losses_S = RULES[preference.rule](pairs, preference)
    return losses_S - preference.sft * pairs.mean_S2[:, 0] if preference.sft else losses_S


def dpo_S(pairs: Pairs, preference: Preference) -> torch.Tensor:
    """-log sigmoid(z) with z = beta (moved_better - moved_worse): Rafailov et al. 2023, arXiv 2305.18290, equation 7.

    With noise e it is -(1 - e) log sigmoid(z) - e log sigmoid(-z): cDPO, Mitchell 2023.
    """
    z_S = preference.beta * (pairs.moved_S2[:, 0] - pairs.moved_S2[:, 1])
    return -(1 - preference.noise) * F.logsigmoid(z_S) - preference.noise * F.logsigmoid(-z_S)


def robust_dpo_S(pairs: Pairs, preference: Preference) -> torch.Tensor:
    """[-(1 - e) log sigmoid(z) + e log sigmoid(-z)] / (1 - 2 e): in the mean over preferences of which the share e is
    turned round this is DPO's loss on the true ones. Ray Chowdhury et al. 2024, arXiv 2403.00409, equation 12."""
    z_S = preference.beta * (pairs.moved_S2[:, 0] - pairs.moved_S2[:, 1])
    e = preference.noise
    return (-(1 - e) * F.logsigmoid(z_S) + e * F.logsigmoid(-z_S)) / (1 - 2 * e)


def ipo_S(pairs: Pairs, preference: Preference) -> torch.Tensor:
    """(moved_better - moved_worse - 1 / (2 beta))^2, moved per token: Azar et al. 2023, arXiv 2310.12036, equation 17.

    The paper has no lengths; per token is how its authors have it used, and TRL.
    """
    moved_S2 = pairs.moved_S2 / pairs.lengths_S2
    return (moved_S2[:, 0] - moved_S2[:, 1] - 1 / (2 * preference.beta)).square()


def kto_S(pairs: Pairs, preference: Preference) -> torch.Tensor:
    """Good: w_g (1 - sigmoid(beta (moved - z))); bad: w_b (1 - sigmoid(beta (z - moved))), with z = max(0, mean moved
    of the answers to other prompts), through which no gradient goes. Ethayarajh et al. 2024, arXiv 2402.01306, equation
    8.

    z is a mean over the rows at hand, so a batch of one is a poor one.
    """
    moved_S = pairs.moved_S2[:, 0]
    z = pairs.moved_S2[:, 1].detach().mean().clamp(min=0)
    sign_S = torch.where(pairs.is_good_S, 1.0, -1.0)
    weight_S = torch.where(pairs.is_good_S, preference.good, preference.bad)
    return weight_S * (1 - torch.sigmoid(preference.beta * sign_S * (moved_S - z)))


def orpo_S(pairs: Pairs, preference: Preference) -> torch.Tensor:
    """-log p_better - lambda log sigmoid(log odds_better - log odds_worse), p = exp(log-probability per token) and odds
    = p / (1 - p): Hong et al. 2024, arXiv 2403.07691, equations 6 and 7."""
    log_p_S2 = pairs.mean_S2
    log_odds_S2 = log_p_S2 - log1mexp(log_p_S2)
    return -log_p_S2[:, 0] - preference.beta * F.logsigmoid(log_odds_S2[:, 0] - log_odds_S2[:, 1])


def simpo_S(pairs: Pairs, preference: Preference) -> torch.Tensor:
    """-log sigmoid(beta (mean_better - mean_worse) - gamma): Meng et al. 2024, arXiv 2405.14734, equation 6."""
    return -F.logsigmoid(preference.beta * (pairs.mean_S2[:, 0] - pairs.mean_S2[:, 1]) - preference.margin)


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) of x < 0, without loss of digits near 0 (Maechler 2012); x of 0 is taken as just below it."""
    x = x.clamp(max=-1e-7)
    return torch.where(x > -0.6931472, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


RULES: Mapping[Rule, Callable[[Pairs, Preference], torch.Tensor]] = {
    "dpo": dpo_S,
    "robust-dpo": robust_dpo_S,
    "ipo": ipo_S,
    "kto": kto_S,
    "orpo": orpo_S,
    "simpo": simpo_S,
}
