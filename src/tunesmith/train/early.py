"""Updates within the backward pass: a weight moves as soon as its gradient is whole, which is then let go, so that the
gradients of all weights are never held together (Lv et al. 2023, LOMO, arXiv 2306.09782, section 3.1).

The norm of all gradients together is known only when the last one is there; so each is clipped by its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class EarlyUpdates:
    """One step's updates, each of one parameter.

    norms     of the gradients that came, before clipping, in the order in which they came
    has_moved whether a weight has been updated; from the first gradient on that is not finite none is
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None, max_norm: float) -> None:
        """Without an optimizer gradients are let go and nothing moves."""
        groups = [] if optimizer is None else optimizer.param_groups
        self._group_of = {parameter: group for group in groups for parameter in group["params"]}
        self._optimizer, self._max_norm = optimizer, max_norm
        self.norms: list[float] = []
        self.has_moved = False
        self._is_finite = True

    @contextmanager
    def updating(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        """Inside, a backward pass updates these parameters; it must be the last one that adds to their gradients."""
        hooks = [parameter.register_post_accumulate_grad_hook(self._take) for parameter in parameters]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _take(self, parameter: nn.Parameter) -> None:
        norm = nn.utils.clip_grad_norm_([parameter], self._max_norm).item()
        self.norms.append(norm)
        self._is_finite &= math.isfinite(norm)
        if self._optimizer is not None and self._is_finite:
            self._update(self._optimizer, parameter)
            self.has_moved = True
        parameter.grad = None

    def _update(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
        """A step of an optimizer that for so long has this parameter only."""
        whole = optimizer.param_groups
        optimizer.param_groups = [{**self._group_of[parameter], "params": [parameter]}]
        try:
            optimizer.step()
        finally:
            optimizer.param_groups = whole
