"""Selective tuning: some of the model's own weights are trained, the rest stay as they are."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from peft import ShiraConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.config import TrainingConfig
from tunesmith.errors import InputError, nearest
from tunesmith.methods.adapters import Sizes, adapter, options_of
from tunesmith.methods.informed import squared_gradients
from tunesmith.methods.method import Method, Saving
from tunesmith.models.layers import final_norms, find_layers, freeze_body, is_attention, is_cross_attention, is_norm
from tunesmith.models.load import Network, quietly
from tunesmith.models.sparse import VALUES, bind_weights, free_weights, is_sparse, settle_weights
from tunesmith.records import TokenizedExample


def train_last_layers(network: Network, config: TrainingConfig) -> None:
    """The last `num_last_layers` blocks, and a final norm above them."""
    layers = _at_least(network, "num_last_layers", config.num_last_layers)
    freeze_body(network)
    layers[-config.num_last_layers :].requires_grad_(True)
    for norm in final_norms(network.model):
        norm.requires_grad_(True)


def train_first_layers(network: Network, config: TrainingConfig) -> None:
    """The first `num_first_layers` blocks, nearest to the words."""
    layers = _at_least(network, "num_first_layers", config.num_first_layers)
    freeze_body(network)
    layers[: config.num_first_layers].requires_grad_(True)


def _at_least(network: Network, key: str, wanted: int) -> nn.ModuleList:
    """All blocks; an InputError when there are fewer than `key` wants."""
    layers = find_layers(network.model)
    if wanted > len(layers):
        raise InputError(f"{key} is {wanted}, but '{network.source}' has {len(layers)} layers")
    return layers


def train_embeddings(network: Network, config: TrainingConfig) -> None:
    """The vectors of the words; where the head is the same matrix, the head with them."""
    freeze_body(network)
    network.model.get_input_embeddings().requires_grad_(True)


def train_attention(network: Network, config: TrainingConfig) -> None:
    """Everything within the attention layers (Touvron et al. 2022, arXiv 2203.09795)."""
    _train_parts(network, is_attention)


def train_cross_attention(network: Network, config: TrainingConfig) -> None:
    """Only where a decoder reads its encoder (Gheini et al. 2021, arXiv 2104.08771)."""
    if not _train_parts(network, is_cross_attention):
        raise InputError(
            f"cross-attention: '{network.source}' has none, as only an encoder-decoder has. Take attention"
        )


def _train_parts(network: Network, wanted: Callable[[str], bool]) -> int:
    """Parts of the blocks, by their own name; returns how many there are."""
    freeze_body(network)
    parts = [
        part
        for layer in find_layers(network.model)
        for name, part in layer.named_modules()
        if wanted(name.rpartition(".")[2])
    ]
    for part in parts:
        part.requires_grad_(True)
    return len(parts)


def train_chosen(network: Network, config: TrainingConfig) -> None:
    """The parameters whose names fit one of `trained_parameters`, patterns with * and ?."""
    freeze_body(network)
    named = dict(network.body.named_parameters())
    if not config.trained_parameters:
        raise InputError(
            "chosen trains what --trained-parameters names, for example 'layers.0.*,*norm*'. "
            f"'{network.source}' has {', '.join(list(named)[:12])}, ..."
        )
    for pattern in config.trained_parameters:
        found = fnmatch.filter(named, pattern)
        if not found:
            raise InputError(
                f"trained_parameters: '{network.source}' has no parameter that fits '{pattern}'. "
                f"{nearest(pattern.strip('*'), named)}"
            )
        for name in found:
            named[name].requires_grad_(True)


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


SPARSE_OPTIONS: dict[str, Any] = {"by": "fisher", "share": 0.01}
CHOICES = ("fisher", "magnitude", "random")


def train_sparse(network: Network, config: TrainingConfig) -> None:
    """A share of the weights of the blocks' linear layers: those of the largest magnitude, or drawn at random; in each
    matrix the same share (Bhardwaj et al. 2024, arXiv 2406.13175, section 3.1). `inform_sparse` has another choice.

    Raises:
        InputError: a share that is none, or an unknown choice.
    """
    options = SPARSE_OPTIONS | options_of("sparse", config)
    by, share = options["by"], options["share"]
    if by not in CHOICES:
        raise InputError(f"method_options: sparse.by is {by!r}. It is one of {', '.join(CHOICES)}")
    if not isinstance(share, int | float) or not 0 < share < 1:
        raise InputError(f"method_options: sparse.share is {share!r}. It is a share of the weights, such as 0.01")
    freeze_body(network)
    for linear in _block_linears(network):
        weight: torch.Tensor = linear.weight  # type: ignore[assignment]
        count = max(1, round(share * weight.numel()))
        if by == "magnitude":
            places = weight.detach().abs().view(-1).topk(count).indices
        else:
            places = torch.randperm(weight.numel(), device=weight.device)[:count]
        free_weights(linear, places)


def inform_sparse(
    network: Network, config: TrainingConfig, rows: Sequence[TokenizedExample], dtype: torch.dtype
) -> None:
    """By Fisher's information, the mean squared gradient of the training rows' log-likelihood: the same number of
    weights, those with the most of it wherever they are (Sung et al. 2021, arXiv 2111.09839, equations 3 to 5)."""
    if (SPARSE_OPTIONS | options_of("sparse", config))["by"] != "fisher":
        return
    linears = [linear for linear in _block_linears(network) if is_sparse(linear)]
    count = sum(getattr(linear, VALUES).numel() for linear in linears)
    for linear in linears:
        bind_weights(linear)
    found = squared_gradients(network, [linear.weight for linear in linears], rows, dtype)  # type: ignore[misc]
    least = torch.cat([squares.view(-1) for squares in found]).topk(count).values[-1]
    for linear, squares in zip(linears, found, strict=True):
        places = (squares.view(-1) >= least).nonzero().view(-1)
        if len(places):
            free_weights(linear, places)


def _block_linears(network: Network) -> list[nn.Module]:
    return [part for part in find_layers(network.model).modules() if isinstance(part, nn.Linear | Conv1D)]


def save_sparse(network: Network, folder: Path) -> None:
    """A whole model, as transformers has it."""
    for linear in filter(is_sparse, network.model.modules()):
        settle_weights(linear)
    weights = {name: tensor for name, tensor in network.model.state_dict().items() if not name.endswith(VALUES)}
    with quietly():
        network.model.save_pretrained(folder, state_dict=weights)


def _as_many_as_lora(sizes: Sizes) -> dict[str, Any]:
    """As many weights as LoRA of rank 16 would train, where a matrix has them."""
    return {"r": min(16, *(prod(size) // sum(size) for size in sizes))}


ROWS = (
    Method(
        "last-layers",
        "selective",
        "the last blocks and the final norm",
        "Lee et al. 2019, arXiv 1911.03090",
        (1.5e-4, 3e-4),
        train_last_layers,
    ),
    Method("first-layers", "selective", "the first blocks", "", (1.5e-4, 3e-4), train_first_layers),
    Method("chosen", "selective", "parameters chosen by their names", "", (1.5e-4, 3e-4), train_chosen),
    Method(
        "attention",
        "selective",
        "attention layers only",
        "Touvron et al. 2022, arXiv 2203.09795",
        (1.5e-4, 3e-4),
        train_attention,
    ),
    Method(
        "cross-attention",
        "selective",
        "where a decoder reads its encoder",
        "Gheini et al. 2021, arXiv 2104.08771",
        (1.5e-4, 3e-4),
        train_cross_attention,
    ),
    Method("embeddings", "selective", "the words' vectors", "", (7.5e-4, 7.5e-4), train_embeddings),
    Method(
        "bitfit",
        "selective",
        "biases only",
        "Ben Zaken et al. 2022, arXiv 2106.10199",
        (2e-3, 2e-3),
        train_biases,
        by_width=False,
    ),
    Method(
        "norms",
        "selective",
        "normalisation layers only",
        "Zhao et al. 2024, arXiv 2312.11420",
        (2e-3, 2e-3),
        train_norms,
        by_width=False,
    ),
    Method("head-only", "selective", "the head only", "", (2e-3, 1e-3), train_head, by_width=False),
    Method(
        "sparse",
        "selective",
        "the weights that matter most to the data",
        "Sung et al. 2021, arXiv 2111.09839",
        (7.5e-4, 1.5e-3),
        train_sparse,
        Saving("model", save_sparse),
        inform=inform_sparse,
        options=frozenset(SPARSE_OPTIONS),
    ),
    adapter(
        "selective",
        "shira",
        "a few weights of each matrix, drawn at random",
        "Bhardwaj et al. 2024, arXiv 2406.13175",
        ShiraConfig,
        (7.5e-4, 1.5e-3),
        fit=_as_many_as_lora,
        foreseen=False,
    ),
)
