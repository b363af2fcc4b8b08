"""GaLore beside its algorithm in numpy, and beside AdamW where it must be the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.train import galore
from tunesmith.train.galore import GaLore
from tunesmith.train.optim import make_optimizer

RATE, DECAY, BETAS, EPS = 0.05, 0.1, (0.9, 0.999), 1e-8
Array = np.ndarray[Any, Any]


def gradients_of_rank(rank: int, shape: tuple[int, int], count: int) -> list[Array]:
    """Without noise, so that the first singular vectors are all that there is, and exact."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1])) for _ in range(count)]


def algorithm(start: Array, gradients: list[Array], rank: int, interval: int) -> Array:
    """Algorithm 2 of the paper, for a matrix that is wider than high."""
    weight, mean, square = start.copy(), np.zeros((rank, start.shape[1])), np.zeros((rank, start.shape[1]))
    basis = np.zeros((start.shape[0], rank))
    for step, gradient in enumerate(gradients):
        if step % interval == 0:
            basis = np.linalg.svd(gradient, full_matrices=False)[0][:, :rank]
        low = basis.T @ gradient
        mean = BETAS[0] * mean + (1 - BETAS[0]) * low
        square = BETAS[1] * square + (1 - BETAS[1]) * low**2
        moved = (mean / (1 - BETAS[0] ** (step + 1))) / (np.sqrt(square / (1 - BETAS[1] ** (step + 1))) + EPS)
        weight = weight - RATE * (DECAY * weight + basis @ moved)
    return weight


def moved(start: Array, gradients: list[Array], rank: int) -> Array:
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = GaLore([{"params": [weight], "weight_decay": DECAY, "rank": rank}], RATE)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    return weight.detach().double().numpy()


@pytest.mark.parametrize("is_tall", [False, True])
def test_it_moves_as_the_algorithm_says(is_tall: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directions are chosen once: chosen anew, a basis may come with other signs, and old moments with it."""
    start = np.random.default_rng(1).normal(size=(12, 40))
    gradients = gradients_of_rank(3, start.shape, 6)
    expected = algorithm(start, gradients, 3, galore.INTERVAL)
    found = moved(start.T if is_tall else start, [g.T if is_tall else g for g in gradients], 3)
    np.testing.assert_allclose(found.T if is_tall else found, expected, atol=2e-5)
    monkeypatch.setattr(galore, "INTERVAL", 1)
    assert np.abs(moved(start, gradients, 3) - expected).max() > 1e-3


def test_what_is_small_moves_as_with_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((7,), (5, 9)):
        start, gradient = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        weights = []
        for kind in ("galore", "adamw"):
            weight = torch.nn.Parameter(start.clone())
            optimizer = make_optimizer([("w", weight)], RATE, DECAY, kind, rank=8)  # type: ignore[arg-type]
            for _ in range(3):
                weight.grad = gradient.clone()
                optimizer.step()
            weights.append(weight.detach())
        torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


def test_states_are_small_and_can_be_put_back() -> None:
    rank, rng = 4, torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(64, 256, generator=rng))
    optimizer = make_optimizer([("w", weight)], RATE, 0.0, "galore", rank=rank)
    gradients = [torch.randn(64, 256, generator=rng) for _ in range(4)]
    for gradient in gradients[:2]:
        weight.grad = gradient
        optimizer.step()
    assert sum(value.numel() for value in optimizer.state[weight].values()) == 2 * rank * 256 + 64 * rank + 1
    twin = torch.nn.Parameter(weight.detach().clone())
    other = make_optimizer([("w", twin)], RATE, 0.0, "galore", rank=rank)
    other.state[twin] = {key: value.clone() for key, value in optimizer.state[weight].items()}
    for one, owner in ((weight, optimizer), (twin, other)):
        for gradient in gradients[2:]:
            one.grad = gradient
            owner.step()
    assert torch.equal(weight, twin)
