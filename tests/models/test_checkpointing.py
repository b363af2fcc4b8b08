"""Blocks that run twice: the same losses, gradients and random numbers to the bit, less kept, nothing run in vain."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.test_prefix import applied
from tests.parity.test_packed import make_rows
from tests.parity.tiny import DECODERS, ENCODERS, kept_for_backward

from tunesmith.data.pack import pack
from tunesmith.methods.table import METHODS
from tunesmith.models import checkpointing
from tunesmith.models.checkpointing import checkpoint_blocks
from tunesmith.models.layers import find_layers
from tunesmith.models.load import Network
from tunesmith.models.prefix import cached_prefix
from tunesmith.records import PackedBatch, Task
from tunesmith.runtime import autocast
from tunesmith.train.loop import trainable
from tunesmith.train.objective import judged_losses

FAMILIES: list[tuple[str, Task, str]] = [(kind, "generation", "full") for kind in DECODERS]
FAMILIES += [(kind, "classification", "full") for kind in ENCODERS]
WITH_BIASES = ("bitfit", "head-only")  # Llama has none, and no head of its own
WAYS: list[tuple[str, Task, str]] = [
    ("bert", "classification", name) if name in WITH_BIASES else ("llama", "generation", name)
    for name in METHODS
    if name not in ("full", "cross-attention")  # encoder-decoders have a test of their own
]


def with_dropout(network: Network, rate: float = 0.3) -> Network:
    """In every place that a model has: layers of its own, and the attention's weights."""
    for module in network.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        for name in ("attention_dropout", "attention_probs_dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, rate)
    return network


def passes(network: Network, batch: PackedBatch, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Two passes with one update: losses, gradients, and the generator at the end."""
    torch.manual_seed(5)
    found = []
    for _ in range(2):
        network.model.zero_grad()
        with autocast(torch.device("cpu"), dtype):
            losses_N, _ = judged_losses(network, batch)
        losses_N.mean().backward()
        gradients = [p.grad.clone() for _, p in trainable(network) if p.grad is not None]
        found += [losses_N.detach(), *gradients, torch.get_rng_state()]
        with torch.no_grad():
            for _, parameter in trainable(network):
                parameter.sub_(0 if parameter.grad is None else 0.1 * parameter.grad)
    return found


def assert_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert len(one) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("kind", "task", "method"), FAMILIES + WAYS)
def test_same_to_the_bit(kind: str, task: Task, method: str, tmp_path: Path) -> None:
    """With dropout: a second run that drew other numbers would give another gradient, and move the generator."""
    network = with_dropout(applied(kind, task, method, tmp_path / "plain"))
    batch = pack(make_rows(task), network.num_virtual)
    expected = passes(network, batch)
    network = with_dropout(applied(kind, task, method, tmp_path / "twice"))
    num_blocks = checkpoint_blocks(network)
    assert num_blocks == {"last-layers": 1, "head-only": 0, "chosen": 2, "unilora": 1, "tinylora": 1}.get(method, 3)
    assert_equal(passes(network, batch), expected)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_same_under_autocast(method: str, tmp_path: Path) -> None:
    """The second run happens outside the pass, and must compute in the pass's type."""
    batch = pack(make_rows("generation"))
    expected = passes(applied("llama", "generation", method, tmp_path / "plain"), batch, torch.bfloat16)
    network = applied("llama", "generation", method, tmp_path / "twice")
    checkpoint_blocks(network)
    assert_equal(passes(network, batch, torch.bfloat16), expected)


def test_other_random_numbers_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the comparison above would say of a second run with dropout of its own."""
    network = with_dropout(applied("bert", "classification", "full", tmp_path))
    batch = pack(make_rows("classification"))
    expected = passes(network, batch)
    checkpoint, network = checkpointing.checkpoint, with_dropout(applied("bert", "classification", "full", tmp_path))
    checkpoint_blocks(network)
    assert_equal(passes(network, batch), expected)
    network = with_dropout(applied("bert", "classification", "full", tmp_path))
    checkpoint_blocks(network)

    def careless(run: Any, *args: Any, use_reentrant: bool) -> Any:
        return checkpoint(run, *args, use_reentrant=use_reentrant, preserve_rng_state=False)

    monkeypatch.setattr(checkpointing, "checkpoint", careless)
    with pytest.raises(AssertionError):
        assert_equal(passes(network, batch), expected)


def count_runs(network: Network, monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each block's own forward runs."""
    runs: Counter[int] = Counter()
    layers = list(find_layers(network.model))
    kind = type(layers[0])
    forward = kind.forward

    def counted(layer: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        runs[layers.index(layer)] += 1
        return forward(layer, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", counted)
    return runs


@pytest.mark.parametrize("cached", [False, True])
def test_frozen_blocks_below_run_once(cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, or not at all where they are answered from the store; the trained one twice."""
    network, rows = applied("llama", "generation", "last-layers", tmp_path), make_rows("generation")
    runs = count_runs(network, monkeypatch)
    checkpoint_blocks(network)
    if not cached:
        judged_losses(network, pack(rows))[0].mean().backward()
        assert runs == {0: 1, 1: 1, 2: 2}
        return
    with cached_prefix(network, rows, torch.float32, quiet=True):
        network.model.train()
        runs.clear()
        judged_losses(network, pack(rows))[0].mean().backward()
    assert runs == {2: 2}


def test_evaluation_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = applied("llama", "generation", "full", tmp_path)
    runs = count_runs(network, monkeypatch)
    checkpoint_blocks(network)
    network.model.eval()
    judged_losses(network, pack(make_rows("generation")))[0].mean().backward()
    assert runs == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize(("method", "share"), [("full", 0.25), ("lora", 0.25), ("bottleneck", 0.6)])
def test_less_is_kept(method: str, share: float, tmp_path: Path) -> None:
    """A bottleneck adapter is a hook of its block, and as wide as these blocks are."""
    network, batch = applied("llama", "generation", method, tmp_path), pack(make_rows("generation"))
    own = {parameter.untyped_storage().data_ptr() for parameter in network.model.parameters()}

    def kept() -> int:
        places = kept_for_backward(lambda: judged_losses(network, batch))
        return sum(size for place, size in places.items() if place not in own)

    before = kept()
    checkpoint_blocks(network)
    assert kept() < share * before
