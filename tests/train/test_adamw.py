"""AdamW in eight bits beside torch's own, and the eight-bit numbers beside a search for the nearest value.

And injected faults that these comparisons must catch: decay that is coupled, a bias correction forgotten, scales of the
wrong blocks.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.train import adamw, blockwise
from tunesmith.train.adamw import AdamW8bit
from tunesmith.train.blockwise import BLOCK, dequantize, dynamic_values, quantize
from tunesmith.train.optim import hold_near_start, make_optimizer


@pytest.mark.parametrize("signed", [True, False])
def test_the_values_are_those_of_the_paper(signed: bool) -> None:
    values = dynamic_values(signed).double().numpy()
    assert len(values) == len(np.unique(values)) == 256
    assert values[-1] == 1
    assert 0 in values
    magnitudes = np.unique(np.abs(values[(values != 0) & (np.abs(values) != 1)]))
    decades, counts = np.unique(np.floor(np.log10(magnitudes)), return_counts=True)
    assert decades.tolist() == [-7, -6, -5, -4, -3, -2, -1]
    assert counts.tolist() == [2 ** (i if signed else i + 1) for i in range(7)]


@pytest.mark.parametrize("count", [BLOCK, 3 * BLOCK + 17, 5])
@pytest.mark.parametrize("signed", [True, False])
def test_each_number_gets_the_nearest_value(count: int, signed: bool) -> None:
    rng = np.random.default_rng(count)
    numbers = rng.normal(size=count) * 10.0 ** rng.integers(-6, 3, size=count)
    numbers = (numbers if signed else np.abs(numbers)).astype(np.float32)
    codes, scales = quantize(torch.from_numpy(numbers), signed)
    assert (codes.dtype, codes.shape) == (torch.uint8, (count,))
    values = dynamic_values(signed).double().numpy()
    whole = np.repeat(scales.double().numpy(), BLOCK)[:count]
    nearest = np.abs(numbers[:, None] / whole[:, None] - values).min(1)
    back = dequantize(codes, scales, signed).double().numpy()
    # What is looked up is the number to eight binary digits, so it may lie twice their error farther than the nearest.
    allowed = nearest + 2.0**-7 * np.abs(numbers / whole)
    if not signed:
        allowed = np.maximum(allowed, values[1])
    assert (np.abs(back - numbers) / whole <= allowed * (1 + 1e-6)).all()
    assert signed or (back[numbers > 0] > 0).all()


def quadratic(optimizer_of: Any, size: int, steps: int = 60) -> torch.Tensor:
    """Weights after steps towards a target, with gradients that are noisy and of three to one magnitudes in a block."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(size, generator=generator)
    scale = 10 ** torch.empty(size).uniform_(-0.5, 0, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(size))
    optimizer = optimizer_of([{"params": [weight], "weight_decay": 0.1}], lr=1e-2)
    for _ in range(steps):
        weight.grad = (weight.detach() - target + 0.3 * torch.randn(size, generator=generator)) * scale
        optimizer.step()
    return weight.detach()


def test_small_weights_move_as_with_torch() -> None:
    ours, theirs = quadratic(AdamW8bit, 100), quadratic(torch.optim.AdamW, 100)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_large_weights_move_nearly_as_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2 * 4096 + 100
    theirs = quadratic(torch.optim.AdamW, size)
    ours = quadratic(AdamW8bit, size)
    assert not torch.equal(ours, theirs)
    gap = (ours - theirs).norm() / theirs.norm()
    assert gap < 0.03
    monkeypatch.setattr(adamw, "PIECE", 4 * BLOCK)
    assert torch.equal(quadratic(AdamW8bit, size), ours)


@pytest.mark.parametrize("fault", ["scales", "correction", "decay"])
def test_injected_faults_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "scales":
        sound = blockwise.dequantize
        monkeypatch.setattr(adamw, "dequantize", lambda codes, scales, signed: sound(codes, scales.flip(0), signed))
    else:
        update = AdamW8bit._update

        def wrong(self: AdamW8bit, parameter: torch.Tensor, group: dict[str, Any]) -> None:
            if fault == "decay":
                parameter.grad += group["weight_decay"] * parameter.detach() * 10
            else:
                self.state[parameter].update(self.state[parameter] or self._begin(parameter))
                self.state[parameter]["step"] += 100
            update(self, parameter, group)

        monkeypatch.setattr(AdamW8bit, "_update", wrong)
    theirs = quadratic(torch.optim.AdamW, 2 * 4096 + 100)
    assert (quadratic(AdamW8bit, 2 * 4096 + 100) - theirs).norm() / theirs.norm() > 0.03


def test_rounding_at_random_is_right_on_average() -> None:
    values = torch.tensor([1.0, 1.001, -1.0015, 3.1e-5, 0.0, -0.0, 250.3])
    count = 40_000
    drawn = adamw.round_at_random(values.repeat(count, 1)).double()
    low, high = drawn.amin(0), drawn.amax(0)
    # Only the two neighbours, which are one step of an eight-bit mantissa apart.
    assert ((low <= values) & (values <= high)).all()
    assert ((high - low) <= 2.0**-7 * values.abs().double()).all()
    error = (high - low) / 2 / count**0.5
    assert ((drawn.mean(0) - values).abs() <= 5 * error).all()
    assert torch.equal(drawn[:, [0, 4]], values[[0, 4]].double().repeat(count, 1)), "what bfloat16 holds stays"


@pytest.mark.parametrize("is_random", [True, False])
def test_small_updates_are_kept_in_bfloat16(is_random: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand updates of 1e-5 on weights of 1, whose last digit is 0.0078: to the nearest they would all be lost."""
    if not is_random:
        monkeypatch.setattr(adamw, "round_at_random", torch.Tensor.bfloat16)
    weight = torch.nn.Parameter(torch.ones(5000, dtype=torch.bfloat16))
    optimizer = AdamW8bit([{"params": [weight]}], lr=1e-5)
    for _ in range(1000):
        weight.grad = torch.full_like(weight, 0.5)
        optimizer.step()
    assert 1 - float(weight.detach().float().mean()) == pytest.approx(0.01 if is_random else 0.0, rel=0.1)


def test_states_take_two_bytes_a_weight_and_can_be_put_back() -> None:
    weight = torch.nn.Parameter(torch.randn(64, 1024))
    optimizer = AdamW8bit([{"params": [weight]}], lr=1e-3)
    twin, rng = None, torch.Generator().manual_seed(1)
    gradients = [torch.randn(64, 1024, generator=rng) for _ in range(4)]
    for number, gradient in enumerate(gradients):
        if number == 2:
            twin = torch.nn.Parameter(weight.detach().clone())
            other = AdamW8bit([{"params": [twin]}], lr=1e-3)
            other.state[twin] = copy.deepcopy(optimizer.state[weight])
        for one, owner in ((weight, optimizer), *(((twin, other),) if twin is not None else ())):
            one.grad = gradient.clone()
            owner.step()
    assert twin is not None
    assert torch.equal(weight, twin)
    size = sum(value.nbytes for value in optimizer.state[weight].values())
    assert size == pytest.approx(weight.numel() * (2 + 2 * 4 / BLOCK), rel=1e-3)


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_weights_are_held_near_to_where_they_began(kind: Any) -> None:
    """After each update the way from the start is shorter by lr x strength; weights not held are as without."""
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(6, 4, generator=generator) for _ in range(2)]
    gradients = [torch.randn(6, 4, generator=generator) for _ in range(2)]

    def one_step(strength: float) -> list[torch.Tensor]:
        weights = [torch.nn.Parameter(start.clone()) for start in starts]
        optimizer = make_optimizer([("held", weights[0]), ("free", weights[1])], 0.1, 0.0, kind)
        if strength:
            hold_near_start(optimizer, weights[:1], strength)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
        return [weight.detach() for weight in weights]

    (held, free), (held_without, free_without) = one_step(3.0), one_step(0.0)
    torch.testing.assert_close(held, starts[0] + 0.7 * (held_without - starts[0]))
    assert torch.equal(free, free_without)
    torch.testing.assert_close(one_step(1e9)[0], starts[0])
