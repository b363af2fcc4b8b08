"""LoRA and DoRA under PEFT's parameters: one autograd function per linear layer, which keeps the input once and adds
the low-rank product in place. The matrix W + s B A is never made.

Shape letters: T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.variants import DoraLinearVariant
from torch import nn
from torch.nn import functional as F

from tunesmith.models.layers import matrix_of
from tunesmith.models.quantized import PACKED
from tunesmith.models.recompute import find_recipe, recall, remember
from tunesmith.runtime import working_dtype


def fuse(wrapped: nn.Module) -> None:
    """Lets the LoRA and DoRA layers of a PEFT model compute by our functions."""
    for module in wrapped.modules():
        if isinstance(module, LoraLinear):
            vars(module)["forward"] = MethodType(_forward, module)


def _forward(layer: LoraLinear, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """In place of PEFT's `forward` on one layer; what `_is_ours` refuses is PEFT's to do."""
    if args or kwargs or not _is_ours(layer):
        return type(layer).forward(layer, x, *args, **kwargs)
    name, base, dtype = layer.active_adapters[0], layer.get_base_layer(), working_dtype(x)
    a_RI: torch.Tensor = layer.lora_A[name].weight  # type: ignore[assignment]
    b_OR: torch.Tensor = layer.lora_B[name].weight  # type: ignore[assignment]
    parts = (
        x.to(dtype),
        _find_frozen(base),
        None if base.bias is None else base.bias.to(dtype),
        a_RI.to(dtype),
        b_OR.to(dtype),
        layer.scaling[name],
        find_recipe(x),
    )
    out: torch.Tensor
    if name not in layer.lora_variant:
        out = _LowRank.apply(*parts)  # type: ignore[no-untyped-call]
    else:
        out = _Directed.apply(*parts, layer.lora_magnitude_vector[name].weight)  # type: ignore[no-untyped-call]
    return out


class _Whole:
    """A frozen matrix as it is."""

    def __init__(self, weight_OI: torch.Tensor) -> None:
        self._weight_OI = weight_OI

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        return self._weight_OI.to(dtype)


def _find_frozen(base: Any) -> Any:
    """What gives the matrix (O, I) when it is read: packed in few bits, or whole."""
    packed = getattr(base, PACKED, None)
    if packed is not None:
        return packed
    return _Whole(matrix_of(base))


def _is_ours(layer: LoraLinear) -> bool:
    """A single LoRA or DoRA adapter at work, without a bias of its own or dropout."""
    name = layer.active_adapters[0] if layer.active_adapters else ""
    if len(layer.active_adapters) != 1 or name not in layer.lora_A or layer.lora_bias[name]:
        return False
    dropout, variant = layer.lora_dropout[name], layer.lora_variant.get(name)
    drops = isinstance(dropout, nn.Dropout) and dropout.p > 0 and layer.training
    return not (layer.disable_adapters or layer.merged or drops) and (
        variant is None or isinstance(variant, DoraLinearVariant)
    )


@torch.no_grad()
def find_norms(w_OI: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, scaling: float) -> torch.Tensor:
    """Norms (O,) of the rows of W + s B A in float32, from |w|^2 + 2 s b.(A w) + s^2 b.(A A^T b), which needs no
    matrix of its size. No gradient flows through them (Liu et al. 2024, arXiv 2402.09353, section 4.3)."""
    w_OI, a_RI, b_OR = w_OI.float(), a_RI.float(), b_OR.float()
    with torch.autocast(w_OI.device.type, enabled=False):  # it would multiply in bfloat16
        own_O = torch.linalg.vector_norm(w_OI, dim=1).square()
        mixed_O = ((w_OI @ a_RI.T) * b_OR).sum(1)
        added_O = ((b_OR @ (a_RI @ a_RI.T)) * b_OR).sum(1)
    return (own_O + 2 * scaling * mixed_O + scaling**2 * added_O).clamp_min_(0).sqrt_()


class _LowRank(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T for a frozen W. Gradients for x, A and B only:

    dx = g W + s (g B) A,  dA = s (g B)^T x,  dB = s g^T (x A^T).

    x is kept for dA, or made again where it came with a recipe. W is read where it is needed and not kept.
    """

    @staticmethod
    def forward(ctx, x, frozen, bias_O, a_RI, b_OR, scaling, recipe):  # type: ignore[no-untyped-def]  # noqa: PLR0913
        low_TR, y_TO = _multiply(x, frozen.read(x.dtype), bias_O, a_RI, b_OR, scaling)
        _remember(ctx, x, frozen, scaling, recipe, (a_RI, b_OR, low_TR))  # type: ignore[no-untyped-call]
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        a_RI, b_OR, low_TR, *parts = ctx.saved_tensors
        g_TO = grad.reshape(-1, grad.shape[-1])
        return *_gradients(ctx, g_TO, a_RI, b_OR, low_TR, parts), None, None  # type: ignore[no-untyped-call]


class _Directed(torch.autograd.Function):
    """y = c z + b with z = x W^T + s (x A^T) B^T and c = m / |W + s B A| by rows, the norms taken as constant.

    With h = c g the gradients for x, A and B are those of LoRA with h for g, and dm = sum_T(g z) / |W + s B A|.
    """

    @staticmethod
    def forward(ctx, x, frozen, bias_O, a_RI, b_OR, scaling, recipe, m_O):  # type: ignore[no-untyped-def]  # noqa: PLR0913
        w_OI = frozen.read(x.dtype)
        norms_O = find_norms(w_OI, a_RI, b_OR, scaling)
        low_TR, z_TO = _multiply(x, w_OI, None, a_RI, b_OR, scaling)
        c_O = (m_O.float() / norms_O).to(z_TO.dtype)
        _remember(ctx, x, frozen, scaling, recipe, (a_RI, b_OR, low_TR, z_TO, c_O, norms_O))  # type: ignore[no-untyped-call]
        ctx.kind = m_O.dtype
        y_TO = z_TO * c_O if bias_O is None else torch.addcmul(bias_O, z_TO, c_O)
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        a_RI, b_OR, low_TR, z_TO, c_O, norms_O, *parts = ctx.saved_tensors
        g_TO = grad.reshape(-1, grad.shape[-1])
        grad_m = ((g_TO * z_TO).sum(0, dtype=torch.float32) / norms_O).to(ctx.kind)
        back = _gradients(ctx, g_TO * c_O, a_RI, b_OR, low_TR, parts)  # type: ignore[no-untyped-call]
        return *back, None, None, grad_m


def _multiply(
    x: torch.Tensor,
    w_OI: torch.Tensor,
    bias_O: torch.Tensor | None,
    a_RI: torch.Tensor,
    b_OR: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x A^T (T, R), and x W^T + b + s (x A^T) B^T (T, O)."""
    x_TI = x.reshape(-1, x.shape[-1])
    low_TR = F.linear(x_TI, a_RI)
    return low_TR, F.linear(x_TI, w_OI, bias_O).addmm_(low_TR, b_OR.T, alpha=scaling)


def _remember(ctx, x, frozen, scaling, recipe, tensors):  # type: ignore[no-untyped-def]
    """What `_gradients` needs, and further tensors in front of it."""
    remember(ctx, x, recipe, *tensors)
    ctx.frozen, ctx.scaling, ctx.shape = frozen, scaling, x.shape


def _gradients(ctx, g_TO, a_RI, b_OR, low_TR, parts):  # type: ignore[no-untyped-def]
    """Of x, W, b, A and B, from the gradient of x W^T + s (x A^T) B^T."""
    x_TI = recall(ctx, parts).reshape(-1, ctx.shape[-1])
    back_TR = (g_TO @ b_OR) * ctx.scaling
    grad_x = None
    if ctx.needs_input_grad[0]:
        grad_x = (g_TO @ ctx.frozen.read(ctx.dtype)).addmm_(back_TR, a_RI).view(ctx.shape)
    return grad_x, None, None, back_TR.T @ x_TI, (g_TO.T @ low_TR) * ctx.scaling
