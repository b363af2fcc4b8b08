"""The frozen prefix, computed once, against the whole network computed every time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.test_packed import make_rows
from tests.parity.tiny import DECODERS, ENCODERS, make_network

from tunesmith.config import TuneConfig
from tunesmith.data.pack import pack
from tunesmith.methods.table import METHODS
from tunesmith.models import prefix, states
from tunesmith.models.layers import find_layers
from tunesmith.models.load import Network
from tunesmith.models.prefix import cached_prefix, count_bytes, count_frozen
from tunesmith.records import Task, TokenizedExample
from tunesmith.train.loop import trainable
from tunesmith.train.objective import judged_losses

LARGEST_GAP = 1e-6
CASES: list[tuple[str, Task]] = [(kind, "generation") for kind in DECODERS]
CASES += [(kind, "classification") for kind in ENCODERS]


def applied(kind: str, task: Task, method: str, folder: Path, **more: Any) -> Network:
    network = make_network(kind, task, folder)
    given = {
        "model": "m",
        "data": "d",
        "method": method,
        "num_last_layers": 1,
        "num_virtual_tokens": 3,
        "trained_parameters": "*.1.*",
        "lora_r": 2,
    }
    METHODS[method].apply(network, TuneConfig.read(given=given | more))
    network.model.train()  # dropout is 0 in these models
    return network


def step(network: Network, rows: list[TokenizedExample]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one pass over some of the rows, in another order than they were stored."""
    network.model.zero_grad()
    loss = judged_losses(network, pack(rows[::-2]))[0].mean()
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in trainable(network) if p.grad is not None}


def gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_losses_and_gradients_are_those_of_the_whole_network(kind: str, task: Task, tmp_path: Path) -> None:
    network, rows = applied(kind, task, "last-layers", tmp_path), make_rows(task)
    assert count_frozen(network) == 2
    loss, gradients = step(network, rows)
    with cached_prefix(network, rows, torch.float32, quiet=True):
        network.model.train()
        again, cached = step(network, rows)
        torch.manual_seed(1)
        layer = find_layers(network.model)[0]
        torch.nn.init.normal_(next(layer.parameters()))  # nobody looks at the frozen blocks any more
        assert step(network, rows)[0] == again
    assert again == pytest.approx(loss, abs=LARGEST_GAP)
    assert gap(cached, gradients) <= LARGEST_GAP
    assert gradients
    assert abs(step(network, rows)[0] - loss) > 1e-4, "outside, the blocks compute again"


def test_a_head_alone_needs_no_block(tmp_path: Path) -> None:
    network, rows = applied("bert", "classification", "head-only", tmp_path), make_rows("classification")
    assert count_frozen(network) == 3
    loss, gradients = step(network, rows)
    with cached_prefix(network, rows, torch.float32, quiet=True):
        again, cached = step(network, rows)
    assert again == pytest.approx(loss, abs=LARGEST_GAP)
    assert gap(cached, gradients) <= LARGEST_GAP


def test_states_of_another_row_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the comparison above would say of a store that mixes up its rows."""
    network, rows = applied("llama", "generation", "last-layers", tmp_path), make_rows("generation")
    _, gradients = step(network, rows)
    keys = prefix._keys
    monkeypatch.setattr(prefix, "_keys", lambda batch: [str(len(key)).encode() for key in keys(batch)])
    with cached_prefix(network, rows, torch.float32, quiet=True):  # rows 4 and 5 are of one length
        assert gap(step(network, rows)[1], gradients) > 100 * LARGEST_GAP


def test_an_unknown_row_goes_the_whole_way(tmp_path: Path) -> None:
    network, rows = applied("gpt2", "generation", "last-layers", tmp_path), make_rows("generation")
    loss, gradients = step(network, rows)
    with cached_prefix(network, rows[:-1], torch.float32, quiet=True):
        again, cached = step(network, rows)
    assert again == loss
    assert gap(cached, gradients) == 0


@pytest.mark.parametrize(
    ("kind", "task", "method", "num_frozen"),
    [
        ("bert", "classification", "full", 0),
        ("bert", "classification", "bitfit", 0),
        ("bert", "classification", "bottleneck", 0),
        ("llama", "generation", "prompt", 0),
        ("llama", "generation", "prefix", 0),
        ("llama", "generation", "lora", 0),
        ("llama", "generation", "norms", 0),
        ("modernbert", "regression", "head-only", 3),
    ],
)
def test_how_much_is_frozen(kind: str, task: Task, method: str, num_frozen: int, tmp_path: Path) -> None:
    assert count_frozen(applied(kind, task, method, tmp_path)) == num_frozen


def test_a_store_that_would_be_too_large_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, rows = applied("llama", "generation", "last-layers", tmp_path), make_rows("generation")
    assert count_bytes(network, rows) == sum(len(row.input_ids) for row in rows) * 32 * 4
    monkeypatch.setattr(prefix, "LARGEST_STORE", count_bytes(network, rows) - 1)
    with cached_prefix(network, rows, torch.float32, quiet=True):
        assert network.prefix is None


def test_states_from_a_file_are_those_from_memory(tmp_path: Path) -> None:
    network, rows = applied("llama", "generation", "last-layers", tmp_path / "m"), make_rows("generation")
    with cached_prefix(network, rows, torch.float32, quiet=True):
        expected = step(network, rows)
    with cached_prefix(network, rows, torch.float32, quiet=True, folder=tmp_path / "states"):
        found = step(network, rows)
        size = sum(len(row.input_ids) for row in rows) * 32 * 4
        assert [path.stat().st_size for path in (tmp_path / "states").glob("*/states.bin")] == [size]
    assert found[0] == expected[0]
    assert gap(found[1], expected[1]) == 0


def test_others_with_the_same_frozen_blocks_find_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not where blocks, rows or depth differ; and a damaged file is written anew."""
    folder, rows = tmp_path / "states", make_rows("generation")
    runs = []
    run = prefix.Prefix._run
    monkeypatch.setattr(prefix.Prefix, "_run", lambda self, *given: (runs.append(1), run(self, *given)))

    def count(network: Network, rows: list[TokenizedExample]) -> int:
        runs.clear()
        with cached_prefix(network, rows, torch.float32, quiet=True, folder=folder):
            assert math.isfinite(step(network, rows)[0])
        return len(runs)

    def fresh(**more: Any) -> Network:
        return applied("llama", "generation", "last-layers", tmp_path / "m", **more)

    assert [count(fresh(), rows), count(fresh(), rows)] == [1, 0]
    assert count(fresh(num_last_layers=2), rows) == 1
    assert count(fresh(), rows[1:]) == 1
    other = fresh()
    with torch.no_grad():
        next(find_layers(other.model)[0].parameters()).add_(1e-3)
    assert count(other, rows) == 1
    above = fresh()
    with torch.no_grad():
        next(find_layers(above.model)[2].parameters()).add_(1e-3)
    assert count(above, rows) == 0, "what is trained does not bear on the frozen blocks"
    for file in folder.glob("*/states.bin"):
        with file.open("r+b") as open_file:
            open_file.write(b"\1")
    assert count(fresh(), rows) == 1


def test_a_file_that_broke_off_counts_as_absent(tmp_path: Path) -> None:
    place = tmp_path / "states" / "one"

    def break_off() -> None:
        with states.writing(place) as writer:
            writer.put(b"row", torch.ones(2, 4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert states.find_states(place) is None
    assert list((tmp_path / "states").iterdir()) == []
    with states.writing(place) as writer:
        writer.put(b"row", torch.arange(8.0).view(2, 4).bfloat16())
    found = states.find_states(place)
    assert found is not None
    torch.testing.assert_close(found.get(b"row"), torch.arange(8.0).view(2, 4).bfloat16())
    assert found.get(b"another") is None
    found.close()


def test_a_full_disk_means_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, rows = applied("llama", "generation", "last-layers", tmp_path / "m"), make_rows("generation")
    monkeypatch.setattr(states, "find_free_space", lambda _: 2 * count_bytes(network, rows) - 1)
    with cached_prefix(network, rows, torch.float32, quiet=True, folder=tmp_path / "states"):
        assert network.prefix is None
    assert not (tmp_path / "states").exists()
