"""What must not matter: how a batch is split, in which order its rows come, whether rows are padded or packed.

Each equality is shown to be one: the gradient of the mean of means differs by orders of magnitude more.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.parity.test_packed import make_rows, padded_loss
from tests.parity.tiny import make_model, make_network

from tunesmith.data.pack import pack
from tunesmith.models.load import Network
from tunesmith.records import TokenizedExample
from tunesmith.train.loop import trainable
from tunesmith.train.step import Plan, Step, accumulate

PLAN = Plan(learning_rate=1.0, max_grad_norm=float("inf"))
CASES = [("llama", "generation"), ("bert", "classification")]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, str, str]:
    kind, task = request.param
    return make_network(kind, task, tmp_path_factory.mktemp(kind)), kind, task


def eight_rows(task: Any) -> list[TokenizedExample]:
    rows = make_rows(task)
    return [replace(row, row=index) for index, row in enumerate([*rows, rows[0]][:8])]


def gradient(network: Network, groups: Sequence[Sequence[TokenizedExample]]) -> tuple[Step, torch.Tensor]:
    parameters = trainable(network)
    for _, parameter in parameters:
        parameter.grad = None
    taken = accumulate(network, [pack(group) for group in groups], parameters, PLAN, 0)
    return taken, torch.cat([p.grad.flatten() for _, p in parameters if p.grad is not None]).clone()


def mean_of_means(network: Network, rows: Sequence[TokenizedExample]) -> torch.Tensor:
    """The usual mistake: each pass divides by its own count."""
    return torch.stack([gradient(network, [[row]])[1] for row in rows]).mean(0)


def test_eight_times_one_is_once_eight(case: tuple[Network, str, str]) -> None:
    network, _, task = case
    rows = eight_rows(task)
    once, expected = gradient(network, [rows])
    many, found = gradient(network, [[row] for row in rows])
    assert many.loss == pytest.approx(once.loss, abs=1e-6)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    if task == "generation":  # rows of one label each have equal counts, so there the mistake is none
        assert (mean_of_means(network, rows) - expected).abs().max() > 1e-3


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(order=st.permutations(range(8)), cuts=st.sets(st.integers(1, 7)))
def test_neither_order_nor_splitting_matters(case: tuple[Network, str, str], order: list[int], cuts: set[int]) -> None:
    network, _, task = case
    rows = eight_rows(task)
    _, expected = gradient(network, [rows])
    ends = [0, *sorted(cuts), 8]
    groups = [[rows[index] for index in order[a:b]] for a, b in pairwise(ends)]
    torch.testing.assert_close(gradient(network, groups)[1], expected, atol=1e-6, rtol=1e-5)


def test_the_same_packed_rows_give_the_same_bits_in_any_order(case: tuple[Network, str, str]) -> None:
    """`pack` sorts by length, so rows of different lengths end in one order whatever order they come in."""
    network, _, task = case
    rows = list({len(row.input_ids): row for row in eight_rows(task)}.values())
    _, expected = gradient(network, [rows])
    for seed in range(5):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert torch.equal(gradient(network, [shuffled])[1], expected)


def test_packed_is_padded(case: tuple[Network, str, str]) -> None:
    network, kind, task = case
    rows = eight_rows(task)
    taken, found = gradient(network, [rows])
    model = make_model(kind, task)
    loss = padded_loss(model, rows, task)
    loss.backward()
    assert taken.loss == pytest.approx(loss.item(), abs=1e-6)
    by_name = dict(model.named_parameters())
    expected = torch.cat([by_name[name].grad.flatten() for name, p in trainable(network) if p.grad is not None])
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4)
