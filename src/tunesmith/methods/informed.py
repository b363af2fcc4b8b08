"""What some methods ask the training rows before the first step.

Shape letters: T tokens, I inputs of a layer, R wanted directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from tunesmith.data.pack import pack
from tunesmith.models.load import Network
from tunesmith.records import TokenizedExample
from tunesmith.runtime import autocast
from tunesmith.train.objective import judged_losses

# A few dozen rows suffice for Fisher's information (Sung et al. 2021, arXiv 2111.09839, section 4.3).
ROWS = 64
MORE_COLUMNS = 8  # of a basis than directions wanted (Halko et al. 2011, section 4.2)
ITERATIONS = 3


def squared_gradients(
    network: Network, weights: Sequence[nn.Parameter], rows: Sequence[TokenizedExample], dtype: torch.dtype
) -> list[torch.Tensor]:
    """Fisher's information of each weight up to a factor: squared gradients of rows' log-likelihoods, summed over rows
    that are taken one at a time (Sung et al. 2021, equation 4). One tensor for each of `weights`, of its shape."""
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    with _only_these_learn(network, weights):
        for row in _evenly(rows):
            with autocast(network.model.device, dtype):
                batch = pack([row], network.num_virtual).to(network.model.device)
                judged_losses(network, batch)[0].sum().backward()
            for total, weight in zip(sums, weights, strict=True):
                if weight.grad is not None:
                    total.addcmul_(weight.grad.float(), weight.grad.float())
                    weight.grad = None
    return sums


def main_directions(
    network: Network, layers: Sequence[nn.Module], rank: int, rows: Sequence[TokenizedExample], dtype: torch.dtype
) -> list[torch.Tensor]:
    """(R, I) for each layer: orthonormal, the directions in which its inputs are largest, largest first.

    They are the right singular vectors of all inputs X (T, I), by subspace iteration: O becomes an orthonormal basis of
    X^T X O, and X^T X itself is never made (Halko et al. 2011, arXiv 0909.4061, algorithm 4.4).
    """
    drawn: dict[nn.Module, torch.Tensor] = {}
    sketches: dict[nn.Module, torch.Tensor] = {}

    def note(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        x_TI = given[0].reshape(-1, given[0].shape[-1]).float()
        if layer not in drawn:
            draw = torch.Generator().manual_seed(len(drawn))
            drawn[layer] = torch.randn(x_TI.shape[1], rank + MORE_COLUMNS, generator=draw).to(x_TI.device)
        with torch.autocast(x_TI.device.type, enabled=False):
            sketches[layer] = sketches.get(layer, 0) + x_TI.T @ (x_TI @ drawn[layer])

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    network.model.eval()
    for _ in range(ITERATIONS):
        sketches.clear()
        with torch.no_grad(), autocast(network.model.device, dtype):
            for row in _evenly(rows):
                judged_losses(network, pack([row], network.num_virtual).to(network.model.device))
        drawn |= {layer: torch.linalg.svd(sketch, full_matrices=False).U for layer, sketch in sketches.items()}
    for hook in hooks:
        hook.remove()
    return [drawn[layer][:, :rank].T for layer in layers]


@contextmanager
def _only_these_learn(network: Network, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """In evaluation mode, with gradients for `weights` alone."""
    learned = {parameter for parameter in network.root.parameters() if parameter.requires_grad}
    wanted = set(weights)
    network.model.eval()
    for parameter in (*network.root.parameters(), *weights):
        parameter.requires_grad_(parameter in wanted)
    yield
    for parameter in (*network.root.parameters(), *weights):
        parameter.requires_grad_(parameter in learned)


def _evenly(rows: Sequence[TokenizedExample]) -> Iterator[TokenizedExample]:
    """At most ROWS of them, from all over."""
    count = min(len(rows), ROWS)
    return (rows[index * len(rows) // count] for index in range(count))
