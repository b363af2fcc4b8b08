"""Linear layers that train, which keep little for the backward pass. Under autocast PyTorch keeps a weight's copy in
bfloat16 and one of the input for every layer that reads it; here the weight is rounded again where it is needed, and
the input is rounded once for all who read it, or made again where it came with a recipe (`recompute.py`).

Shape letters: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tunesmith.models.recompute import find_recipe, kept, recall, remember
from tunesmith.runtime import working_dtype


def use_lean_linears(model: nn.Module) -> None:
    """Lets the linear layers of a model compute by our function whenever their weight is trained."""
    for module in model.modules():
        if type(module) is nn.Linear:
            vars(module)["forward"] = MethodType(_forward, module)


def _forward(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    if not (layer.weight.requires_grad and torch.is_grad_enabled()):
        return F.linear(x, layer.weight, layer.bias)
    parts = (x, _rounded(x, working_dtype(x)), layer.weight, layer.bias, find_recipe(x))
    out: torch.Tensor = _Linear.apply(*parts)  # type: ignore[no-untyped-call]
    return out


def _rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x in the type of the products, without its graph; the same tensor for all who ask for it."""
    if x.dtype == dtype:
        return x.detach()
    version, copy = getattr(x, "rounded", (None, None))
    if copy is None or version != x._version:
        copy = x.detach().to(dtype)
        vars(x)["rounded"] = (x._version, copy)
    return copy


class _Linear(torch.autograd.Function):
    """y = x W^T + b. Gradients: dx = g W, dW = g^T x, db = sum_T g; products in the type of the rounded x."""

    @staticmethod
    def forward(ctx, x, rounded, weight_OI, bias_O, recipe):  # type: ignore[no-untyped-def]
        dtype = rounded.dtype
        copy_OI = weight_OI.to(dtype)
        remember(ctx, rounded, recipe, weight_OI if kept(copy_OI) is None else copy_OI)
        ctx.types = x.dtype, weight_OI.dtype, None if bias_O is None else bias_O.dtype
        return F.linear(rounded, copy_OI, None if bias_O is None else bias_O.to(dtype))

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        weight_OI, *parts = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.types
        g_TO = grad.reshape(-1, grad.shape[-1])
        grad_x: Any = None
        if ctx.needs_input_grad[0]:
            grad_x = (g_TO @ weight_OI.to(ctx.dtype)).view(*grad.shape[:-1], -1).to(of_x)
        x = recall(ctx, parts)
        grad_OI = (g_TO.T @ x.reshape(-1, x.shape[-1])).to(of_weight)
        grad_O = None if of_bias is None else g_TO.sum(0, dtype=of_bias)
        return grad_x, None, grad_OI, grad_O, None
