"""Changes of weights put together: how far each run moved from the base they share, in one model.

Shape letters: R runs. A change has the shape of its weight; the arithmetic is done weight by weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

Combination = Literal["linear", "ties", "dare"]


def add_up(changes: Sequence[torch.Tensor], shares: Sequence[float], density: float) -> torch.Tensor:
    """sum_r s_r D_r: task arithmetic (Ilharco et al. 2023, arXiv 2212.04089)."""
    return torch.stack([share * change for share, change in zip(shares, changes, strict=True)]).sum(0)


def elect(changes: Sequence[torch.Tensor], shares: Sequence[float], density: float) -> torch.Tensor:
    """TIES (Yadav et al. 2023, arXiv 2306.01708, algorithm 1): of each change the share `density` with the largest
    magnitudes is kept; for each entry the sign of the sum wins; the mean of those that agree is taken."""
    kept_R = torch.stack([_largest(change, density) for change in changes])
    sign = torch.where(kept_R.sum(0) >= 0, 1.0, -1.0)
    agrees_R = (kept_R.sign() == sign).to(kept_R.dtype)
    shares_R = torch.tensor(shares, dtype=kept_R.dtype).view(-1, *[1] * (kept_R.ndim - 1))
    return (shares_R * kept_R * agrees_R).sum(0) / agrees_R.sum(0).clamp(min=1)


def drop(changes: Sequence[torch.Tensor], shares: Sequence[float], density: float) -> torch.Tensor:
    """DARE (Yu et al. 2024, arXiv 2311.03099): each entry is kept with the chance `density` and divided by it, so that
    the expectation stays as it was; then added up."""
    thinned = [change * torch.bernoulli(torch.full_like(change, density)) / density for change in changes]
    return add_up(thinned, shares, density)


def _largest(change: torch.Tensor, density: float) -> torch.Tensor:
    count = int(density * change.numel())
    flat = change.flatten()
    places = flat.abs().topk(count).indices
    return torch.zeros_like(flat).index_copy(0, places, flat[places]).view_as(change)


COMBINATIONS: dict[Combination, Callable[[Sequence[torch.Tensor], Sequence[float], float], torch.Tensor]] = {
    "linear": add_up,
    "ties": elect,
    "dare": drop,
}
