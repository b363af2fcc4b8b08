"""A few weights of a frozen matrix that are trained: the others have neither gradient nor optimizer state.

Shape letters: T tokens, I inputs, O outputs, K trained weights of a matrix.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from tunesmith.runtime import working_dtype

VALUES, PLACES = "sparse_values", "sparse_places"


def free_weights(linear: nn.Module, places_K: torch.Tensor) -> None:
    """Trains a linear layer's weights at `places_K` of its flattened matrix, from what they are; no others."""
    weight: torch.Tensor = linear.weight  # type: ignore[assignment]
    linear.register_parameter(VALUES, nn.Parameter(weight.detach().view(-1)[places_K].float()))
    linear.register_buffer(PLACES, places_K, persistent=False)
    vars(linear)["forward"] = MethodType(_forward, linear)


def bind_weights(linear: nn.Module) -> None:
    """A plain layer again, whose weights are what they have become."""
    settle_weights(linear)
    delattr(linear, VALUES)
    delattr(linear, PLACES)
    del vars(linear)["forward"]


def settle_weights(linear: Any) -> None:
    """Writes the trained values into the matrix."""
    values_K = getattr(linear, VALUES).detach()
    linear.weight.data.view(-1).index_copy_(0, getattr(linear, PLACES), values_K.to(linear.weight.dtype))


def is_sparse(module: nn.Module) -> bool:
    return hasattr(module, VALUES)


def _forward(linear: Any, x: torch.Tensor) -> torch.Tensor:
    settle_weights(linear)
    dtype = working_dtype(x)
    bias_O = None if linear.bias is None else linear.bias.to(dtype)
    places_K, values_K = getattr(linear, PLACES), getattr(linear, VALUES)
    out: torch.Tensor = _Sparse.apply(  # type: ignore[no-untyped-call]
        x.to(dtype), values_K, linear.weight, places_K, bias_O, isinstance(linear, Conv1D)
    )
    return out


class _Sparse(torch.autograd.Function):
    """y = x W^T + b. Gradients for x and for the K values: dx = g W, and g^T x at their places.

    The whole of g^T x is there for a moment only, of one layer after the other. W is not kept: it is a parameter, and
    stays as it is until the next update.
    """

    @staticmethod
    def forward(ctx, x, values_K, weight, places_K, bias_O, is_transposed):  # type: ignore[no-untyped-def]  # noqa: PLR0913
        ctx.save_for_backward(x, places_K)
        ctx.weight, ctx.is_transposed = weight, is_transposed
        w_OI = (weight.T if is_transposed else weight).to(x.dtype)
        return F.linear(x, w_OI, bias_O)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, places_K = ctx.saved_tensors
        x_TI, g_TO = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        w_OI = (ctx.weight.T if ctx.is_transposed else ctx.weight).to(grad.dtype)
        dx = (grad @ w_OI) if ctx.needs_input_grad[0] else None
        whole = x_TI.T @ g_TO if ctx.is_transposed else g_TO.T @ x_TI
        return dx, whole.view(-1)[places_K].float(), None, None, None, None
