"""What a model is made of: its blocks, norms and linear layers, found without knowing its family."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import InputError
from tunesmith.models.load import Network


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of transformer blocks: the longest list of modules in the body. Of an encoder-decoder its blocks in
    the order in which they run, the encoder's and then the decoder's; changing this list changes no model."""
    if model.config.is_encoder_decoder:
        halves = (model.get_encoder(), model.get_decoder())
        # T5's blocks are lists too, and may be longer than the stack.
        stacks = [next(one for one in half.modules() if isinstance(one, nn.ModuleList)) for half in halves]
        return nn.ModuleList([block for stack in stacks for block in stack])
    lists = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise InputError(f"{type(model).__name__}: no stack of layers found in it")
    return max(lists, key=len)


def is_norm(module: nn.Module) -> bool:
    """LayerNorm, RMSNorm and their relatives, which every model family spells in its own way."""
    return "norm" in type(module).__name__.lower()


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last name parts of the linear layers inside the blocks, for example q_proj; sorted."""
    names = find_layers(model).named_modules()
    return sorted({name.rpartition(".")[2] for name, module in names if isinstance(module, nn.Linear | Conv1D)})


def matrix_of(linear: nn.Module) -> torch.Tensor:
    """Its weights (outputs, inputs), whichever way it keeps them."""
    weight: torch.Tensor = linear.weight  # type: ignore[assignment]
    return weight.T if isinstance(linear, Conv1D) else weight


def freeze_body(network: Network) -> None:
    """Nothing but the head requires a gradient."""
    network.model.requires_grad_(False)
    for name, module in network.model.named_modules():
        if name.rpartition(".")[2] in network.head_modules:
            module.requires_grad_(True)
