"""Where tuning changed the weights: how much of each matrix, and in how many directions."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from tunesmith.inspection.subject import Subject

SAVED_ALONG = re.compile(r"\.modules_to_save\.[^.]+")
FEW = 48
LAYER = re.compile(r"\.(?:layers?|h|block)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Change:
    """name      of the weight in the base model
    layer     the block it belongs to, or None
    relative  |tuned - base| / |base|, Frobenius norms
    rank      effective rank of the difference: exp of the entropy of its singular values, normalised (Roy and Vetterli
              2007); None of what is no matrix, 0 where nothing changed
    """

    name: str
    layer: int | None
    relative: float
    rank: float | None


@torch.inference_mode()
def find_changes(base: Subject, tuned: Subject) -> list[Change]:
    """Every weight that both have, in the base's order. What only one has, such as a new head, is not compared."""
    before, after = dict(effective_weights(base.model)), dict(effective_weights(tuned.model))
    before, after = _from_body(before, base.model), _from_body(after, tuned.model)
    return [
        _compare(name, weight, after[name])
        for name, weight in before.items()
        if name in after and after[name].shape == weight.shape
    ]


def _compare(name: str, base: torch.Tensor, tuned: torch.Tensor) -> Change:
    difference = tuned.double() - base.double()
    size, moved = float(base.double().norm()), float(difference.norm())
    layer = LAYER.search(f".{name}")
    relative = moved / size if size else (float("inf") if moved else 0.0)
    rank = None if difference.ndim != 2 else (effective_rank(difference) if moved else 0.0)
    return Change(name, None if layer is None else int(layer[1]), relative, rank)


def effective_rank(matrix: torch.Tensor) -> float:
    """From 1, one direction, to the smaller side, all directions alike. What few directions leave below 1e-4 of the
    whole is rounding."""
    small = (matrix.T if matrix.shape[0] > matrix.shape[1] else matrix).double()
    few = _in_few_directions(small)
    # By the eigenvalues of the product with itself, which is as small as the smaller side.
    small = small if few is None else few
    sizes = torch.linalg.eigvalsh(small @ small.T).clamp(min=0).sqrt()
    sizes = sizes[sizes > sizes.max() * 1e-6]
    shares = sizes / sizes.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def _in_few_directions(matrix: torch.Tensor) -> torch.Tensor | None:
    """(FEW, columns) with the same singular values where so few hold the whole, as of LoRA (Halko et al. 2011,
    algorithm 4.1); else None."""
    if len(matrix) <= 2 * FEW:
        return None
    draws = torch.Generator().manual_seed(0)
    tried = torch.randn(matrix.shape[1], FEW, generator=draws, dtype=matrix.dtype).to(matrix.device)
    basis = torch.linalg.qr(matrix @ tried).Q
    inside: torch.Tensor = basis.T @ matrix
    left = (matrix.norm() ** 2 - inside.norm() ** 2).clamp(min=0).sqrt()
    return inside if left <= 1e-4 * matrix.norm() else None


def effective_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights by the names that the model has without adapters, with the adapters' changes in them."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, module in adapted.items():
        merged: Any = copy.deepcopy(module)
        merged.merge()
        yield from ((f"{name}.{key}", weight) for key, weight in merged.get_base_layer().named_parameters())
    for name, module in model.named_modules():
        if any(name == other or name.startswith(f"{other}.") for other in adapted) or ".original_module" in name:
            continue
        plain = SAVED_ALONG.sub("", name)  # where PEFT trained a copy of a module, the copy counts
        for key, weight in module.named_parameters(recurse=False):
            yield f"{plain}.{key}".removeprefix("."), weight


def _from_body(weights: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Names as a body without a head has them, so that models with other heads can be compared."""
    prefix = f"{model.base_model_prefix}."
    return {name.removeprefix(prefix): weight for name, weight in weights.items()}
