"""Updates within the backward pass: the same weights as updates after it, with one gradient at a time."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.survival import digest, make_base
from tests.faults.survival import make_rows as write_rows
from tests.faults.test_resume import settings as resumable
from tests.parity.test_encdec import make_rows as make_pairs
from tests.parity.test_packed import make_rows
from tests.parity.tiny import make_network
from torch import nn

from tunesmith.config import TuneConfig
from tunesmith.config_align import AlignConfig
from tunesmith.data.pack import pack
from tunesmith.errors import InputError
from tunesmith.methods.apply import put_under
from tunesmith.methods.table import METHODS
from tunesmith.models import embedding
from tunesmith.models.load import Network
from tunesmith.records import Task
from tunesmith.train import adamw, loop, optim
from tunesmith.train.checkpoint import find_newest
from tunesmith.train.loop import optimizer_for, trainable
from tunesmith.train.step import NonFiniteError, Plan, Step, TornStepError, accumulate, take_step
from tunesmith.tuning import tune

EARLY = Plan(learning_rate=1e-2, max_grad_norm=float("inf"), weight_decay=0.1, optimizer_in_backward=True)
SWITCH = {"optimizer_in_backward": True}


def settings(**more: Any) -> TuneConfig:
    return TuneConfig.read(given={"model": "-", "data": "-", "method": "full"} | more)


def placed(kind: str, task: Task, folder: Path, **more: Any) -> Network:
    torch.manual_seed(0)
    network = make_network(kind, task, folder)
    config = settings(**more)
    put_under(network, METHODS[config.method], config, torch.float32, lambda _: None)
    network.model.train()
    return network


def trained(network: Network, plan: Plan, task: Task, num_steps: int = 3) -> tuple[list[Step], dict[str, torch.Tensor]]:
    """Steps on windows of one batch, each another one, and the weights afterwards."""
    rows = make_pairs(network) if network.model.config.is_encoder_decoder else make_rows(task)
    parameters = trainable(network)
    optimizer = optimizer_for(network, parameters, plan)
    steps = [
        take_step(network, [pack(rows[number : number + 3])], parameters, optimizer, plan, number)
        for number in range(num_steps)
    ]
    return steps, {name: parameter.detach().clone() for name, parameter in parameters}


# Heads that are the embedding, Conv1D, gradients that are kept by rows, blocks that run twice, an encoder read by a
# decoder, low-rank updates; and an optimizer of each kind.
CASES: list[tuple[str, Task, dict[str, Any], dict[str, Any]]] = [
    ("llama", "generation", {}, {}),
    ("llama", "generation", {"memory": "speed"}, {"optim": "muon"}),
    ("llama", "generation", {"memory": "low"}, {"optim": "adamw_8bit"}),
    ("llama", "generation", {"method": "lora"}, {"max_grad_norm": 1e9}),
    ("gpt2", "generation", {}, {"optim": "galore", "galore_rank": 4}),
    ("bert", "classification", {}, {"l2_sp": 0.5}),
    ("t5", "generation", {"gradient_checkpointing": True}, {}),
]


@pytest.mark.parametrize(("kind", "task", "config", "plan"), CASES)
def test_weights_are_those_of_updates_after_it(
    kind: str, task: Task, config: dict[str, Any], plan: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "SMALLEST_TABLE", 64)
    monkeypatch.setattr(adamw, "SMALLEST_QUANTIZED", 64)
    # GaLore's way to them draws numbers, in the order of the updates.
    monkeypatch.setattr(torch, "svd_lowrank", lambda matrix, q, niter: (torch.linalg.svd(matrix)[0][:, :q],))
    early = replace(EARLY, **plan)
    steps, found = trained(placed(kind, task, tmp_path, **config), early, task)
    afterwards = replace(early, optimizer_in_backward=False)
    expected_steps, expected = trained(placed(kind, task, tmp_path, **config), afterwards, task)
    assert [step.loss for step in steps] == [step.loss for step in expected_steps]
    assert [step.grad_norm for step in steps] == pytest.approx([step.grad_norm for step in expected_steps], rel=1e-5)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_each_gradient_is_clipped_by_its_own_norm(tmp_path: Path) -> None:
    """Against torch's AdamW on gradients that were taken and clipped by hand."""
    plan, rows = replace(EARLY, max_grad_norm=0.3), make_rows("generation")
    _, found = trained(placed("llama", "generation", tmp_path), plan, "generation", 2)
    network = placed("llama", "generation", tmp_path)
    parameters = trainable(network)
    plain = torch.optim.AdamW(
        [{"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0} for _, p in parameters], lr=1e-2
    )
    num_clipped = 0
    for number in range(2):
        gathered = replace(plan, optimizer_in_backward=False, max_grad_norm=float("inf"))
        accumulate(network, [pack(rows[number : number + 3])], parameters, gathered, number)
        for _, parameter in parameters:
            assert parameter.grad is not None
            norm = parameter.grad.square().sum().sqrt()
            num_clipped += int(norm > 0.3)
            parameter.grad *= min(1.0, 0.3 / float(norm))
        plain.step()
        plain.zero_grad()
    assert 0 < num_clipped < 2 * len(parameters)
    for name, parameter in parameters:
        torch.testing.assert_close(found[name], parameter.detach(), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("plan", "most"), [(EARLY, 1), (replace(EARLY, optimizer_in_backward=False), 30)])
def test_gradients_are_never_held_together(plan: Plan, most: int, tmp_path: Path) -> None:
    network = placed("llama", "generation", tmp_path)
    parameters = trainable(network)
    held = []

    def count(parameter: nn.Parameter) -> None:
        held.append(sum(other.grad is not None for _, other in parameters))

    optimizer = optimizer_for(network, parameters, plan)
    for _, parameter in parameters:
        parameter.register_post_accumulate_grad_hook(count)
    take_step(network, [pack(make_rows("generation")[:3])], parameters, optimizer, plan, 0)
    assert len(held) == len(parameters) == 30
    assert max(held) == most


def test_of_several_batches_the_last_one_updates(tmp_path: Path) -> None:
    """As when a run goes on whose batches ran in two parts."""
    windows = [[pack(rows) for rows in (make_rows("generation")[:2], make_rows("generation")[2:4])]] * 2
    found = []
    for plan in (EARLY, replace(EARLY, optimizer_in_backward=False)):
        network = placed("llama", "generation", tmp_path)
        parameters = trainable(network)
        optimizer = optimizer_for(network, parameters, plan)
        for number, window in enumerate(windows):
            take_step(network, window, parameters, optimizer, plan, number)
        found.append([parameter.detach() for _, parameter in parameters])
    assert all(map(torch.equal, *found))


def poison(parameter: nn.Parameter) -> None:
    parameter.register_hook(lambda gradient: gradient * float("nan"))


@pytest.mark.parametrize(("place", "is_torn"), [(-1, False), (0, True)])
def test_numbers_that_are_none(place: int, is_torn: bool, tmp_path: Path) -> None:
    """The last norm's gradient comes first, the embedding's last."""
    network = placed("llama", "generation", tmp_path)
    parameters = trainable(network)
    before = {name: parameter.detach().clone() for name, parameter in parameters}
    optimizer = optimizer_for(network, parameters, EARLY)
    poison([parameter for _, parameter in parameters][place])
    with pytest.raises(TornStepError if is_torn else NonFiniteError, match=r"^step 1: loss \d.*gradient norm nan"):
        take_step(network, [pack(make_rows("generation")[:3])], parameters, optimizer, EARLY, 0)
    assert all(torch.isfinite(parameter).all() for _, parameter in parameters)
    moved = [name for name, parameter in parameters if not torch.equal(parameter, before[name])]
    assert bool(moved) == is_torn
    assert all(parameter.grad is None for _, parameter in parameters)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early")
    make_base("bert", "classification", folder / "bert")
    write_rows("classification", folder / "rows.jsonl")
    return folder


def run(place: Path, output: Path, **more: Any) -> TuneConfig:
    return resumable(place, output, **SWITCH | more)


def at_update(number: int, what: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something happens in the update of a weight, amid a backward pass."""
    clip, calls = nn.utils.clip_grad_norm_, iter(range(1, 10**9))

    def broken(parameters: Any, *rest: Any) -> torch.Tensor:
        if len(parameters) == 1 and next(calls) == number:
            what()
        return clip(parameters, *rest)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", broken)


def test_a_stop_amid_the_backward_pass_waits_for_its_end(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = digest(tune(run(place, tmp_path / "whole"), quiet=True).folder)
    with monkeypatch.context() as patch:
        at_update(100, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        with pytest.raises(KeyboardInterrupt):
            tune(run(place, tmp_path / "run"), quiet=True)
    assert find_newest(tmp_path / "run/checkpoints") is not None
    assert not (tmp_path / "run/manifest.json").exists()
    tune(run(place, tmp_path / "run", resume=True), quiet=True)
    assert digest(tmp_path / "run") == whole


def test_a_torn_step_is_never_saved(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how to go on, and that works."""
    accumulate, calls = loop.accumulate, iter(range(1, 10**9))

    def torn(*given: Any) -> Step:
        if next(calls) == 7:
            poison(given[2][0][1])
        return accumulate(*given)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "accumulate", torn)
        with pytest.raises(TornStepError, match="--resume --optimizer-in-backward false --allow-change") as told:
            tune(run(place, tmp_path / "run", save_steps=1), quiet=True)
    assert str(told.value).startswith("step 7: ")
    newest = find_newest(tmp_path / "run/checkpoints")
    assert newest is not None
    assert newest.name == "step-6"
    more = {"optimizer_in_backward": False, "allow_change": "optimizer_in_backward", "resume": True}
    assert tune(run(place, tmp_path / "run", **more), quiet=True).outcome["steps"] == 12


def test_too_little_memory_is_told_and_nothing_runs_twice(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    at_update(100, refuse, monkeypatch)
    with pytest.raises(InputError, match=r"out of memory, with batches of 12 rows; .*--per-device-train-batch-size 3"):
        tune(run(place, tmp_path / "run"), quiet=True)


def test_the_rehearsal_moves_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "FEWEST_TO_REHEARSE", 10**9)
        without = digest(tune(run(place, tmp_path / "without"), quiet=True).folder)
    monkeypatch.setattr(loop, "FEWEST_TO_REHEARSE", 1)
    assert digest(tune(run(place, tmp_path / "with"), quiet=True).folder) == without


def test_what_it_does_not_go_with(tmp_path: Path) -> None:
    for more in ({"gradient_accumulation_steps": 2}, {"kl_to_base": 0.1}):
        with pytest.raises(InputError, match=f"one backward pass of a step, and {next(iter(more))} adds another"):
            settings(**SWITCH, **more)
    with pytest.raises(InputError, match="algorithm ppo updates after all passes"):
        AlignConfig.read(given={"model": "-", "data": "-", "algorithm": "ppo", "reward": "a:b"} | SWITCH)
    with pytest.raises(InputError, match="adalora looks at all gradients before the update"):
        placed("llama", "generation", tmp_path, method="adalora", **SWITCH)


def test_pulling_back_needs_a_gradient(tmp_path: Path) -> None:
    """Else every update of one weight would pull all others back once more."""
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD(weights, lr=0.5)
    optim.hold_near_start(optimizer, weights, 1.0)
    with torch.no_grad():
        for weight in weights:
            weight.fill_(2.0)
    weights[0].grad = torch.zeros(2)
    optimizer.step()
    assert [weight.tolist() for weight in weights] == [[1.5, 1.5], [2.0, 2.0]]
