"""The loop against a plain PyTorch one, and what it does when things go wrong."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.parity.test_packed import make_rows, padded_loss
from tests.parity.tiny import make_model, make_network
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from tunesmith.data.pack import epoch_batches, pack
from tunesmith.models.load import Network
from tunesmith.records import TokenizedExample
from tunesmith.runtime import MetricsLog
from tunesmith.train.loop import Watch, fit, trainable
from tunesmith.train.optim import Schedule, learning_rate_factor, make_optimizer
from tunesmith.train.progress import Outcome
from tunesmith.train.step import NonFiniteError, Plan, take_step

PLAN = Plan(learning_rate=3e-3, num_epochs=3, batch_size=3, weight_decay=0.01, warmup_ratio=0.25, patience=None)


def run(network: Network, rows: list[TokenizedExample], plan: Plan, folder: Path, losses: list[float]) -> Outcome:
    """`fit` with the validation losses given; the last one repeats."""
    left = list(losses)

    def evaluate() -> Mapping[str, float]:
        return {"validation_loss": left.pop(0) if len(left) > 1 else left[0]}

    folder.mkdir(exist_ok=True)
    log = MetricsLog(folder / "metrics.jsonl")
    try:
        return fit(network, rows, plan, Watch(evaluate, log, folder / "checkpoints", quiet=True))
    finally:
        log.close()


def falling() -> list[float]:
    return [1.0 / n for n in range(1, 30)]


def weights(network: Network) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainable(network)}


def windows_of(epoch: int, num_rows: int, plan: Plan) -> list[list[int]]:
    """The rows of each optimizer step of an epoch."""
    batches = epoch_batches(num_rows, plan.batch_size, plan.seed, epoch)
    starts = range(0, len(batches), plan.accumulation)
    return [[row for batch in batches[i : i + plan.accumulation] for row in batch] for i in starts]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("kind", "task"), [("llama", "generation"), ("bert", "classification")])
def test_the_loop_is_a_plain_loop(kind: str, task, accumulation: int, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Same losses and weights as padded rows, torch's AdamW, all written out."""
    rows = make_rows(task)
    plan = replace(PLAN, batch_size=3 // accumulation or 1, accumulation=accumulation)
    network = make_network(kind, task, tmp_path / "model")
    run(network, rows, plan, tmp_path / "run", falling())
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    found = [line["loss"] for line in lines if "loss" in line]

    model = make_model(kind, task).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate)
    windows = [window for epoch in range(3) for window in windows_of(epoch, len(rows), plan)]
    num_warmup = math.ceil(len(windows) / 4)
    expected = []
    for step, window in enumerate(windows):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * learning_rate_factor(step, len(windows), num_warmup, "linear")
        loss = padded_loss(model, [rows[index] for index in window], task)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        expected.append(loss.item())
    assert found == pytest.approx(expected, rel=2e-5)
    plain = dict(model.named_parameters())
    for name, parameter in weights(network).items():
        if "key.bias" not in name:  # softmax ignores it: its gradient is rounding alone, which Adam makes large
            torch.testing.assert_close(parameter, plain[name].detach(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("schedule", "theirs"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
def test_schedules_are_those_of_transformers(schedule: Schedule, theirs: Callable[..., LambdaLR]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = theirs(optimizer, 4, 20)
    for step in range(20):
        if step >= 4:
            assert learning_rate_factor(step, 20, 4, schedule) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()
    assert [learning_rate_factor(step, 20, 4, schedule) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_the_best_weights_are_kept_and_patience_ends_the_run(tmp_path: Path) -> None:
    network = make_network("bert", "classification", tmp_path / "model")
    plan = replace(PLAN, num_epochs=20, patience=2)
    outcome = run(network, make_rows("classification"), plan, tmp_path / "run", [9.0, 3.0, 2.0, 2.5, 2.1, 0.1])
    steps = 3  # of an epoch: 7 rows in batches of 3
    assert (outcome.stopped_early, outcome.best_step, outcome.steps) == (True, 2 * steps, 4 * steps)
    again = make_network("bert", "classification", tmp_path / "again")
    short = replace(plan, num_epochs=20, max_steps=2 * steps, schedule="constant", warmup_ratio=0.0)
    long = replace(short, max_steps=None)
    run(again, make_rows("classification"), short, tmp_path / "short", falling())
    network = make_network("bert", "classification", tmp_path / "model")
    run(network, make_rows("classification"), long, tmp_path / "long", [9.0, 3.0, 2.0, 2.5, 2.1])
    for name, parameter in weights(network).items():
        assert torch.equal(parameter, weights(again)[name]), name


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    results = []
    for number, seed in enumerate((0, 0, 1)):
        network = make_network("bert", "classification", tmp_path / f"model{number}")
        run(network, make_rows("classification"), replace(PLAN, seed=seed), tmp_path / f"run{number}", falling())
        results.append(torch.cat([parameter.flatten() for parameter in weights(network).values()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_weights_change(poison: float, tmp_path: Path) -> None:
    network = make_network("bert", "regression", tmp_path / "model")
    parameters = trainable(network)
    optimizer = make_optimizer(parameters, 0.1, 0.0)
    rows = [replace(row, target=poison if row.row == 4 else row.target) for row in make_rows("regression")]
    before = weights(network)
    with pytest.raises(NonFiniteError, match=r"step 8: loss .*weights were left as they were.*\[3, 4\]"):
        take_step(network, [pack(rows[3:5])], parameters, optimizer, PLAN, 7)
    assert all(torch.equal(before[name], parameter) for name, parameter in weights(network).items())


def test_it_learns(tmp_path: Path) -> None:
    """Words decide the class; a tiny model finds that out."""
    rng = random.Random(0)
    rows = []
    for index in range(60):
        target = index % 3
        ids = tuple(rng.choice((10, 20, 30)) + (5 * 10 * (target - 1) // 10) for _ in range(6))
        rows.append(TokenizedExample((1, *ids, 2), (False,) * 8, target, 0, index))
    network = make_network("bert", "classification", tmp_path / "model")
    run(network, rows, replace(PLAN, num_epochs=15, batch_size=10), tmp_path / "run", falling())
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] > 0.9
    assert losses[-1] < 0.1
