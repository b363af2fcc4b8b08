"""Trained linear layers beside PyTorch's own: the same numbers, less kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.parity.test_packed import gradients, make_rows, packed_loss
from tests.parity.tiny import kept_beside_weights, make_network
from torch import nn

from tunesmith.data.pack import pack
from tunesmith.models.lean import use_lean_layers
from tunesmith.models.linear import use_lean_linears
from tunesmith.runtime import autocast

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)


def make_layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 32, bias=bias)


def results(layer: nn.Linear, x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor | None, ...]:
    """Output and the gradients of input and parameters."""
    x = x.clone().requires_grad_()
    with autocast(CPU, dtype):
        out = layer(x)
    wanted = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    (out.float().square().sum()).backward()
    return out.detach(), *(one.grad for one in wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_as_pytorch_computes(dtype: torch.dtype, bias: bool) -> None:
    x = torch.randn(3, 7, 48)
    theirs = results(make_layer(bias), x, dtype)
    layer = make_layer(bias)
    use_lean_linears(layer)
    ours = results(layer, x, dtype)
    for found, expected in zip(ours, theirs, strict=True):
        # PyTorch sums the gradient of a bias in bfloat16, here it is summed in float32.
        is_bias = expected is not None and expected.shape == (32,) and dtype == torch.bfloat16
        torch.testing.assert_close(found, expected, atol=0, rtol=1e-2 if is_bias else 0)


def test_a_frozen_weight_is_pytorchs_to_multiply() -> None:
    layer = make_layer().requires_grad_(False)
    use_lean_linears(layer)
    assert "Addmm" in type(layer(torch.randn(5, 48, requires_grad=True)).grad_fn).__name__
    layer.requires_grad_(True)
    assert "_Linear" in type(layer(torch.randn(5, 48)).grad_fn).__name__


def kept_under_autocast(layers: nn.ModuleList, x: torch.Tensor) -> int:
    def run() -> None:
        with autocast(CPU, torch.bfloat16):
            for layer in layers:
                layer(x)

    return kept_beside_weights(layers, run)


def test_an_input_is_rounded_once_for_all_and_no_weight_is_kept() -> None:
    x = 2 * torch.randn(20, 48, requires_grad=True)  # of a leaf PyTorch keeps one copy itself
    theirs = nn.ModuleList(make_layer() for _ in range(3))
    ours = nn.ModuleList(make_layer() for _ in range(3))
    use_lean_linears(ours)
    assert kept_under_autocast(theirs, x) == 3 * 2 * (20 * 48 + 48 * 32)
    assert kept_under_autocast(ours, x) == 2 * 20 * 48


def test_an_input_changed_in_place_is_rounded_again() -> None:
    layer = make_layer()
    use_lean_linears(layer)
    x = torch.randn(5, 48)
    with autocast(CPU, torch.bfloat16):
        layer(x)
        x += 1
        found = layer(x)
        expected = nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2"])
def test_a_whole_model_gets_the_same_gradients_for_less(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    found, sizes = [], []
    task = "classification" if kind == "bert" else "generation"
    for ours in (False, True):
        torch.manual_seed(0)
        network = make_network(kind, task, tmp_path)
        for module in network.model.modules():
            if type(module) is nn.Linear:
                vars(module).pop("forward", None)
        use_lean_layers(network.model)
        if ours:
            use_lean_linears(network.model)
        batch = pack(make_rows(task), share=network.is_decoder)

        def run(network=network, batch=batch) -> torch.Tensor:  # type: ignore[no-untyped-def]
            with autocast(CPU, dtype):
                loss: torch.Tensor = packed_loss(network, batch)
            return loss

        sizes.append(kept_beside_weights(network.model, run))
        loss = run()
        loss.backward()
        found.append({"loss": loss.detach()} | gradients(network.model))
    torch.testing.assert_close(found[1], found[0], atol=1e-7, rtol=1e-6 if dtype == torch.float32 else 1e-2)
    assert sizes[1] < sizes[0] or kind == "gpt2" or (kind == "bert" and dtype == torch.float32)
