"""Compiled kernels against the same formulas run operation by operation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.parity.test_packed import gradients, make_rows, packed_loss
from tests.parity.tiny import make_network
from torch._dynamo.utils import counters

from tunesmith.data.pack import pack
from tunesmith.errors import InputError
from tunesmith.models.kernels import set_compile
from tunesmith.models.load import Network

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    yield
    set_compile(False, CPU)


def loss_and_gradients(network: Network) -> dict[str, torch.Tensor]:
    network.model.zero_grad()
    loss = packed_loss(network, pack(make_rows("generation"), share=True))
    loss.backward()
    return {"loss": loss.detach()} | gradients(network.model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # the compiler's own
def test_a_step_is_the_same_compiled(tmp_path: Path) -> None:
    network = make_network("llama", "generation", tmp_path)
    expected = loss_and_gradients(network)
    set_compile(True, CPU)
    before = counters["stats"]["unique_graphs"]
    torch.testing.assert_close(loss_and_gradients(network), expected, atol=1e-5, rtol=1e-5)
    made = counters["stats"]["unique_graphs"] - before
    # Norm and its slope, gated unit and its slopes, softmax and its slope, at the least.
    assert made >= 6
    loss_and_gradients(network)
    assert counters["stats"]["unique_graphs"] == before + made, "a second step compiles nothing"


@pytest.mark.parametrize("given", ["", "no-such-compiler"])
def test_no_compiler_is_told_beforehand(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", given)
    with pytest.raises(InputError, match=r"neither g\+\+ nor clang\+\+"):
        set_compile(True, CPU)
    (tmp_path / "clang++").write_text("#!/bin/sh\n")
    (tmp_path / "clang++").chmod(0o755)
    set_compile(True, CPU)
