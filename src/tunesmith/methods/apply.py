"""A network put under a method, ready to train."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from tunesmith.config import TrainingConfig
from tunesmith.errors import InputError
from tunesmith.methods.method import REFERENCE_WIDTH, Method
from tunesmith.models.checkpointing import checkpoint_blocks
from tunesmith.models.embedding import use_row_gradients
from tunesmith.models.heads import TASK_HEADS
from tunesmith.models.kernels import set_compile
from tunesmith.models.layers import find_layers
from tunesmith.models.load import Network, settle_precision
from tunesmith.models.quantized import quantize_base
from tunesmith.models.recompute import set_recompute
from tunesmith.train.loop import trainable
from tunesmith.train.optim import Rate


def put_under(
    network: Network, method: Method, config: TrainingConfig, dtype: torch.dtype, place: Callable[[Network], None]
) -> None:
    """A loaded network under a method, in its precision and, by `place`, where it computes; ready to train.

    Raises:
        InputError: the method, or a setting of it, cannot be applied to this network.
    """
    if config.weights_dtype == "bfloat16" and not (dtype == torch.bfloat16 and config.optim == "adamw_8bit"):
        raise InputError(
            "weights_dtype bfloat16 needs optim adamw_8bit, which rounds at random, and products in bfloat16; here are "
            f"{config.optim} and {str(dtype).removeprefix('torch.')}"
        )
    if config.loftq and config.quantization is None:
        raise InputError("loftq begins with what quantization loses: give --quantization nf4 with it")
    if config.loftq and method.inform is not None:
        raise InputError(f"{method.name} begins in a way of its own, so loftq cannot: take lora, rslora or lora-plus")
    if config.optimizer_in_backward and method.attend is not None:
        raise InputError(f"{method.name} looks at all gradients before the update: optimizer_in_backward keeps none")
    method.apply(network, config)
    if config.l2_sp and network.wrapper is not network.model:
        raise InputError(
            f"l2_sp holds pretrained weights near to where they began, and {method.name} trains none of them; "
            "weight_decay does the like for new ones"
        )
    if config.quantization is not None:  # of the weights as they were read: so does whoever opens the run
        quantize_base(network, config.quantization, config.loftq)
    settle_precision(network, dtype, getattr(torch, config.weights_dtype))
    place(network)
    set_compile(config.compile, network.model.device)
    set_recompute(config.recompute)
    use_row_gradients(network.model)
    if config.gradient_checkpointing:
        checkpoint_blocks(network)


# What is preferred is learned from a model that writes well already, and more slowly than writing is.
SHARE_OF_RATE = 0.1


def default_learning_rate(method: Method, network: Network) -> float:
    with_new_head, writing = method.learning_rate
    rate = with_new_head if network.task in TASK_HEADS else writing
    if network.task == "preference":
        rate *= SHARE_OF_RATE
    if not method.by_width:
        return rate
    return float(f"{rate * REFERENCE_WIDTH / network.model.config.hidden_size:.2g}")


def find_rates(network: Network, method: Method, config: TrainingConfig) -> Mapping[str, Rate]:
    """How each trained parameter learns, by name; those that do so plainly are left out.

    With `layer_decay` d the block k below the last learns d^k times as fast, the embeddings below all of them d^L
    (Howard & Ruder 2018, arXiv 1801.06146, section 3.2; Clark et al. 2020). With `gradual_unfreezing` n it begins k n
    epochs later than the last block (the same, section 3.3).
    """
    blocks = find_layers(network.model)
    depths = {p: len(blocks) - 1 - place for place, block in enumerate(blocks) for p in block.parameters()}
    rates = {}
    for name, parameter in trainable(network):
        depth = depths.get(parameter, len(blocks) if "embed" in name else 0)
        rates[name] = Rate(method.rate_of(name) * config.layer_decay**depth, depth * config.gradual_unfreezing)
    return {name: rate for name, rate in rates.items() if rate != Rate()}
