"""Lean layers against the layers of transformers that they stand for: value, every gradient, memory."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.parity.tiny import kept_beside_weights, make_network
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP, LlamaRMSNorm

from tunesmith.models.lean import use_lean_layers
from tunesmith.models.lowrank import fuse
from tunesmith.models.recompute import Remake, find_recipe


def is_lean(module: nn.Module) -> bool:
    return "forward" in vars(module)


def make_layer(kind: str) -> nn.Module:
    config = LlamaConfig(hidden_size=24, intermediate_size=40, num_attention_heads=4)
    layer: nn.Module = LlamaRMSNorm(24) if kind == "norm" else LlamaMLP(config)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)  # a norm's weights are ones at first, which would hide their factor
    return layer


def results(layer: nn.Module, x: torch.Tensor, forward: Any) -> list[torch.Tensor]:
    """Output, gradient of the input, gradients of the weights."""
    inputs = x.clone().requires_grad_(True)
    layer.zero_grad()
    out = forward(inputs)
    (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [out.detach(), inputs.grad, *(parameter.grad.clone() for parameter in layer.parameters())]  # type: ignore[list-item, union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["norm", "gate"])
def test_same_value_and_gradients(kind: str, dtype: torch.dtype) -> None:
    layer = make_layer(kind).to(dtype)
    use_lean_layers(layer)
    assert is_lean(layer)
    x = torch.randn(3, 7, 24, dtype=dtype)
    theirs = results(layer, x, lambda inputs: type(layer).forward(layer, inputs))
    precision = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.05}
    for ours, expected in zip(results(layer, x, layer), theirs, strict=True):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, **precision)


def saved_bytes(layer: nn.Module, forward: Any) -> int:
    """Bytes kept for the backward pass, beside the weights and counting each tensor once."""
    x = torch.randn(64, 24, dtype=torch.bfloat16, requires_grad=True)
    return kept_beside_weights(layer, lambda: forward(x))


@pytest.mark.parametrize(("kind", "share"), [("norm", 0.6), ("gate", 0.7)])
def test_less_is_kept(kind: str, share: float) -> None:
    layer = make_layer(kind).to(torch.bfloat16).requires_grad_(False)
    use_lean_layers(layer)
    theirs = saved_bytes(layer, lambda x: type(layer).forward(layer, x))
    assert saved_bytes(layer, layer) <= share * theirs


COUNTS = [("llama", 7, 3), ("qwen3", 13, 3), ("gemma2", 0, 0), ("gpt2", 0, 0)]


@pytest.mark.parametrize(("kind", "norms", "gates"), COUNTS)
def test_only_families_that_compute_so_are_changed(kind: str, norms: int, gates: int, tmp_path: Path) -> None:
    """Gemma scales by 1 + w and gates with GELU; GPT-2 has neither layer."""
    modules = make_network(kind, "generation", tmp_path).model.modules()
    lean = [type(module).__name__ for module in modules if is_lean(module)]
    assert sum(name.endswith("RMSNorm") for name in lean) == norms
    assert sum(name.endswith("MLP") for name in lean) == gates


class ShiftedRMSNorm(LlamaRMSNorm):
    """Looks like Llama's, computes otherwise."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) + self.weight


def test_a_look_alike_keeps_its_own() -> None:
    layer = ShiftedRMSNorm(24)
    state = torch.get_rng_state()
    use_lean_layers(layer)
    assert not is_lean(layer)
    assert torch.equal(state, torch.get_rng_state()), "new heads are drawn from the same numbers as without the probe"


def test_what_several_layers_keep_is_made_again_once() -> None:
    made = []
    again = Remake(lambda x: made.append(1) or 2 * x, expected=2)
    first, second = again.give(torch.float32, torch.ones(3)), again.give(torch.float32, torch.ones(3))
    assert torch.equal(first, second)
    assert len(made) == 1
    assert again.made is None, "nothing is held when all have asked"
    again.give(torch.float32, torch.ones(3))
    assert len(made) == 2, "whoever goes through a graph a second time gets it too"


def test_checkpointing_lets_go_of_what_a_tensor_is_made_from() -> None:
    norm = make_layer("norm").requires_grad_(False)
    use_lean_layers(norm)
    wrapped = get_peft_model(nn.Sequential(nn.Linear(24, 24)), LoraConfig(target_modules=["0"]))
    fuse(wrapped)
    parts = []

    def block(x: torch.Tensor) -> torch.Tensor:
        normed = norm(2 * x)
        recipe = find_recipe(normed)
        assert recipe is not None
        parts.append(weakref.ref(recipe.parts[0]))
        out: torch.Tensor = wrapped(normed)
        return out

    x = torch.randn(5, 24, requires_grad=True)
    kept = block(x)
    assert parts[-1]() is not None, "without it they are kept"
    out = checkpoint(block, x, use_reentrant=False)
    assert parts[-1]() is None
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x), torch.autograd.grad(kept.sum(), x))
