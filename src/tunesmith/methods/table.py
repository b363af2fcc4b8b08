"""METHODS: every way to adjust the weights, one row each. A new method is one row and one function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel

from tunesmith.config import TrainingConfig
from tunesmith.errors import InputError, nearest
from tunesmith.methods import additive, full, reparam, selective
from tunesmith.models.load import Network

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
    wrapper.save_pretrained(folder)


def _restore_lora(network: Network, folder: Path) -> None:
    reparam.adopt_lora(network, PeftModel.from_pretrained(network.model, folder))


def _restore_prompt(network: Network, folder: Path) -> None:
    additive.adopt_prompt(network, PeftModel.from_pretrained(network.model, folder))


WHOLE = Saving(_save_pretrained, None, whole=True)
LORA = Saving(_save_pretrained, _restore_lora)
PROMPT = Saving(_save_pretrained, _restore_prompt)
BOTTLENECK = Saving(additive.save_bottlenecks, additive.restore_bottlenecks)


@dataclass(frozen=True, slots=True)
class Method:
    """One row. `learning_rate` is the default peak for AdamW: first for a small encoder with a new
    head, then for a decoder that writes text."""

    name: str
    family: Family
    summary: str
    paper: str
    learning_rate: tuple[float, float]
    apply: Callable[[Network, TrainingConfig], None]
    saving: Saving = WHOLE


METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method("full", "full", "every weight", "", (1e-4, 2e-5), full.train_everything),
        Method(
            "last-layers",
            "selective",
            "the last blocks and the final norm",
            "Lee et al. 2019, arXiv 1911.03090",
            (2e-4, 5e-5),
            selective.train_last_layers,
        ),
        Method(
            "bitfit",
            "selective",
            "biases only",
            "Ben Zaken et al. 2022, arXiv 2106.10199",
            (2e-3, 1e-3),
            selective.train_biases,
        ),
        Method(
            "norms",
            "selective",
            "normalisation layers only",
            "Zhao et al. 2024, arXiv 2312.11420",
            (2e-3, 1e-3),
            selective.train_norms,
        ),
        Method("head-only", "selective", "the head only", "", (2e-3, 1e-3), selective.train_head),
        Method(
            "bottleneck",
            "additive",
            "a narrow adapter after each block",
            "Houlsby et al. 2019, arXiv 1902.00751",
            (1e-3, 5e-4),
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
        ),
        Method(
            "lora",
            "reparameterised",
            "low-rank updates of all linear layers",
            "Hu et al. 2022, arXiv 2106.09685",
            (5e-4, 2e-4),
            reparam.add_lora,
            LORA,
        ),
        Method(
            "dora",
            "reparameterised",
            "LoRA with trained column norms",
            "Liu et al. 2024, arXiv 2402.09353",
            (5e-4, 2e-4),
            reparam.add_dora,
            LORA,
        ),
    )
}


def find_method(name: str) -> Method:
    if name not in METHODS:
        raise InputError(f"unknown method '{name}': {nearest(name, METHODS)}")
    return METHODS[name]


def default_learning_rate(method: Method, network: Network) -> float:
    small_encoder, decoder = method.learning_rate
    return decoder if network.task == "generation" else small_encoder
