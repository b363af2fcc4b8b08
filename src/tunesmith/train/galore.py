"""AdamW whose states for a matrix are those of its gradient's main directions (GaLore: Zhao et al. 2024, arXiv
2403.03507): every weight is trained, and the optimizer keeps as little as LoRA's does.

Shape letters: N the smaller side of a matrix, M the larger one, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

INTERVAL = 200  # steps between two choices of the directions (the paper's section 5.3)


class GaLore(torch.optim.Optimizer):
    """For a gradient G (N, M) with N <= M, else for its transpose (the paper's algorithm 2):

    P = the first R left singular vectors of G, chosen anew every INTERVAL steps
    W <- W - lr (decay W + P adam(P^T G))

    with Adam's moments kept for P^T G (R, M) alone; the paper's factor alpha is left to the learning rate. Vectors, and
    matrices with N <= R, are plain AdamW's. A weight's state is plain tensors: `step`, `exp_avg`, `exp_avg_sq`, and
    `basis`, which is P.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "rank": 128})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        is_projected = gradient.ndim == 2 and min(gradient.shape) > group["rank"]
        is_tall = is_projected and gradient.shape[0] > gradient.shape[1]
        wide = (gradient.T if is_tall else gradient).float()
        count = int(state["step"]) if state else 0
        if is_projected and count % INTERVAL == 0:
            state["basis"] = torch.svd_lowrank(wide, q=group["rank"], niter=4)[0]
        low = state["basis"].T @ wide if is_projected else wide
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(low), torch.zeros_like(low)
        state["step"] += 1
        (beta1, beta2), step = group["betas"], count + 1
        mean = state["exp_avg"].lerp_(low, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(low, low, value=1 - beta2)
        update = mean / (square / (1 - beta2**step)).sqrt_().add_(group["eps"]).mul_(1 - beta1**step)
        if is_projected:
            update = state["basis"] @ update
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.T if is_tall else update, alpha=-group["lr"])
