"""AdamW with the usual exceptions from weight decay, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import nn

from tunesmith.train.adamw import AdamW8bit

Schedule = Literal["linear", "cosine", "constant"]
Optim = Literal["adamw", "adamw_8bit"]

NO_RATES: Mapping[str, float] = {}

_KINDS: dict[Optim, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adamw_8bit": AdamW8bit,
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
    rates: Mapping[str, float] = NO_RATES,
) -> torch.optim.Optimizer:
    """Decoupled weight decay (Loshchilov & Hutter 2019), not on biases, norms and other vectors.

    Args:
        rates: what the learning rate of a parameter is multiplied by, by name; 1 where not given.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault((parameter.ndim <= 1, rates.get(name, 1.0)), []).append(parameter)
    described = [
        {
            "params": groups[is_vector, rate],
            "weight_decay": 0.0 if is_vector else weight_decay,
            "lr": learning_rate * rate,
            "rate": rate,
        }
        for is_vector, rate in sorted(groups)
    ]
    return _KINDS[kind](described, lr=learning_rate)
