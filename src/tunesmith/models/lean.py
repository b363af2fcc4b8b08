"""Layers of decoders that keep less for the backward pass: the norm its input instead of a float32 copy,
the gated unit its two inputs instead of three tensors. What is missing is computed again, by who keeps their
outputs too (`recompute.py`).

The layers of a class are replaced only after one of them has given the same output as its replacement on a
random input, so a model family that computes otherwise under the same names keeps its own.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tunesmith.models.kernels import kernel
from tunesmith.models.recompute import with_recipe

PROBE_ROWS = 4


def use_lean_layers(model: nn.Module) -> None:
    """Replaces the forward of every RMSNorm and SiLU-gated unit that can be."""
    proved: dict[type[nn.Module], bool] = {}  # one layer speaks for all of its class
    for module in model.modules():
        forward = _find_lean(module)
        if forward is None:
            continue
        if type(module) not in proved:
            proved[type(module)] = _gives_the_same(module, forward)
        if proved[type(module)]:
            vars(module)["forward"] = MethodType(forward, module)


def _find_lean(module: nn.Module) -> Any:
    if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        return _norm
    parts = ("gate_proj", "up_proj", "down_proj")
    is_gated = all(isinstance(getattr(module, part, None), nn.Linear) for part in parts)
    # The one activation whose derivative the replacement knows.
    return _gate if is_gated and type(getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation") else None


@torch.no_grad()
def _gives_the_same(module: Any, forward: Any) -> bool:
    weight = module.weight if forward is _norm else module.gate_proj.weight
    draw = torch.Generator().manual_seed(0)  # a new head is drawn from the global numbers, which stay as they are
    x = torch.randn(PROBE_ROWS, weight.shape[-1], generator=draw).to(weight)
    return torch.allclose(module(x), forward(module, x), atol=1e-6)


def _norm(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    epsilon = module.variance_epsilon
    out: torch.Tensor = _RMSNorm.apply(hidden, module.weight, epsilon)  # type: ignore[no-untyped-call]
    return with_recipe(out, lambda x, weight_D: _normalise(x, weight_D, epsilon)[0], hidden, module.weight)


@kernel
def _normalise(x: torch.Tensor, weight_D: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, 1 / rms(x))"""
    full = x.float()
    inverse = torch.rsqrt(full.square().mean(-1, keepdim=True) + epsilon)
    return weight_D * (full * inverse).to(x.dtype), inverse


def _gate(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    a, b = module.gate_proj(hidden), module.up_proj(hidden)
    gated: torch.Tensor = _Gated.apply(a, b)  # type: ignore[no-untyped-call]
    out: torch.Tensor = module.down_proj(with_recipe(gated, _silu_product, a, b))
    return out


@kernel
def _silu_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.silu(a).mul_(b)


@kernel
def _silu_product_slopes(a: torch.Tensor, b: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ops.aten.silu_backward(grad * b, a), F.silu(a).mul_(grad)


@kernel
def _normalised_slopes(
    x: torch.Tensor, weight_D: torch.Tensor, inverse: torch.Tensor, grad: torch.Tensor, wants_weight: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    n = x.float().mul_(inverse)
    grad = grad.float()
    grad_weight = (grad * n).flatten(0, -2).sum(0).to(weight_D.dtype) if wants_weight else None
    slope = grad * weight_D.float()
    slope.sub_(n.mul_((slope * n).mean(-1, keepdim=True))).mul_(inverse)
    return slope.to(x.dtype), grad_weight


class _RMSNorm(torch.autograd.Function):
    """y = w n with n = x / rms(x), in float32 (Zhang & Sennrich 2019, arXiv 1910.07467).

    dx = (g w - n mean(g w n)) / rms(x), dw = sum g n.
    """

    @staticmethod
    def forward(ctx, x, weight_D, epsilon):  # type: ignore[no-untyped-def]
        y, inverse = _normalise(x, weight_D, epsilon)
        ctx.save_for_backward(x, weight_D, inverse)
        return y

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight_D, inverse = ctx.saved_tensors
        return *_normalised_slopes(x, weight_D, inverse, grad, ctx.needs_input_grad[1]), None


class _Gated(torch.autograd.Function):
    """silu(a) b, elementwise (Shazeer 2020, arXiv 2002.05202)."""

    @staticmethod
    def forward(ctx, a, b):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(a, b)
        return _silu_product(a, b)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        a, b = ctx.saved_tensors
        return _silu_product_slopes(a, b, grad)
