"""Frozen matrices in eight or four bits, made whole again where a product needs them (QLoRA: Dettmers et al. 2023,
arXiv 2305.14314). Adapters beside them are trained and saved as ever.

int8  a row is divided by its largest magnitude / 127 and rounded: a byte a weight
nf4   64 weights are divided by their largest magnitude, and each becomes the nearest of 16 values, which lie where a
      normal distribution has equal shares: half a byte a weight, and a sixteenth for the magnitudes

Shape letters: I inputs, O outputs, B blocks of 64.
"""

from __future__ import annotations

from functools import cache
from types import MethodType
from typing import Any, Literal, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import InputError
from tunesmith.models.layers import matrix_of
from tunesmith.models.load import Network

Quantization = Literal["int8", "nf4"]
BLOCK = 64
PACKED = "packed"
MORE_COLUMNS = 8  # of a basis than directions wanted (Halko et al. 2011, arXiv 0909.4061, section 4.2)


class Int8(nn.Module):
    """A matrix (O, I) as codes (O, I) and a scale for each row (O, 1)."""

    def __init__(self, weight_OI: torch.Tensor) -> None:
        super().__init__()
        weight_OI = weight_OI.float()
        # A row of zeros has any scale.
        scales_O1 = weight_OI.abs().amax(1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny) / 127
        self.num_weights = weight_OI.numel()
        self.register_buffer("codes", (weight_OI / scales_O1).round_().to(torch.int8), persistent=False)
        self.register_buffer("scales", scales_O1, persistent=False)

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        return (cast("torch.Tensor", self.codes) * cast("torch.Tensor", self.scales)).to(dtype)


class NF4(nn.Module):
    """A matrix (O, I) as two codes a byte, row after row, and the largest magnitude of each block of 64 (B, 1)."""

    def __init__(self, weight_OI: torch.Tensor) -> None:
        super().__init__()
        self._shape, self.num_weights = weight_OI.shape, weight_OI.numel()
        flat = weight_OI.float().reshape(-1)
        blocks_BK = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
        scales_B1 = blocks_BK.abs().amax(1, keepdim=True)
        values = nf4_values().to(flat.device)
        middles = (values[1:] + values[:-1]) / 2
        quotients_BK = blocks_BK / scales_B1.clamp_min(torch.finfo(torch.float32).tiny)
        codes = torch.bucketize(quotients_BK, middles).view(-1, 2)
        self.register_buffer("codes", (codes[:, 0] * 16 + codes[:, 1]).to(torch.uint8), persistent=False)
        self.register_buffer("scales", scales_B1, persistent=False)

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        codes = cast("torch.Tensor", self.codes)
        values_BK = _pairs(codes.device).index_select(0, codes.int()).view(-1, BLOCK)
        # In float32, as the magnitudes are: an eight-bit mantissa would be rounded twice.
        whole = (values_BK * cast("torch.Tensor", self.scales)).view(-1)
        return whole[: self.num_weights].view(self._shape).to(dtype)


KINDS: dict[Quantization, type[Int8 | NF4]] = {"int8": Int8, "nf4": NF4}


def nf4_values() -> torch.Tensor:
    """The 16 values (16,): quantiles of a normal distribution, seven below zero, zero and eight above, from -1 to 1
    (QLoRA, appendix E)."""
    # Half of 1/32 and 1/30 is cut off at the ends, where quantiles would be infinite.
    end = 1 - (1 / 32 + 1 / 30) / 2
    positive, negative = (
        torch.special.ndtri(torch.linspace(end, 0.5, count, dtype=torch.float64, device="cpu")[:-1]) for count in (9, 8)
    )
    values = torch.cat([positive, -negative, positive.new_zeros(1)]).sort().values
    return (values / values.abs().max()).float()


@cache
def _pairs(device: torch.device) -> torch.Tensor:
    """The two values (256, 2) of every byte."""
    values = nf4_values().to(device)
    codes = torch.arange(256, device=device)
    return torch.stack([values[codes // 16], values[codes % 16]], 1)


def quantize_base(network: Network, kind: Quantization, loftq: bool = False) -> None:
    """Packs the matrices beside which LoRA or DoRA learns. With `loftq` LoRA begins with what packing them loses.

    Raises:
        InputError: there are none, or DoRA drops inputs, which only PEFT's own code does and for whole matrices; or an
            adapter that begins in a way of its own was to begin with the loss.
    """
    layers = [module for module in network.root.modules() if isinstance(module, LoraLinear)]
    if not layers:
        raise InputError("quantization is for matrices that stay frozen beside what is trained: take lora or dora")
    for layer in layers:
        if layer.lora_variant and any(isinstance(dropout, nn.Dropout) for dropout in layer.lora_dropout.values()):
            raise InputError("dora with a quantised base cannot drop inputs: set lora_dropout to 0")
        base: Any = layer.get_base_layer()
        weight_OI = matrix_of(base).detach()
        packed = KINDS[kind](weight_OI)
        if loftq and not weight_OI.is_meta:  # a plan has no weights
            _begin_with(layer, weight_OI.float() - packed.read(torch.float32))
        base.add_module(PACKED, packed)
        base.register_parameter("weight", None)
        vars(base)["forward"] = MethodType(_forward, base)


@torch.no_grad()
def _begin_with(layer: LoraLinear, lost_OI: torch.Tensor) -> None:
    """s B A becomes the nearest to `lost_OI` of its rank, so that W is nearly whole at the first step (LoftQ: Li et al.
    2023, arXiv 2310.08659, algorithm 1 with one round, after which the packed matrices are still those of W)."""
    name = layer.active_adapters[0]
    a_RI, b_OR = (cast("nn.Linear", half[name]).weight for half in (layer.lora_A, layer.lora_B))
    if layer.lora_variant or b_OR.any():
        raise InputError(
            "loftq is a way for LoRA to begin, and this method has its own: take lora, rslora or lora-plus"
        )
    rank = len(a_RI)
    left_OQ, sizes_Q, right_IQ = torch.svd_lowrank(lost_OI, q=min(rank + MORE_COLUMNS, *lost_OI.shape), niter=4)
    roots_R = sizes_Q[:rank].sqrt()
    a_RI.copy_((right_IQ[:, :rank] * roots_R).T)
    b_OR.copy_(left_OQ[:, :rank] * roots_R / layer.scaling[name])


def unpack_base(network: Network) -> None:
    """Whole matrices again, of the values that the packed ones stand for."""
    for layer in network.root.modules():
        if isinstance(layer, LoraLinear) and hasattr(base := layer.get_base_layer(), PACKED):
            whole = getattr(base, PACKED).read(torch.float32)
            base.weight = nn.Parameter(whole.T if isinstance(base, Conv1D) else whole, requires_grad=False)
            delattr(base, PACKED)
            del vars(base)["forward"]


def _forward(base: Any, x: torch.Tensor) -> torch.Tensor:
    """The layer by itself, as PEFT asks for it where our function does not serve."""
    return F.linear(x, getattr(base, PACKED).read(x.dtype), None if base.bias is None else base.bias.to(x.dtype))
