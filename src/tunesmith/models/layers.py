"""What a model is made of: its blocks, norms and linear layers, found without knowing its family."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

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


def final_norms(model: PreTrainedModel) -> list[nn.Module]:
    """What stands between the last block and the head; not a norm of the embeddings, which stands beside it in some."""
    top = model.get_decoder() if model.config.is_encoder_decoder else model.base_model
    return [child for name, child in top.named_children() if is_norm(child) and "embed" not in name]


@dataclass(frozen=True, slots=True)
class Sublayers:
    """Linear layers of a block: where attention ends, where the feed-forward layer begins and ends."""

    attention_out: nn.Module
    feed_in: nn.Module
    feed_out: nn.Module


def find_sublayers(layer: nn.Module) -> Sublayers:
    """By the order in which a block keeps its linear layers, those of attention under names with "att".

    Raises:
        InputError: a block without attention or feed-forward layer of its own, or with experts.
    """
    linears = [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    attention = [module for name, module in linears if any(map(is_attention, name.split(".")))]
    feed = [module for name, module in linears if module not in attention]
    if not attention or not 2 <= len(feed) <= MOST_IN_FEED_FORWARD:
        raise InputError(
            f"{type(layer).__name__}: attention and feed-forward layer are not told apart; its linear layers are "
            f"{', '.join(name for name, _ in linears)}"
        )
    return Sublayers(attention[-1], feed[0], feed[-1])


MOST_IN_FEED_FORWARD = 3  # a gate, up and down


def is_attention(name: str) -> bool:
    """A part of a block by its own name: attention, attn, self_attn, SelfAttention."""
    return "att" in name.lower() and "norm" not in name.lower()


def is_cross_attention(name: str) -> bool:
    """The part of a decoder's block that reads the encoder: EncDecAttention, encoder_attn, crossattention."""
    return is_attention(name) and any(word in name.lower() for word in ("encdec", "encoder", "cross"))


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last name parts of the linear layers inside the blocks, for example q_proj; sorted."""
    names = find_layers(model).named_modules()
    return sorted({name.rpartition(".")[2] for name, module in names if isinstance(module, nn.Linear | Conv1D)})


def find_linears(model: PreTrainedModel, names: Collection[str]) -> tuple[list[str], list[str]]:
    """Whole names of the linear layers that end so: those inside the blocks, and those elsewhere."""
    blocks = set(find_layers(model).modules())
    inside: list[str] = []
    elsewhere: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name.rpartition(".")[2] in names:
            (inside if module in blocks else elsewhere).append(name)
    return inside, elsewhere


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
