"""Selective tuning: some of the model's own weights are trained, the rest stay as they are."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tunesmith.config import TrainingConfig
from tunesmith.errors import InputError
from tunesmith.models.layers import find_layers, freeze_body, is_norm
from tunesmith.models.load import Network


def train_last_layers(network: Network, config: TrainingConfig) -> None:
    """The last `num_last_layers` blocks, and a final norm above them."""
    layers = find_layers(network.model)
    if config.num_last_layers > len(layers):
        raise InputError(
            f"num_last_layers is {config.num_last_layers}, but '{network.source}' has {len(layers)} layers"
        )
    freeze_body(network)
    for layer in layers[-config.num_last_layers :]:
        layer.requires_grad_(True)
    for _, child in network.body.named_children():
        if is_norm(child):
            child.requires_grad_(True)


def train_biases(network: Network, config: TrainingConfig) -> None:
    """BitFit: only bias vectors (Ben Zaken et al. 2022, arXiv 2106.10199)."""
    _train_matching(network, "bias vectors", lambda module, name: name == "bias")


def train_norms(network: Network, config: TrainingConfig) -> None:
    """Only scale and shift of the normalisation layers (Zhao et al. 2024, arXiv 2312.11420)."""
    _train_matching(network, "normalisation layers", lambda module, name: is_norm(module))


def train_head(network: Network, config: TrainingConfig) -> None:
    """Only what stands above the pre-trained body."""
    freeze_body(network)
    if network.head_modules:
        return
    head = network.model.get_output_embeddings()
    if head is None or head.weight is network.model.get_input_embeddings().weight:
        raise InputError(
            f"head-only: the output head of '{network.source}' is its input embedding (tied weights), so there is "
            "no head of its own to train. Use last-layers or lora"
        )
    head.requires_grad_(True)


def _train_matching(network: Network, what: str, wanted: Callable[[nn.Module, str], bool]) -> None:
    freeze_body(network)
    found = 0
    for module in network.body.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if wanted(module, name):
                parameter.requires_grad_(True)
                found += 1
    if not found:
        kinds = sorted({name.rpartition(".")[2] for name, _ in network.body.named_parameters()})
        modules = sorted({type(module).__name__ for module in network.body.modules()})
        raise InputError(
            f"'{network.source}' has no {what}, so there is nothing to train. Its parameters are called "
            f"{', '.join(kinds)}; its modules are {', '.join(modules)}"
        )
