"""AdaLoRA: while it trains, ranks are taken from where they matter least (Zhang et al. 2023, arXiv 2303.10512).

An update is s B diag(E) A / r, and a rank of a layer is a triplet of a row of A, a number of E and a column of B. How
much each entry matters is kept beside the optimizer's own states, so that a training that goes on allots the same.

Shape letters: I inputs, O outputs, R ranks of a layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from math import ceil
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model_state_dict
from peft.tuners.adalora import SVDLinear
from safetensors.torch import save_file
from torch import nn

from tunesmith.config import TrainingConfig
from tunesmith.errors import InputError
from tunesmith.models.load import Network
from tunesmith.models.safety import ADAPTER_WEIGHTS

# Shares of the steps, where no numbers are given: at first all learn, at last those that are left (as in section 4).
FIRST_SHARE, LAST_SHARE = 0.1, 0.3
SENSITIVITY, UNCERTAINTY, KEPT, STEPS = "sensitivity", "uncertainty", "kept", "steps"
TRIPLET = re.compile(r"\.lora_[ABE]$")


@dataclass(frozen=True, slots=True)
class Triplets:
    """The ranks of one layer: A (R, I), E (R, 1), B (O, R)."""

    a_RI: nn.Parameter
    e_R1: nn.Parameter
    b_OR: nn.Parameter


@dataclass(frozen=True, slots=True)
class Budget:
    """How many ranks all layers together have after a step: `first` up to the step `begins`, `last` from `ends` on, by
    a third power between (equation 13). They are allotted anew every `every` steps."""

    first: int
    last: int
    begins: int
    ends: int
    every: int

    def after(self, step: int) -> int | None:
        """None where nothing is allotted."""
        if step <= self.begins or step > self.ends or (step < self.ends and step % self.every):
            return None
        left = 1 - (step - self.begins) / (self.ends - self.begins)
        return int((self.first - self.last) * left**3 + self.last)


def allot_ranks(network: Network, config: TrainingConfig, optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    """Lets every step of the optimizer take ranks away, as many as are too many by then.

    Raises:
        InputError: no step is left between the first and the last part of the training.
    """
    said = settings_of(network)
    said.total_step = num_steps
    said.tinit = said.tinit or ceil(FIRST_SHARE * num_steps)
    said.tfinal = said.tfinal or ceil(LAST_SHARE * num_steps)
    if said.tinit >= num_steps - said.tfinal:
        raise InputError(
            f"adalora has {num_steps} steps, of which ranks stay as they are for the first {said.tinit} and the last "
            f"{said.tfinal}: none is left. Train for longer, or set method_options adalora.tinit and adalora.tfinal"
        )
    layers = list(triplets_of(network))
    first = sum(len(layer.e_R1) for layer in layers)
    budget = Budget(first, said.target_r * len(layers), said.tinit, num_steps - said.tfinal, said.deltaT)

    @torch.no_grad()
    def before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        _pull_to_orthogonal(layers, said.orth_reg_weight)

    @torch.no_grad()
    def after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        step = int(optimizer.state[layers[0].e_R1].setdefault(STEPS, torch.zeros(())).add_(1))
        if step < budget.ends:
            _follow(optimizer, layers, said.beta1, said.beta2)
        left = budget.after(step)
        if left is not None and left < first:
            _take_away(optimizer, layers, first - left)
        elif step > budget.ends:
            for layer in layers:
                layer.e_R1.mul_(optimizer.state[layer.e_R1][KEPT])

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def settings_of(network: Network) -> AdaLoraConfig:
    wrapper: Any = network.wrapper
    said: AdaLoraConfig = wrapper.peft_config[wrapper.active_adapter]
    return said


def triplets_of(network: Network) -> Iterator[Triplets]:
    for _, layer, name in _layers(network):
        yield Triplets(layer.lora_A[name], layer.lora_E[name], layer.lora_B[name])


def _layers(network: Network) -> Iterator[tuple[str, Any, str]]:
    """Each layer with its own name, and that of its adapter."""
    for path, module in network.model.named_modules():
        if isinstance(module, SVDLinear):
            yield path, module, module.active_adapters[0]


def _pull_to_orthogonal(layers: Sequence[Triplets], strength: float) -> None:
    """Adds the gradient of strength x the mean over all A and B of |A A^T - 1|_F and |B^T B - 1|_F (equation 4): so
    that ranks say different things. It joins a gradient that is clipped already."""
    for layer in layers:
        for parameter, rows in ((layer.a_RI, layer.a_RI), (layer.b_OR, layer.b_OR.T)):
            if parameter.grad is not None:
                away_RR = rows @ rows.T - torch.eye(len(rows), device=rows.device, dtype=rows.dtype)
                pull = away_RR @ rows * (2 / away_RR.norm())
                parameter.grad.add_(pull if rows is parameter else pull.T, alpha=strength / (2 * len(layers)))


def _follow(optimizer: torch.optim.Optimizer, layers: Sequence[Triplets], beta1: float, beta2: float) -> None:
    """Smooths how much each entry matters, |w dL/dw|, and how far that varies (equations 9 to 11)."""
    for layer in layers:
        for parameter in (layer.a_RI, layer.e_R1, layer.b_OR):
            assert parameter.grad is not None
            state, now = optimizer.state[parameter], (parameter * parameter.grad).abs()
            mean = state.setdefault(SENSITIVITY, torch.zeros_like(now))
            mean.mul_(beta1).add_(now, alpha=1 - beta1)
            state.setdefault(UNCERTAINTY, torch.zeros_like(now)).mul_(beta2).add_((now - mean).abs(), alpha=1 - beta2)


def _take_away(optimizer: torch.optim.Optimizer, layers: Sequence[Triplets], count: int) -> None:
    """Sets to zero the numbers of the `count` triplets that matter least (equations 7 and 12)."""

    def matter(parameter: nn.Parameter) -> torch.Tensor:
        state = optimizer.state[parameter]
        product: torch.Tensor = state[SENSITIVITY] * state[UNCERTAINTY]
        return product

    scores_R = [
        matter(layer.e_R1).view(-1) + matter(layer.a_RI).mean(1) + matter(layer.b_OR).mean(0) for layer in layers
    ]
    threshold = torch.cat(scores_R).kthvalue(count).values
    for layer, score_R in zip(layers, scores_R, strict=True):
        kept_R1 = (score_R > threshold).view(-1, 1).to(layer.e_R1.dtype)
        layer.e_R1.mul_(kept_R1)
        optimizer.state[layer.e_R1][KEPT] = kept_R1


def save_ranks(network: Network, folder: Path) -> None:
    """As a plain LoRA whose layers have the ranks that are left: A' = s diag(E) A / r, by its own scale of 1. So it is
    read by all that read LoRA; a layer that has no rank left gets one of zeros."""
    wrapper: Any = network.wrapper
    said = settings_of(network)
    weights = {key: tensor for key, tensor in get_peft_model_state_dict(wrapper).items() if not TRIPLET.search(key)}
    ranks: dict[str, int] = {}
    for path, layer, name in _layers(network):
        e_R1 = layer.lora_E[name]
        left_R = e_R1.view(-1) != 0
        left_R[0] |= not left_R.any()
        scale = layer.scaling[name] / (layer.ranknum[name] + 1e-5)  # as its forward has it
        ranks[path] = int(left_R.sum())
        weights[f"base_model.model.{path}.lora_A.weight"] = (scale * e_R1 * layer.lora_A[name])[left_R]
        weights[f"base_model.model.{path}.lora_B.weight"] = layer.lora_B[name][:, left_R]
    shared = {each.name: getattr(said, each.name) for each in fields(LoraConfig) if each.init}
    plain = LoraConfig(**shared | {"rank_pattern": ranks, "alpha_pattern": ranks, "r": said.target_r})
    plain.lora_alpha, plain.inference_mode = said.target_r, True
    folder.mkdir(parents=True, exist_ok=True)
    plain.save_pretrained(str(folder))
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}, folder / ADAPTER_WEIGHTS)
