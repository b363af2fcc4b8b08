"""METHODS: every way to adjust the weights, one row each. A new method is one row and one function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tunesmith.config import TrainingConfig
from tunesmith.errors import InputError, nearest
from tunesmith.methods import additive, full, reparam, selective
from tunesmith.models.checkpointing import checkpoint_blocks
from tunesmith.models.embedding import use_row_gradients
from tunesmith.models.load import Network, quietly, settle_precision
from tunesmith.models.quantized import quantize_base
from tunesmith.models.wrap import read

Family = Literal["full", "selective", "additive", "reparameterised"]


@dataclass(frozen=True, slots=True)
class Saving:
    """How a tuned network becomes files and how these are put back on a freshly loaded base.

    `whole` says that the files are a complete model, so that no base is needed.
    """

    save: Callable[[Network, Path], None]
    restore: Callable[[Network, Path], None] | None
    whole: bool = False


def _save_pretrained(network: Network, folder: Path) -> None:
    wrapper: Any = network.wrapper
    with quietly():
        wrapper.save_pretrained(folder)


def _restore_lora(network: Network, folder: Path) -> None:
    reparam.adopt_lora(network, read(network.model, folder))


def _restore_prompt(network: Network, folder: Path) -> None:
    additive.adopt_prompt(network, read(network.model, folder))


WHOLE = Saving(_save_pretrained, None, whole=True)
LORA = Saving(_save_pretrained, _restore_lora)
PROMPT = Saving(_save_pretrained, _restore_prompt)
BOTTLENECK = Saving(additive.save_bottlenecks, additive.restore_bottlenecks)


REFERENCE_WIDTH = 512


@dataclass(frozen=True, slots=True)
class Method:
    """One row.

    `learning_rate` is the default peak for AdamW: first for a model with a new head (classification,
    regression), then for a decoder that writes text. With `by_width` it is meant for matrices of a model
    REFERENCE_WIDTH wide and falls as 1 / width, the rule of muP for Adam (Yang et al. 2022, arXiv
    2203.03466): 1e-3 for LoRA on 512 is 1.25e-4 on 4,096.
    """

    name: str
    family: Family
    summary: str
    paper: str
    learning_rate: tuple[float, float]
    apply: Callable[[Network, TrainingConfig], None]
    saving: Saving = WHOLE
    by_width: bool = True


METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method("full", "full", "every weight", "", (7.5e-5, 1.5e-4), full.train_everything),
        Method(
            "last-layers",
            "selective",
            "the last blocks and the final norm",
            "Lee et al. 2019, arXiv 1911.03090",
            (1.5e-4, 3e-4),
            selective.train_last_layers,
        ),
        Method(
            "bitfit",
            "selective",
            "biases only",
            "Ben Zaken et al. 2022, arXiv 2106.10199",
            (2e-3, 2e-3),
            selective.train_biases,
            by_width=False,
        ),
        Method(
            "norms",
            "selective",
            "normalisation layers only",
            "Zhao et al. 2024, arXiv 2312.11420",
            (2e-3, 2e-3),
            selective.train_norms,
            by_width=False,
        ),
        Method("head-only", "selective", "the head only", "", (2e-3, 1e-3), selective.train_head, by_width=False),
        Method(
            "bottleneck",
            "additive",
            "a narrow adapter after each block",
            "Houlsby et al. 2019, arXiv 1902.00751",
            (7.5e-4, 1e-3),
            additive.add_bottlenecks,
            BOTTLENECK,
        ),
        Method(
            "prompt",
            "additive",
            "virtual tokens before each row",
            "Lester et al. 2021, arXiv 2104.08691",
            (1e-2, 1e-2),
            additive.add_prompt,
            PROMPT,
            by_width=False,
        ),
        Method(
            "lora",
            "reparameterised",
            "low-rank updates of all linear layers",
            "Hu et al. 2022, arXiv 2106.09685",
            (3.75e-4, 1e-3),
            reparam.add_lora,
            LORA,
        ),
        Method(
            "dora",
            "reparameterised",
            "LoRA with trained column norms",
            "Liu et al. 2024, arXiv 2402.09353",
            (3.75e-4, 1e-3),
            reparam.add_dora,
            LORA,
        ),
    )
}


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
    method.apply(network, config)
    settle_precision(network, dtype, getattr(torch, config.weights_dtype))
    if config.quantization is not None:
        quantize_base(network, config.quantization)
    place(network)
    use_row_gradients(network.model)
    if config.gradient_checkpointing:
        checkpoint_blocks(network)


def find_method(name: str) -> Method:
    if name not in METHODS:
        raise InputError(f"unknown method '{name}': {nearest(name, METHODS)}")
    return METHODS[name]


def default_learning_rate(method: Method, network: Network) -> float:
    with_new_head, writing = method.learning_rate
    rate = writing if network.task == "generation" else with_new_head
    if not method.by_width:
        return rate
    return float(f"{rate * REFERENCE_WIDTH / network.model.config.hidden_size:.2g}")
