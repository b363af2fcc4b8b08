"""Muon: AdamW, but matrices of the blocks change by an orthogonal matrix (Jordan et al. 2024,
kellerjordan.github.io/posts/muon), so that all directions of a matrix learn, not only those of the largest gradients.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

MOMENTUM = 0.95
# Five steps of this quintic bring all singular values near to 1: Jordan's coefficients.
STEPS, QUINTIC = 5, (3.4445, -4.7750, 2.0315)
# The size that AdamW's updates have on average, so that one learning rate serves both (Liu et al. 2025, arXiv
# 2502.16982, section 2.2).
SIZE_OF_ADAMW = 0.2
# Embeddings and heads, whose rows are by word, learn by AdamW; so do those by distance.
BY_WORD = re.compile(r"embed|relative|wte|wpe|shared|lm_head|classifier|score|vocab|cls\.|decoder\.weight$")


def is_hidden_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon is for it: a matrix, and not one that has a row for each word."""
    return parameter.ndim == 2 and BY_WORD.search(name) is None


def orthogonal(matrix_OI: torch.Tensor) -> torch.Tensor:
    """Near to U V^T where the matrix is U S V^T: singular values between 0.7 and 1.2 (Newton-Schulz)."""
    x = matrix_OI if matrix_OI.shape[0] <= matrix_OI.shape[1] else matrix_OI.T
    x = x / (x.norm() + 1e-7)
    a, b, c = QUINTIC
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if matrix_OI.shape[0] <= matrix_OI.shape[1] else x.T


class Muon(torch.optim.Optimizer):
    """Groups with "is_hidden" by Muon with Nesterov's momentum, others by AdamW; decoupled decay for both."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "is_hidden": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            update = self._orthogonal_update if group["is_hidden"] else self._adam_update
            for parameter in group["params"]:
                if parameter.grad is not None:
                    change = update(parameter, parameter.grad, group)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-group["lr"])

    def _orthogonal_update(self, parameter: nn.Parameter, grad: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(grad, 1 - MOMENTUM)
        return orthogonal(grad.lerp(momentum, MOMENTUM)) * (SIZE_OF_ADAMW * max(parameter.shape) ** 0.5)

    def _adam_update(self, parameter: nn.Parameter, grad: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        first, second = group["betas"]
        state["step"] += 1
        mean = state["exp_avg"].lerp_(grad, 1 - first)
        square = state["exp_avg_sq"].mul_(second).addcmul_(grad, grad, value=1 - second)
        num = state["step"]
        return (mean / (1 - first**num)) / ((square / (1 - second**num)).sqrt() + group["eps"])
