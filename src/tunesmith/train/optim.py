"""Optimizers with the usual exceptions from weight decay, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from tunesmith.train.adamw import AdamW8bit
from tunesmith.train.galore import GaLore
from tunesmith.train.muon import Muon, is_hidden_matrix

Schedule = Literal["linear", "cosine", "constant"]
Optim = Literal["adamw", "adamw_8bit", "galore", "muon"]


class Rate(NamedTuple):
    """How a parameter learns: at `factor` times the learning rate, from the epoch `begins` on."""

    factor: float = 1.0
    begins: float = 0.0


NO_RATES: Mapping[str, Rate] = {}


def _begin_adamw(groups: list[dict[str, Any]], lr: float) -> torch.optim.AdamW:
    """With its moments, which torch makes in the first step: there they would lie, for good, between what that step's
    passes leave free, which then fits no later pass (full tuning of 135 M weights: 100 MB, `docs/log.md`)."""
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": step, **moments}
    return optimizer


_KINDS: dict[Optim, Callable[..., torch.optim.Optimizer]] = {
    "adamw": _begin_adamw,
    "adamw_8bit": AdamW8bit,
    "galore": GaLore,
    "muon": Muon,
}

_DECAY: dict[Schedule, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "constant": lambda done: 1.0,
}


def learning_rate_factor(step: int, num_steps: int, num_warmup: int, schedule: Schedule) -> float:
    """What the peak learning rate is multiplied by at `step` (0-based).

    Rises linearly over the warm-up, (step + 1) / num_warmup, then decays over the remaining steps to 0.
    """
    if step < num_warmup:
        return (step + 1) / num_warmup
    return _DECAY[schedule]((step - num_warmup) / max(1, num_steps - num_warmup))


def make_optimizer(
    named: Iterable[tuple[str, nn.Parameter]],
    learning_rate: float,
    weight_decay: float,
    kind: Optim = "adamw",
    rates: Mapping[str, Rate] = NO_RATES,
    rank: int = 128,
) -> torch.optim.Optimizer:
    """Decoupled weight decay (Loshchilov & Hutter 2019), not on biases, norms and other vectors.

    Args:
        rates: by the parameter's name; the plain one where not given.
        rank: of what GaLore keeps for a matrix.
    """
    groups: dict[tuple[bool, Rate, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        kept = (parameter.ndim <= 1, rates.get(name, Rate()), is_hidden_matrix(name, parameter))
        groups.setdefault(kept if kind == "muon" else (*kept[:2], False), []).append(parameter)
    described = [
        {
            "params": groups[is_vector, rate, is_hidden],
            "weight_decay": 0.0 if is_vector else weight_decay,
            "lr": learning_rate * rate.factor,
            "rate": rate,
            "rank": rank,
            "is_hidden": is_hidden,
        }
        for is_vector, rate, is_hidden in sorted(groups)
    ]
    return _KINDS[kind](described, lr=learning_rate)


NO_WEIGHTS: Mapping[nn.Parameter, torch.Tensor] = {}


def hold_near_start(
    optimizer: torch.optim.Optimizer,
    starts: Iterable[nn.Parameter],
    strength: float,
    matters: Mapping[nn.Parameter, torch.Tensor] = NO_WEIGHTS,
    strength_of_matter: float = 0.0,
) -> None:
    """L2-SP (Li et al. 2018, arXiv 1802.01483), decoupled as AdamW's decay is: after each update w - w0 shrinks by the
    share learning rate x strength, of weights that have a gradient. Those of `starts` as they are now are w0; a copy of
    them is kept.

    With `matters`, a tensor of each parameter's shape, also by learning rate x strength_of_matter x matters: EWC
    (Kirkpatrick et al. 2017, arXiv 1612.00796, equation 3), whose pull is that of a weight's Fisher information.
    """
    beginnings = {parameter: parameter.detach().clone() for parameter in starts}

    @torch.no_grad()
    def pull_back(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            held = [p for p in group["params"] if p in beginnings and p.grad is not None]
            for parameter in held:
                share: Any = group["lr"] * strength
                if parameter in matters:
                    share = (share + group["lr"] * strength_of_matter * matters[parameter]).clamp(max=1.0)
                    parameter.lerp_(beginnings[parameter], share.to(parameter.dtype))
                else:
                    parameter.lerp_(beginnings[parameter], min(1.0, share))

    optimizer.register_step_post_hook(pull_back)
