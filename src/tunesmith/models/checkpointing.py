"""Activation checkpointing: a block keeps its input alone and runs a second time in the backward pass
(Chen et al. 2016, arXiv 1604.06174).

Losses and gradients are the same to the bit: the second run draws the random numbers of the first, and the
generators then stand where they would have stood. Frozen blocks below everything that is trained keep nothing
as it is, so they run once.
"""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tunesmith.models.layers import find_layers
from tunesmith.models.load import Network
from tunesmith.models.prefix import count_frozen


def checkpoint_blocks(network: Network) -> int:
    """Lets every block that takes part in the backward pass run twice; returns how many.

    What hooks of a block compute (bottleneck adapters) stays outside and is kept. Call it when it is settled what is
    trained; evaluation is not touched.
    """
    layers = list(find_layers(network.model))[count_frozen(network) :]
    for layer in layers:
        vars(layer)["forward"] = MethodType(_forward, layer)
    return len(layers)


def _forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    run = partial(type(layer).forward, layer, **kwargs)
    if not (layer.training and torch.is_grad_enabled()):
        return run(*args)
    # The kind that is not reentrant stops the second run at the last tensor that is needed: in a block of full
    # tuning that spares the last product, a quarter of the run.
    return checkpoint(run, *args, use_reentrant=False)
