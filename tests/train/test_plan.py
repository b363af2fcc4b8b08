"""What a plan foretells beside what happens: the network, the arithmetic by torch's own counter, the memory by torch's
own profiler, and the rest of a deep network from two shallow ones.
"""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.test_packed import make_rows
from tests.parity.tiny import make_network
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tunesmith import forecasting
from tunesmith.config import TuneConfig
from tunesmith.data.pack import pack, token_batches
from tunesmith.methods.apply import put_under
from tunesmith.methods.table import METHODS
from tunesmith.models import embedding
from tunesmith.models.load import Network, load_network, move
from tunesmith.models.outline import Pretence, Unknowing, outline_network
from tunesmith.records import Examples, Task
from tunesmith.train.clock import Clock, DataSheet, Trial
from tunesmith.train.loop import trainable
from tunesmith.train.objective import judged_losses
from tunesmith.train.optim import make_optimizer
from tunesmith.train.plan import Needs, Rows, find_needs, forecast
from tunesmith.train.step import Plan, accumulate
from tunesmith.train.trace import Operation, Spec, Work

CPU = torch.device("cpu")
ROWS = 8


def settings(folder: Path, method: str, **more: Any) -> TuneConfig:
    given = {"model": str(folder), "data": "d", "method": method, "num_last_layers": 1, "num_virtual_tokens": 3}
    given |= {"trained_parameters": "*.1.*"}
    return TuneConfig.read(given=given | {"lora_r": 2, "bottleneck_size": 4} | more)


def real(folder: Path, task: Task, config: TuneConfig) -> Network:
    network = load_network(str(folder), task, ("a", "b", "c") if task == "classification" else ())
    put_under(network, METHODS[config.method], config, torch.float32, partial(move, device=CPU))
    return network


def outlined(
    folder: Path, task: Task, config: TuneConfig, pretence: Pretence, num_layers: int | None = None
) -> Network:
    names = ("a", "b", "c") if task == "classification" else ()
    network = outline_network(str(folder), task, names, num_layers)
    with torch.device("meta"), Unknowing():
        put_under(network, METHODS[config.method], config, torch.float32, pretence.place)
    return network


def needs_of(
    folder: Path, task: Task, config: TuneConfig, num_layers: int | None = None, **plan: Any
) -> tuple[Needs, Plan]:
    pretence = Pretence(CPU)
    network = outlined(folder, task, config, pretence, num_layers)
    rows = make_rows(task)
    made = Plan(learning_rate=1e-3, batch_size=ROWS, optim=config.optim, **plan)
    return find_needs(network, pretence, Rows(rows, rows[:4]), made), made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("plan")
    for kind, task in KINDS.items():
        make_network(kind, task, place / kind)
    return {kind: place / kind for kind in KINDS}


KINDS: dict[str, Task] = {"llama": "generation", "gpt2": "generation", "bert": "classification"}
FORESEEN = [name for name, method in METHODS.items() if method.foreseen]
# Neither reads an encoder; Llama has no biases and no new head, and BERT takes no keys and values from outside.
UNFIT = {("llama", "bitfit"), ("llama", "head-only"), ("bert", "prefix")}
FITTING = [name for name in FORESEEN if name != "cross-attention"]
METHODS_OF = [(kind, name) for kind in ("llama", "bert") for name in FITTING if (kind, name) not in UNFIT]


@pytest.mark.parametrize(("kind", "method"), [*METHODS_OF, ("gpt2", "lora"), ("gpt2", "full")])
def test_an_outline_is_the_network(kind: str, method: str, folders: dict[str, Path]) -> None:
    config = settings(folders[kind], method)
    theirs = real(folders[kind], KINDS[kind], config)
    ours = outlined(folders[kind], KINDS[kind], config, Pretence(CPU))

    def describe(network: Network) -> list[tuple[str, torch.Size, torch.dtype, bool]]:
        return [(name, p.shape, p.dtype, p.requires_grad) for name, p in network.root.named_parameters()]

    assert describe(ours) == describe(theirs)
    assert all(p.untyped_storage().device.type == "meta" for p in ours.model.parameters())


ONCE = [("llama", method, False) for method in ("full", "last-layers", "prompt", "prefix", "lora")]
ONCE += [("bert", method, False) for method in ("bitfit", "bottleneck", "lora", "head-only")]
TWICE = [("llama", "lora", True), ("bert", "full", True)]


@pytest.mark.parametrize(("kind", "method", "checkpointed"), ONCE + TWICE)
def test_arithmetic_is_what_torch_counts(kind: str, method: str, checkpointed: bool, folders: dict[str, Path]) -> None:
    config = settings(folders[kind], method, gradient_checkpointing=checkpointed)
    task = KINDS[kind]
    # No frozen blocks answered from a store: all of them run in the step that torch counts.
    with without_store():
        needs, plan = needs_of(folders[kind], task, config)
    network = real(folders[kind], task, config)
    network.model.train()
    rows = make_rows(task)
    # torch leaves out products that are added in place, as those of the head's gradient are.
    aten = torch.ops.aten
    in_place = {
        aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1],
        aten.baddbmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * a[2] * b[2],
    }
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    with counter:
        accumulate(network, [pack(rows[:ROWS], network.num_virtual, network.is_decoder)], trainable(network), plan, 0)
    assert needs.works["window"].flops == counter.get_total_flops() > 0
    judged = [rows[index] for index in token_batches(rows[:4])[0]]
    network.model.eval()
    with torch.no_grad(), counter:  # not inference_mode, where torch does not count a linear layer
        judged_losses(network, pack(judged, network.num_virtual, network.is_decoder))
    assert needs.works["validation"].flops == counter.get_total_flops() > 0


@contextmanager
def without_store() -> Iterator[None]:
    from tunesmith.train import plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "count_frozen", lambda _: 0)
        yield


soaked = partial(pytest.param, marks=pytest.mark.soak)
PLANNED = [("llama", "lora"), ("bert", "full"), soaked("llama", "full"), soaked("bert", "bitfit")]


@pytest.mark.parametrize(("memory", "is_early"), [("speed", False), ("balanced", False), ("low", False), ("low", True)])
@pytest.mark.parametrize(("kind", "method"), PLANNED)
def test_memory_is_what_torch_allocates(
    kind: str, method: str, memory: str, is_early: bool, folders: dict[str, Path]
) -> None:
    """The highest sum of what torch's profiler saw come and go in a step and its update, weights and states apart."""
    config, task = settings(folders[kind], method, memory=memory), KINDS[kind]
    needs, plan = needs_of(folders[kind], task, config, optimizer_in_backward=is_early)
    network = real(folders[kind], task, config)
    network.model.train()
    rows, named = make_rows(task), trainable(network)
    optimizer = make_optimizer(named, 1e-3, 0.0, plan.optim)
    window = [pack(rows[:ROWS], network.num_virtual, network.is_decoder)]
    for _ in range(2):  # the states exist from the second step on
        gc.collect()  # what earlier tests left would be seen to go in this one's step, as negative bytes
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=False) as seen:
            accumulate(network, window, named, plan, 0, optimizer)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    held, highest = 0, 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    lasting = ("parameters", "optimizer")
    steps = {name: peak for name, peak in needs.peaks.items() if name not in ("validation", "fill", "")}
    foretold = max(sum(size for key, size in peak.items() if key not in lasting) for peak in steps.values())
    if memory == "low":  # blocks that run again keep the generator's state, which is nothing beside a real network's
        foretold += network.model.config.num_hidden_layers * torch.get_rng_state().nbytes
    assert foretold == pytest.approx(highest, rel=0.1)


@pytest.mark.parametrize(("kind", "method"), PLANNED)
def test_deep_networks_follow_from_shallow_ones(kind: str, method: str, tmp_path: Path) -> None:
    task = KINDS[kind]
    make_network(kind, task, tmp_path)
    config = settings(tmp_path, method)
    (less, _), (more, _), (whole, _) = (needs_of(tmp_path, task, config, count) for count in (2, 3, 6))
    found = more.extended(less, 3)
    assert (found.trained, found.parameters, found.checkpoint) == (whole.trained, whole.parameters, whole.checkpoint)
    assert {name: work.flops for name, work in found.works.items()} == {
        name: work.flops for name, work in whole.works.items()
    }
    assert {name: work.num_calls for name, work in found.works.items()} == pytest.approx(
        {name: work.num_calls for name, work in whole.works.items()}, rel=0.01
    )
    tops = [max(sum(peak.values()) for peak in one.peaks.values()) for one in (found, whole)]
    assert tops[0] == pytest.approx(tops[1], rel=0.01)


class Steady:
    """Every operation takes a second."""

    def seconds(self, work: Any) -> float:
        return float(sum(count for _, count in work))


def test_passes_are_counted(folders: dict[str, Path]) -> None:
    """Twice the epochs are twice the steps and their time, and validation once more an epoch."""
    config = settings(folders["llama"], "full")
    found = []
    for epochs in (1, 2):
        needs, plan = needs_of(folders["llama"], "generation", config, num_epochs=epochs)
        rows = make_rows("generation")
        found.append(forecast(needs, Rows(rows, rows[:4]), plan, Steady()))
    assert [one.num_steps for one in found] == [2, 4] if len(rows) > ROWS else [1, 2]
    assert found[1].parts["window"] == pytest.approx(2 * found[0].parts["window"])
    assert found[1].parts["update"] == pytest.approx(2 * found[0].parts["update"])
    assert found[1].parts["validation"] == pytest.approx(1.5 * found[0].parts["validation"])
    assert found[0].num_tokens == sum(len(row.input_ids) for row in rows)


def test_moments_are_made_once_and_not_at_each_step(folders: dict[str, Path]) -> None:
    needs, _ = needs_of(folders["llama"], "generation", settings(folders["llama"], "full"))
    operations = [op.name for op, _ in (*needs.works["window"], *needs.works["update"])]
    assert any("aten.mm" in name for name in operations)
    # Of a layer's matrix, 32 x 32; a small table of words has a gradient that begins as zeros.
    assert not [name for name in operations if "zeros_like.default['(32,32)" in name]


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_kept_gradient_is_made_once_and_is_there_all_the_time(
    is_kept: bool, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 96 * 32  # BERT's table of words
    monkeypatch.setattr(embedding, "SMALLEST_TABLE", size if is_kept else 2**20)
    needs, _ = needs_of(folders["bert"], "classification", settings(folders["bert"], "full"))
    made = [op.name for op, _ in needs.works["window"] if "zeros" in op.name or "embedding_dense" in op.name]
    assert any("96" in name for name in made) != is_kept
    assert (needs.peaks["forward"]["gradients"] == 4 * size) == is_kept


def test_a_clock_remembers_and_outlives_a_damaged_file(tmp_path: Path, folders: dict[str, Path]) -> None:
    needs, _ = needs_of(folders["bert"], "classification", settings(folders["bert"], "full"))
    work, file = needs.works["window"], tmp_path / "clock.json"
    clock = Clock(CPU, 10.0, file)
    first = clock.seconds(work)
    clock.save()
    assert 0 < first < 5
    assert Clock(CPU, 0.0, file).seconds(work) == first, "nothing is timed a second time"
    file.write_text("{")
    assert Clock(CPU, 0.0, file).seconds(work) > 0
    assert DataSheet(1e15, 1e12, 0.5).seconds(work) < first


def test_what_a_kernel_refuses_is_guessed(tmp_path: Path) -> None:
    """A float32 norm of bfloat16 numbers as torch pretends it: its moments (mean and rstd) are of a wrong type."""
    x, moments, weight = (
        Spec((4, 8), (8, 1), torch.bfloat16),
        Spec((4, 1), (1, 1), torch.bfloat16),
        Spec((8,), (1,), torch.float32),
    )
    func = torch.ops.aten.native_layer_norm_backward.default
    backward = Operation(func, (x, x, [8], moments, moments, weight, weight, [True] * 3), {}, flops=0, num_bytes=10**6)
    clock = Clock(CPU, 10.0, tmp_path / "clock.json")
    assert clock.seconds(Work(Counter(["norm"]), {"norm": backward})) > 0
    clock.save()
    assert "native_layer_norm" not in (tmp_path / "clock.json").read_text()


@pytest.mark.parametrize(("method", "largest"), [("full", 1.0), soaked("lora", 0.8)])
def test_too_little_memory_names_what_fits(method: str, largest: float, folders: dict[str, Path]) -> None:
    """And with it, it does fit."""
    rows = make_rows("classification")
    read, pace = Rows(rows, rows[:4]), DataSheet(1e12, 1e11, 0.5)
    examples = Examples("classification", (), ("a", "b", "c"), "", "")

    def foresee(available: int, **more: Any) -> Any:
        config = settings(folders["bert"], method, **{"per_device_train_batch_size": ROWS} | more)
        plan = Plan(
            1e-3,
            batch_size=config.per_device_train_batch_size,
            accumulation=config.gradient_accumulation_steps,
            optim=config.optim,
        )
        target = forecasting.Target(CPU, pace, available, by_data_sheet=True)
        return forecasting.foresee(config, METHODS[method], examples, read, plan, target)

    roomy = foresee(2**30)
    assert roomy.fits
    assert not roomy.advice
    fixed = roomy.memory.parameters + roomy.memory.optimizer
    tight = int(fixed + largest * (roomy.peak - fixed)) - 1
    advice = foresee(tight).advice
    words = advice.partition("This would fit, with ")[2].partition(": ")[2].split()
    flags = {
        key.removeprefix("--").replace("-", "_"): value for key, value in zip(words[::2], words[1::2], strict=True)
    }
    assert flags
    assert foresee(tight, **flags).fits
    hopeless = foresee(roomy.memory.parameters // 8)
    assert "No setting makes it fit" in hopeless.advice
    assert asdict(hopeless)["available"] == roomy.memory.parameters // 8


def test_gradients_are_let_go_where_that_makes_it_fit(folders: dict[str, Path]) -> None:
    """Where they weigh more than what a single row keeps for the backward pass."""
    rows = make_rows("classification")
    read, pace = Rows(rows, rows[:4]), DataSheet(1e12, 1e11, 0.5)
    examples = Examples("classification", (), ("a", "b", "c"), "", "")

    def foresee(available: int, **more: Any) -> Any:
        config = settings(folders["bert"], "full", per_device_train_batch_size=1, **more)
        plan = Plan(1e-3, batch_size=1, optim=config.optim, optimizer_in_backward=config.optimizer_in_backward)
        target = forecasting.Target(CPU, pace, available, by_data_sheet=True)
        return forecasting.foresee(config, METHODS["full"], examples, read, plan, target)

    low, early = foresee(2**30, memory="low").peak, foresee(2**30, memory="low", optimizer_in_backward=True).peak
    assert early < low
    assert foresee(early).advice.endswith(": --memory low --optimizer-in-backward true")
    assert not foresee(early - 1).advice.endswith("true")
    assert foresee(early, memory="low", kl_to_base=0.1).advice.endswith("or a smaller model")


def test_trials_are_averaged_and_a_product_counts_its_first_run(tmp_path: Path) -> None:
    """Known trials of a product and of a sum, read from the file: two products of one shape and three sums."""
    x = Spec((8, 8), (8, 1), torch.bfloat16)
    product = Operation(torch.ops.aten.mm.default, (x, x), {}, flops=1024, num_bytes=384)
    total = Operation(torch.ops.aten.add.Tensor, (x, x), {}, flops=0, num_bytes=384)
    work = Work(Counter({"mm": 2, "add": 3}), {"mm": product, "add": total})
    file = tmp_path / "clock.json"
    clock = Clock(CPU, 10.0, file)
    clock.seconds(work)
    clock.save()
    (machine,) = json.loads(file.read_text())
    file.write_text(json.dumps({machine: {product.name: [0.5, 0.25, 3], total.name: [1.0, 8.0, 3]}}))
    assert Clock(CPU, 10.0, file).seconds(work) == pytest.approx(2 * 0.5 + 0.25 + 3 * 1.0)
    mean = Trial(2.0, 1.0, 1).joined(4.0, 2.0).joined(6.0, 3.0)
    assert mean == Trial(4.0, 2.0, 3)
