"""Additive tuning: new parameters beside the model's own, which stay frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PromptTuningConfig, PromptTuningInit, TaskType
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.activations import ACT2FN

from tunesmith.config import TrainingConfig
from tunesmith.errors import InputError
from tunesmith.models.layers import find_layers, freeze_body
from tunesmith.models.load import Network
from tunesmith.models.safety import check_folder, refuse_foreign
from tunesmith.models.weights import read_json, refuse_broken
from tunesmith.models.wrap import wrap
from tunesmith.storage import write_json

BOTTLENECK_WEIGHTS = "bottleneck.safetensors"
BOTTLENECK_CONFIG = "bottleneck.json"


class Bottleneck(nn.Module):
    """h + W_up f(W_down h): a narrow layer beside the residual stream (Houlsby et al. 2019, arXiv
    1902.00751), one after each block. W_up starts at zero, so the model starts as it was.

    Shapes: W_down (bottleneck_size, D), W_up (D, bottleneck_size), D the hidden width.
    """

    def __init__(self, width: int, size: int, activation: str) -> None:
        super().__init__()
        self.down = nn.Linear(width, size)
        self.up = nn.Linear(size, width)
        self.activation = ACT2FN[activation]
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        update = self.up(self.activation(self.down(hidden.to(self.down.weight.dtype))))
        return hidden + update.to(hidden.dtype)


def add_bottlenecks(network: Network, config: TrainingConfig) -> None:
    freeze_body(network)
    _insert(network, config.bottleneck_size)


def save_bottlenecks(network: Network, folder: Path) -> None:
    """The adapters and the head: what differs from the base model."""
    trained = {name: p.detach().cpu() for name, p in network.model.named_parameters() if p.requires_grad}
    save_file({name: tensor.contiguous() for name, tensor in trained.items()}, folder / BOTTLENECK_WEIGHTS)
    first: Any = find_layers(network.model)[0]
    size = first.bottleneck.down.out_features
    config = {"bottleneck_size": size, "base_model": network.source, "base_fingerprint": network.fingerprint}
    write_json(folder / BOTTLENECK_CONFIG, config)


def restore_bottlenecks(network: Network, folder: Path) -> None:
    """Puts saved adapters and head into a freshly loaded base model.

    Raises:
        InputError: the folder is damaged, or the adapters were made for another base model.
    """
    check_folder(folder, str(folder))
    refuse_foreign(network, read_json(folder / BOTTLENECK_CONFIG).get("base_fingerprint", ""), str(folder))
    weights = load_file(folder / BOTTLENECK_WEIGHTS)
    refuse_broken(weights.items(), str(folder / BOTTLENECK_WEIGHTS))
    sizes = [w.shape[0] for name, w in weights.items() if name.endswith("bottleneck.down.weight")]
    freeze_body(network)
    _insert(network, sizes[0] if sizes else 1)
    places = {(name, p.shape) for name, p in network.model.named_parameters() if p.requires_grad}
    strange = sorted(places ^ {(name, tensor.shape) for name, tensor in weights.items()})
    if strange:
        raise InputError(f"{folder / BOTTLENECK_WEIGHTS}: adapters for another model, they differ in {strange[0][0]}")
    network.model.load_state_dict(weights, strict=False)


def _insert(network: Network, size: int) -> None:
    model = network.model
    activation = getattr(model.config, "hidden_act", None) or getattr(model.config, "activation_function", "gelu")
    for layer in find_layers(model):
        layer.bottleneck = Bottleneck(model.config.hidden_size, size, str(activation))
        layer.register_forward_hook(_adapt)


def _adapt(layer: Any, _: object, output: object) -> object:
    """Blocks return the hidden states, alone or first in a tuple."""
    if isinstance(output, tuple):
        return (layer.bottleneck(output[0]), *output[1:])
    return layer.bottleneck(output)


def add_prompt(network: Network, config: TrainingConfig) -> None:
    """Virtual tokens before every row (Lester et al. 2021, arXiv 2104.08691), PEFT's parameters and
    files. They start as embeddings of words drawn from the vocabulary: random vectors learn poorly."""
    peft_config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM if network.task == "generation" else TaskType.SEQ_CLS,
        num_virtual_tokens=config.num_virtual_tokens,
        prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
        base_model_name_or_path=network.folder,
        modules_to_save=list(network.head_modules) or None,
    )
    adopt_prompt(network, wrap(network.model, peft_config))


def adopt_prompt(network: Network, wrapped: Any) -> None:
    """Lets the packed pass read the virtual tokens of a PEFT prompt model."""
    encoder = wrapped.prompt_encoder[wrapped.active_adapter]
    network.wrapper = wrapped
    network.prompt = lambda: encoder.embedding.weight
    network.num_virtual = encoder.embedding.num_embeddings
