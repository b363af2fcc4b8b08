"""A running mean of the policy's weights, which is calmer than the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tunesmith.train.checkpoint import Named

KEY = "average"


class Average:
    """mean <- decay mean + (1 - decay) weights after each update, from the weights as they began (Polyak & Juditsky
    1992, with forgetting; Ouyang et al. 2022, appendix C.4, with a decay of 0.992).

    It stands in float32 among the optimizer's states of a weight, and so in every checkpoint.
    """

    def __init__(self, parameters: Named, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self._parameters = [parameter for _, parameter in parameters]
        self._optimizer, self._decay = optimizer, decay
        self._starts = {parameter: parameter.detach().float().clone() for parameter in self._parameters}
        optimizer.register_step_post_hook(self._follow)

    @torch.no_grad()
    def _follow(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for parameter in self._parameters:
            state, start = optimizer.state[parameter], self._starts.pop(parameter, None)
            if KEY not in state:
                state[KEY] = start
            state[KEY].lerp_(parameter.float(), 1 - self._decay)

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Inside it the weights are their mean."""
        own = [parameter.data for parameter in self._parameters]
        self.settle()
        try:
            yield
        finally:
            for parameter, data in zip(self._parameters, own, strict=True):
                parameter.data = data

    def settle(self) -> None:
        """From now on the weights are their mean; before the first update they are it anyway."""
        for parameter in self._parameters:
            mean = self._optimizer.state[parameter].get(KEY)
            if mean is not None:
                parameter.data = mean.to(parameter.dtype, copy=True)
