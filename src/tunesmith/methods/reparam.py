"""Reparameterised tuning: the change of a frozen matrix is written as something smaller.

Parameters and files are PEFT's. For plain LoRA the computation is ours: one autograd function per
linear layer, which keeps the input once and adds the low-rank product in place.

Shape letters: T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft import LoraConfig, TaskType
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from tunesmith.config import TrainingConfig
from tunesmith.errors import InputError
from tunesmith.models.layers import linear_names
from tunesmith.models.lean import find_recipe
from tunesmith.models.load import Network
from tunesmith.models.wrap import wrap
from tunesmith.runtime import working_dtype


def add_lora(network: Network, config: TrainingConfig) -> None:
    """W + (alpha / r) B A with B zero at the start (Hu et al. 2022, arXiv 2106.09685)."""
    _add(network, config, use_dora=False)


def add_dora(network: Network, config: TrainingConfig) -> None:
    """LoRA on the direction of W, its column norms trained apart (Liu et al. 2024, arXiv 2402.09353)."""
    _add(network, config, use_dora=True)


def _add(network: Network, config: TrainingConfig, use_dora: bool) -> None:
    present = linear_names(network.model)
    targets = list(config.target_modules or present)
    unknown = [target for target in targets if target not in present]
    if unknown:
        raise InputError(
            f"target_modules: '{network.source}' has no linear layer called '{unknown[0]}'. It has {', '.join(present)}"
        )
    head = network.head_modules
    peft_config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if network.task == "generation" else TaskType.SEQ_CLS,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        # The names of layers in the body may stand in the head too ("dense" in BERT's pooler).
        exclude_modules=rf"(.*\.)?({'|'.join(head)})(\..*)?" if head else None,
        modules_to_save=list(head) or None,
        use_dora=use_dora,
        fan_in_fan_out=_has_transposed_linears(network.model),
        base_model_name_or_path=network.folder,
    )
    adopt_lora(network, wrap(network.model, peft_config))


def adopt_lora(network: Network, wrapped: nn.Module) -> None:
    """Takes over a PEFT model: its base runs, it saves. Plain LoRA layers compute by our function."""
    network.wrapper = wrapped
    for module in wrapped.modules():
        if isinstance(module, LoraLinear) and not module.lora_variant:
            vars(module)["forward"] = MethodType(_forward, module)


def _has_transposed_linears(model: nn.Module) -> bool:
    return any(isinstance(module, Conv1D) for module in model.modules())


def _forward(layer: LoraLinear, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """In place of PEFT's `forward` on one layer; anything but a single plain adapter is PEFT's to do."""
    name = layer.active_adapters[0] if layer.active_adapters else ""
    plain = len(layer.active_adapters) == 1 and name in layer.lora_A and not layer.lora_bias[name]
    dropout = layer.lora_dropout[name] if plain else None
    drops = isinstance(dropout, nn.Dropout) and dropout.p > 0 and layer.training
    if layer.disable_adapters or layer.merged or not plain or drops or args or kwargs:
        return type(layer).forward(layer, x, *args, **kwargs)
    base = layer.get_base_layer()
    weight_OI = base.weight.T if isinstance(base, Conv1D) else base.weight
    dtype = working_dtype(x)
    out: torch.Tensor = _LowRank.apply(  # type: ignore[no-untyped-call]
        x.to(dtype),
        weight_OI.to(dtype),
        None if base.bias is None else base.bias.to(dtype),
        layer.lora_A[name].weight.to(dtype),
        layer.lora_B[name].weight.to(dtype),
        layer.scaling[name],
        find_recipe(x),
    )
    return out


class _LowRank(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T for a frozen W. Gradients for x, A and B only:

    dx = g W + s (g B) A,  dA = s (g B)^T x,  dB = s g^T (x A^T).

    x is kept for dA, or made again where it came with a recipe.
    """

    @staticmethod
    def forward(ctx, x, w_OI, bias_O, a_RI, b_OR, scaling, recipe):  # type: ignore[no-untyped-def]  # noqa: PLR0913
        x_TI = x.reshape(-1, x.shape[-1])
        low_TR = F.linear(x_TI, a_RI)
        y_TO = F.linear(x_TI, w_OI, bias_O)
        y_TO.addmm_(low_TR, b_OR.T, alpha=scaling)
        ctx.save_for_backward(w_OI, a_RI, b_OR, low_TR, *([x] if recipe is None else recipe.parts))
        ctx.make = None if recipe is None else recipe.make
        ctx.scaling, ctx.shape = scaling, x.shape
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        w_OI, a_RI, b_OR, low_TR, *parts = ctx.saved_tensors
        x = parts[0] if ctx.make is None else ctx.make(*parts).to(w_OI.dtype)
        x_TI = x.reshape(-1, ctx.shape[-1])
        g_TO = grad.reshape(-1, grad.shape[-1])
        back_TR = (g_TO @ b_OR) * ctx.scaling
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (g_TO @ w_OI).addmm_(back_TR, a_RI).view(ctx.shape)
        return grad_x, None, None, back_TR.T @ x_TI, (g_TO.T @ low_TR) * ctx.scaling, None, None
