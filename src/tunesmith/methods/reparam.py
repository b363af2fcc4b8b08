"""Reparameterised tuning: the change of a frozen matrix is written as something smaller.

Parameters and files are PEFT's. For LoRA and DoRA and those that only begin elsewhere the computation is ours
(`lowrank.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    C3AConfig,
    DeloraConfig,
    FourierFTConfig,
    GloraConfig,
    GraloraConfig,
    HiraConfig,
    HRAConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeanutConfig,
    PsoftConfig,
    PveraConfig,
    RandLoraConfig,
    RoadConfig,
    TinyLoraConfig,
    UniLoraConfig,
    VBLoRAConfig,
    VeraConfig,
    WaveFTConfig,
    get_peft_model_state_dict,
)
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import save_file

from tunesmith.config import TrainingConfig
from tunesmith.methods.adapters import Adapter, Sizes, adapter, largest_factor, restore_adapter
from tunesmith.methods.informed import main_directions
from tunesmith.methods.method import Method, Saving
from tunesmith.methods.ranks import allot_ranks, save_ranks
from tunesmith.models.load import Network
from tunesmith.models.safety import ADAPTER_WEIGHTS
from tunesmith.records import TokenizedExample

A, B = "lora_A", "lora_B"


def start_inside(name: str, transposed: bool) -> Any:
    """A LoRA that begins as a part of W and not at zero: W = (W - s B0 A0) + s B0 A0.

    PEFT knows the beginning by the method's name, and takes the part out of the frozen matrix. B0 and A0 are
    remembered, because `save_difference` needs them.
    """
    adapter = Adapter(name, LoraConfig, {"init_lora_weights": name}, transposed=transposed)

    def apply(network: Network, config: TrainingConfig) -> None:
        adapter(network, config)
        wrapper: Any = network.wrapper
        network.start = {
            key: tensor.detach().clone() for key, tensor in get_peft_model_state_dict(wrapper).items() if _half(key)
        }

    return apply


def save_difference(network: Network, folder: Path) -> None:
    """As a plain LoRA of twice the rank on the untouched base: s (B A - B0 A0) = s [B, -B0] [A; A0].

    So no reader needs to find the same B0 and A0 again (Meng et al. 2024, arXiv 2404.02948, section 3).
    """
    wrapper: Any = network.wrapper
    name = wrapper.active_adapter
    weights = get_peft_model_state_dict(wrapper)
    for key, start in network.start.items():
        halves = (weights[key], start) if _half(key) == A else (weights[key], -start)
        weights[key] = torch.cat(halves, dim=0 if _half(key) == A else 1)
    config: LoraConfig = wrapper.peft_config[name]
    whole = replace(config, r=2 * config.r, lora_alpha=2 * config.lora_alpha, init_lora_weights=True)
    whole.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    whole.save_pretrained(str(folder))
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}, folder / ADAPTER_WEIGHTS)


def _half(key: str) -> str:
    return next((half for half in (A, B) if f".{half}." in key), "")


def lora_plus(name: str) -> float:
    """B learns 16 times as fast as A (Hayou et al. 2024, arXiv 2402.12354, section 5)."""
    return 16.0 if f".{B}." in name else 1.0


def begin_with_inputs(
    network: Network, config: TrainingConfig, rows: Sequence[TokenizedExample], dtype: torch.dtype
) -> None:
    """EVA (Paischer et al. 2024, arXiv 2410.07170): A begins with the directions in which a layer's inputs are largest,
    the same number in each layer; B with zeros, so that the model is as it was."""
    root: Any = network.root
    layers = [module for module in root.modules() if isinstance(module, LoraLinear)]
    for layer, directions_RI in zip(layers, main_directions(network, layers, config.lora_r, rows, dtype), strict=True):
        factor: Any = layer.lora_A[layer.active_adapters[0]]
        factor.weight.data.copy_(directions_RI)


_row = partial(adapter, "reparameterised")
_FIXED: tuple[float, float] = (1e-3, 1e-3)
RANKS = Saving("PEFT adapter (LoRA)", save_ranks, restore_adapter)
DIFFERENCE = Saving("PEFT adapter (LoRA)", save_difference, restore_adapter)


def _starting(name: str, summary: str, paper: str, transposed: bool = True) -> Method:
    """A LoRA that begins inside the frozen matrices."""
    return replace(
        _row(name, summary, paper, LoraConfig, init_lora_weights=name),
        apply=start_inside(name, transposed),
        saving=DIFFERENCE,
        transposed=transposed,
    )


def _blocks(sizes: Sizes) -> dict[str, Any]:
    return {"block_size": largest_factor(32, chain.from_iterable(sizes))}


def _rotated(sizes: Sizes) -> dict[str, Any]:
    return {"oft_block_size": largest_factor(32, (inputs for _, inputs in sizes))}


def _crossed(sizes: Sizes) -> dict[str, Any]:
    return {"boft_block_size": largest_factor(4, (inputs for _, inputs in sizes))}


def _narrow(sizes: Sizes) -> dict[str, Any]:
    return {"r": min(32, *chain.from_iterable(sizes))}


def _groups(sizes: Sizes) -> dict[str, Any]:
    return {"group_size": largest_factor(64, (outputs for outputs, _ in sizes))}


def _vectors(sizes: Sizes) -> dict[str, Any]:
    return {"vector_length": largest_factor(256, chain.from_iterable(sizes))}


def _frequencies(sizes: Sizes) -> dict[str, Any]:
    return {"n_frequency": min(1000, *map(prod, sizes))}


ROWS = (
    _row(
        "lora",
        "low-rank updates of all linear layers",
        "Hu et al. 2022, arXiv 2106.09685",
        LoraConfig,
        transposed=True,
    ),
    _row(
        "dora",
        "LoRA with trained norms",
        "Liu et al. 2024, arXiv 2402.09353",
        LoraConfig,
        use_dora=True,
        transposed=True,
    ),
    _row(
        "rslora",
        "LoRA by alpha / sqrt(r)",
        "Kalajdzievski 2023, arXiv 2312.03732",
        LoraConfig,
        use_rslora=True,
        transposed=True,
    ),
    replace(
        _row(
            "lora-plus",
            "LoRA whose B learns faster",
            "Hayou et al. 2024, arXiv 2402.12354",
            LoraConfig,
            transposed=True,
        ),
        rate_of=lora_plus,
    ),
    _starting("pissa", "LoRA that begins with the largest singular vectors", "Meng et al. 2024, arXiv 2404.02948"),
    _starting(
        "olora", "LoRA that begins with an orthonormal basis", "Büyükakyüz 2024, arXiv 2406.01775", transposed=False
    ),
    replace(
        _row(
            "eva",
            "LoRA that begins with the main directions of a layer's inputs",
            "Paischer et al. 2024, arXiv 2410.07170",
            LoraConfig,
            transposed=True,
        ),
        inform=begin_with_inputs,
    ),
    replace(
        _row(
            "adalora",
            "LoRA whose ranks go to the layers that need them",
            "Zhang et al. 2023, arXiv 2303.10512",
            AdaLoraConfig,
            (3e-3, 1e-3),
            by_width=False,
            transposed=True,
        ),
        attend=allot_ranks,
        saving=RANKS,
    ),
    _row(
        "hira",
        "the matrix times a low-rank one, entry by entry",
        "Huang et al. 2025 (ICLR)",
        HiraConfig,
        (1.1e-3, 2e-3),
        r=32,
        transposed=True,
    ),
    _row(
        "loha",
        "the product of two low-rank matrices",
        "Hyeon-Woo et al. 2022, arXiv 2108.06098",
        LoHaConfig,
        (1.1e-3, 2e-3),
        alpha=16,
    ),
    _row("lokr", "Kronecker products", "Yeh et al. 2024, arXiv 2309.14859", LoKrConfig, (1.1e-3, 2e-3), alpha=16),
    _row("glora", "LoRA with factors of weight and bias", "Chavan et al. 2023, arXiv 2306.07967", GloraConfig),
    _row("gralora", "LoRA in blocks", "Jung et al. 2025, arXiv 2505.20355", GraloraConfig, alpha=64, transposed=True),
    # From PEFT's bound of 15 the first step alone, whatever the rate, leads out of where the model was.
    _row("delora", "LoRA of bounded length", "Bini et al. 2025, arXiv 2503.18225", DeloraConfig, delora_lambda=4),
    _row("peanut", "a small network of the frozen weights", "Zhong et al. 2024, arXiv 2410.01870", PeanutConfig),
    _row("miss", "one small matrix for all shards", "Kang & Yin 2024, arXiv 2409.15371", MissConfig, r=16),
    # One set of matrices or vectors that all layers share.
    _row(
        "vera",
        "scales of random matrices",
        "Kopiczko et al. 2024, arXiv 2310.11454",
        VeraConfig,
        (5e-3, 5e-3),
        by_width=False,
        transposed=True,
    ),
    _row(
        "pvera",
        "VeRA with noise",
        "arXiv 2512.07703 (2025)",
        PveraConfig,
        (5e-3, 5e-3),
        by_width=False,
        transposed=True,
    ),
    _row(
        "randlora",
        "sums of random matrices",
        "Albert et al. 2025, arXiv 2502.00987",
        RandLoraConfig,
        transposed=True,
    ),
    _row(
        "vblora",
        "vectors of a shared bank",
        "Li et al. 2024, arXiv 2405.15179",
        VBLoRAConfig,
        _FIXED,
        fit=_vectors,
        starts_equal=False,
        transposed=True,
    ),
    _row(
        "unilora",
        "one vector for all layers",
        "Li et al. 2025, arXiv 2506.00799",
        UniLoraConfig,
        _FIXED,
        transposed=True,
        starts_equal=False,
        foreseen=False,
    ),
    _row(
        "tinylora",
        "few numbers between singular vectors",
        "arXiv 2602.04118 (2026)",
        TinyLoraConfig,
        _FIXED,
        transposed=True,
    ),
    # Frequencies, rotations, reflections.
    _row(
        "fourierft",
        "frequencies",
        "Gao et al. 2024, arXiv 2405.03003",
        FourierFTConfig,
        (3e-3, 3e-3),
        by_width=False,
        fit=_frequencies,
        init_weights=True,
        scaling=150.0,
        transposed=True,
    ),
    _row(
        "waveft",
        "wavelets",
        "Bilican et al. 2025, arXiv 2505.12532",
        WaveFTConfig,
        (3e-3, 3e-3),
        by_width=False,
        fit=_frequencies,
        transposed=True,
    ),
    _row(
        "c3a",
        "circular convolutions",
        "Chen et al. 2024, arXiv 2407.19342",
        C3AConfig,
        (3e-3, 3e-3),
        by_width=False,
        fit=_blocks,
        init_weights=True,
    ),
    _row(
        "oft",
        "rotations in blocks",
        "Qiu et al. 2023, arXiv 2306.07280",
        OFTConfig,
        _FIXED,
        by_width=False,
        fit=_rotated,
        use_cayley_neumann=False,
    ),
    _row(
        "boft",
        "rotations by butterflies",
        "Liu et al. 2024, arXiv 2311.06243",
        BOFTConfig,
        _FIXED,
        fit=_crossed,
        by_width=False,
    ),
    _row(
        "psoft",
        "rotations of the main directions",
        "Wu et al. 2025, arXiv 2505.11235",
        PsoftConfig,
        _FIXED,
        by_width=False,
        fit=_narrow,
    ),
    _row("hra", "reflections", "Yuan et al. 2024, arXiv 2405.17484", HRAConfig, _FIXED, by_width=False),
    _row(
        "road",
        "rotations of pairs of outputs",
        "Liao & Monz 2024, arXiv 2409.00119",
        RoadConfig,
        (5e-3, 5e-3),
        by_width=False,
        fit=_groups,
    ),
)
