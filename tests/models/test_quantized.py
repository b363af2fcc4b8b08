"""Matrices in few bits: each weight the nearest value, layers and gradients as beside the same matrices whole, and a
run that comes back as it was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from tests.faults.survival import make_base, make_rows
from tests.models.test_prefix import applied
from tests.parity import test_packed
from transformers.pytorch_utils import Conv1D

from tunesmith.config import TuneConfig
from tunesmith.data.pack import pack
from tunesmith.errors import InputError
from tunesmith.models.layers import matrix_of
from tunesmith.models.load import Network, count_parameters
from tunesmith.models.quantized import BLOCK, NF4, PACKED, Int8, Quantization, nf4_values, quantize_base
from tunesmith.runs.run import Run
from tunesmith.train.loop import trainable
from tunesmith.train.objective import judged_losses
from tunesmith.train.validate import validate
from tunesmith.tuning import tune

KINDS: tuple[Quantization, ...] = ("int8", "nf4")


def test_the_sixteen_values_are_the_published_ones() -> None:
    """QLoRA, appendix E, to the digits printed there."""
    published = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
    published += [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
    published += [0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941]
    published += [0.7229568362236023, 1.0]
    torch.testing.assert_close(nf4_values(), torch.tensor(published), rtol=0, atol=2e-7)


@pytest.mark.parametrize("shape", [(6, 128), (5, 37), (1, 1)])
def test_nf4_takes_the_nearest_value(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape) * torch.tensor([1e-3, 1.0, 50.0])[torch.randint(0, 3, (shape[0], 1))]
    packed = NF4(weight)
    back = packed.read(torch.float32).double().numpy().ravel()
    flat = np.pad(weight.double().numpy().ravel(), (0, -weight.numel() % BLOCK))
    largest = np.abs(flat.reshape(-1, BLOCK)).max(1, keepdims=True).repeat(BLOCK, 1).ravel()[: weight.numel()]
    given = flat[: weight.numel()]
    nearest = np.abs(given[:, None] / largest[:, None] - nf4_values().double().numpy()).min(1) * largest
    np.testing.assert_allclose(np.abs(back - given), nearest, rtol=1e-4, atol=1e-6 * largest.max())
    assert packed.codes.nbytes == -(-weight.numel() // BLOCK) * BLOCK / 2  # type: ignore[union-attr, operator]


def test_int8_is_off_by_half_a_step() -> None:
    weight = torch.randn(6, 50)
    weight[2] = 0
    packed = Int8(weight)
    gap = (packed.read(torch.float32) - weight).abs()
    assert (gap <= weight.abs().amax(1, keepdim=True) / 127 / 2 * (1 + 1e-5)).all()
    assert packed.codes.dtype == torch.int8  # type: ignore[union-attr]


def gradients(network: Network) -> list[torch.Tensor]:
    network.model.zero_grad()
    losses_N, _ = judged_losses(network, pack(test_packed.make_rows("generation")))
    losses_N.mean().backward()
    return [losses_N.detach(), *(p.grad.clone() for _, p in trainable(network) if p.grad is not None)]


def layers_of(network: Network) -> list[Any]:
    return [module for module in network.model.modules() if isinstance(module, LoraLinear)]


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_step_is_that_beside_the_same_matrices_whole(
    kind: Quantization, family: str, method: str, tmp_path: Path
) -> None:
    network = applied(family, "generation", method, tmp_path / "packed")
    twin = applied(family, "generation", method, tmp_path / "whole")
    for layer, other in zip(layers_of(network), layers_of(twin), strict=True):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.2)
        other.load_state_dict(layer.state_dict())
    total = count_parameters(network)
    quantize_base(network, kind)
    assert count_parameters(network) == total
    for layer, other in zip(layers_of(network), layers_of(twin), strict=True):
        base, whole = layer.get_base_layer(), getattr(layer.get_base_layer(), PACKED).read(torch.float32)
        assert base.weight is None
        assert (other.get_base_layer().weight.data.T if isinstance(base, Conv1D) else whole).shape == whole.shape
        other.get_base_layer().weight.data = whole.T.contiguous() if isinstance(base, Conv1D) else whole
    for ours, theirs in zip(gradients(network), gradients(twin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_without_the_adapter_the_packed_layer_serves(tmp_path: Path) -> None:
    network = applied("llama", "generation", "lora", tmp_path)
    quantize_base(network, "int8")
    before = gradients(network)[0]
    for layer in layers_of(network):
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    with network.wrapper.disable_adapter(), torch.no_grad():  # type: ignore[union-attr, operator]
        losses_N, _ = judged_losses(network, pack(test_packed.make_rows("generation")))
    torch.testing.assert_close(losses_N, before)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_loftq_begins_with_what_packing_loses(family: str, tmp_path: Path) -> None:
    """No product of that rank is nearer, which numpy's singular values say."""
    network = applied(family, "generation", "lora", tmp_path)
    whole = [matrix_of(layer.get_base_layer()).detach().clone() for layer in layers_of(network)]
    quantize_base(network, "nf4", loftq=True)
    for layer, weight in zip(layers_of(network), whole, strict=True):
        lost = weight - getattr(layer.get_base_layer(), PACKED).read(torch.float32)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        left = (lost - layer.scaling["default"] * b @ a).detach().norm()
        best = np.sqrt((np.linalg.svd(lost.numpy(), compute_uv=False)[len(a) :] ** 2).sum())
        assert float(left) == pytest.approx(best, rel=0.01)
        assert float(left) < 0.95 * float(lost.norm())


@pytest.mark.parametrize("method", ["dora", "pissa"])
def test_loftq_is_for_what_begins_at_nothing(method: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="take lora, rslora or lora-plus"):
        quantize_base(applied("llama", "generation", method, tmp_path), "nf4", loftq=True)


def test_loftq_without_quantization_is_refused(tmp_path: Path) -> None:
    make_base("llama", "generation", tmp_path / "llama")
    make_rows("generation", tmp_path / "rows.jsonl")
    given = {"model": str(tmp_path / "llama"), "data": str(tmp_path / "rows.jsonl"), "output": str(tmp_path / "run")}
    for more, says in (
        ({}, "give --quantization nf4"),
        ({"method": "eva", "quantization": "nf4"}, "eva begins in a way"),
    ):
        with pytest.raises(InputError, match=says):
            tune(TuneConfig.read(given=given | {"loftq": True, "check": False} | more), quiet=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_comes_back_as_it_was_trained(kind: Quantization, precision: str, tmp_path: Path) -> None:
    make_base("llama", "generation", tmp_path / "llama")
    make_rows("generation", tmp_path / "rows.jsonl")
    given = {"model": tmp_path / "llama", "data": tmp_path / "rows.jsonl", "method": "lora", "output": tmp_path / "run"}
    settings = {"quantization": kind, "precision": precision, "loftq": kind == "nf4"}
    run = tune(TuneConfig.read(given={k: str(v) for k, v in given.items()} | settings), quiet=True)
    rows = test_packed.make_rows("generation")
    again = Run.open(run.folder).network
    for ours, theirs in zip(layers_of(again), layers_of(run.network), strict=True):
        found, expected = (getattr(layer.get_base_layer(), PACKED).read(torch.float32) for layer in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    if precision == "fp32":  # in bf16 what else is frozen is rounded while it trains
        losses = [validate(one, rows, torch.float32).losses for one in (again, run.network)]
        np.testing.assert_array_equal(*losses)
    first, last = run.outcome["curve"][0], run.outcome["curve"][-1]
    assert last["validation_loss"] < first["validation_loss"]


@pytest.mark.parametrize(
    ("method", "more", "says"),
    [("full", {}, "take lora or dora"), ("dora", {"lora_dropout": 0.1}, "set lora_dropout to 0")],
)
def test_what_cannot_be_packed_is_refused(method: str, more: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        quantize_base(applied("llama", "generation", method, tmp_path, **more), "nf4")
