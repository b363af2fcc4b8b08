"""What is cheap to make again is not kept for the backward pass: attention weights, normed and gated states. A tensor
may carry a recipe, so that who would keep it (a LoRA layer) can keep nothing and make it again too.

`set_recompute(False)` keeps them all: more memory for less time, and the same gradients to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_settings = {"recompute": True}


def set_recompute(wanted: bool) -> None:
    """Whether they are made again from now on, in this process."""
    _settings["recompute"] = wanted


def kept(x: torch.Tensor) -> torch.Tensor | None:
    """What an autograd function keeps of a tensor that it could make again."""
    return None if _settings["recompute"] else x


@dataclass(slots=True)
class Remake:
    """Makes a tensor again in a type, for the first who asks, and holds it until as many as `expected` have asked; all
    ask for the same type."""

    make: Callable[..., torch.Tensor]
    expected: int = 0
    made: torch.Tensor | None = None

    def give(self, dtype: torch.dtype, *parts: torch.Tensor) -> torch.Tensor:
        x = self.make(*parts).to(dtype) if self.made is None else self.made
        self.expected -= 1
        self.made = x if self.expected > 0 else None
        return x


@dataclass(frozen=True, slots=True)
class Recipe:
    """`again.give(dtype, *parts)` gives a tensor again from others that are kept for the backward pass anyway. The
    parts are autograd's to keep, so that checkpointing can let them go; who waits for the backward pass keeps `again`
    alone."""

    again: Remake
    parts: tuple[torch.Tensor, ...]


def find_recipe(x: torch.Tensor) -> Recipe | None:
    """How this very tensor can be made again, if it is to be."""
    return getattr(x, "recipe", None)


def with_recipe(x: torch.Tensor, make: Callable[..., torch.Tensor], *parts: torch.Tensor) -> torch.Tensor:
    if _settings["recompute"]:
        vars(x)["recipe"] = Recipe(Remake(make), tuple(part.detach() for part in parts))
    return x


def remember(ctx: Any, x: torch.Tensor, recipe: Recipe | None, *tensors: torch.Tensor) -> None:
    """Lets an autograd function keep tensors, and after them x, or what x is made again from."""
    ctx.save_for_backward(*tensors, *([x] if recipe is None else recipe.parts))
    if recipe is not None:
        recipe.again.expected += 1
    ctx.again, ctx.dtype = None if recipe is None else recipe.again, x.dtype


def recall(ctx: Any, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """That x, from what was saved of it."""
    return parts[0] if ctx.again is None else ctx.again.give(ctx.dtype, *parts)
