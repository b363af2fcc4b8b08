"""Attention weights, norms and gates made again for the backward pass, and kept for it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.parity import test_encdec
from tests.parity.test_packed import gradients, make_rows, packed_loss
from tests.parity.tiny import kept_for_backward, make_network

from tunesmith.config import TuneConfig
from tunesmith.data.pack import pack
from tunesmith.methods.apply import put_under
from tunesmith.methods.table import METHODS
from tunesmith.models.load import Network
from tunesmith.models.recompute import set_recompute
from tunesmith.records import Task

DIALS = ("speed", "balanced")


@pytest.fixture(autouse=True)
def as_usual() -> Iterator[None]:
    yield
    set_recompute(True)


def under(memory: str, method: str, network: Network) -> None:
    config = TuneConfig.read(given={"model": "m", "data": "d", "method": method, "memory": memory})
    put_under(network, METHODS[method], config, torch.float32, lambda network: None)


@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_memory_for_time_and_the_same_to_the_bit(kind: str, method: str, tmp_path: Path) -> None:
    task: Task = "classification" if kind == "bert" else "generation"
    found, sizes = [], []
    for memory in DIALS:
        torch.manual_seed(0)
        network = make_network(kind, task, tmp_path)
        under(memory, method, network)
        for name, weight in network.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        rows = test_encdec.make_rows(network) if kind == "t5" else make_rows(task)
        batch = pack(rows, share=network.is_decoder)
        sizes.append(sum(kept_for_backward(partial(packed_loss, network, batch)).values()))
        loss = packed_loss(network, batch)
        loss.backward()
        found.append({"loss": loss.detach()} | gradients(network.model))
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)
    assert any(bool(gradient.any()) for name, gradient in found[0].items() if name != "loss")
    assert sizes[0] > 1.02 * sizes[1]
