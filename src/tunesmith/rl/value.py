"""What an answer is worth so far, for PPO: a layer on the policy's own states, or a network that begins as the reward
model.

Shape letters: N tokens of all answers end to end, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from tunesmith.config_align import AlignConfig
from tunesmith.errors import InputError
from tunesmith.methods.apply import find_rates, put_under
from tunesmith.methods.method import Method
from tunesmith.models.heads import find_head
from tunesmith.models.load import Network, load_network, move
from tunesmith.models.packed import packed_hidden
from tunesmith.records import PackedBatch
from tunesmith.rewarding import REPORT
from tunesmith.runtime import autocast
from tunesmith.train.checkpoint import Named
from tunesmith.train.loop import trainable
from tunesmith.train.optim import Rate


class Value(Protocol):
    """What is still to come, said before each token of the answers (N,)."""

    def modules(self) -> list[nn.Module]: ...

    def trained(self) -> Named: ...

    def rates(self) -> Mapping[str, Rate]:
        """How each parameter learns beside the others of the value, where that is not alike."""
        ...

    def values_N(self, batch: PackedBatch, hidden_ND: torch.Tensor) -> torch.Tensor:
        """`hidden_ND` are the policy's last states there."""
        ...


class ValueHead:
    """A linear layer on the policy's last states. It begins at 0 everywhere (Ziegler et al. 2019)."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._layer = nn.Linear(width, 1, device=device)
        nn.init.zeros_(self._layer.weight)
        nn.init.zeros_(self._layer.bias)

    def modules(self) -> list[nn.Module]:
        return [self._layer]

    def trained(self) -> Named:
        return [(f"value_head.{name}", parameter) for name, parameter in self._layer.named_parameters()]

    def rates(self) -> Mapping[str, Rate]:
        return {}

    def values_N(self, batch: PackedBatch, hidden_ND: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            values: torch.Tensor = self._layer(hidden_ND.float())[:, 0]
        return values


class ValueNetwork:
    """A network of its own, that begins as the reward model (Ouyang et al. 2022, appendix C.4): before the first step
    its value at a place is the reward of the text up to there, shifted, scaled and weighed as the reward is."""

    def __init__(
        self, network: Network, rates: Mapping[str, Rate], scale: float, shift: float, dtype: torch.dtype
    ) -> None:
        self._network, self._rates, self._scale, self._shift, self._dtype = network, rates, scale, shift, dtype
        network.model.eval()

    def modules(self) -> list[nn.Module]:
        return [self._network.model]

    def trained(self) -> Named:
        return [(f"value.{name}", parameter) for name, parameter in trainable(self._network)]

    def rates(self) -> Mapping[str, Rate]:
        return {f"value.{name}": rate for name, rate in self._rates.items()}

    def values_N(self, batch: PackedBatch, hidden_ND: torch.Tensor) -> torch.Tensor:
        network = self._network
        with autocast(batch.input_ids.device, self._dtype):
            own_ND = packed_hidden(network, batch)[batch.predict_from]
            logits_N = find_head(network.model, "ranking").logits(network.model, own_ND)[:, 0]
        return self._scale * (logits_N.float() + self._shift)


def open_value(
    config: AlignConfig, policy: Network, method: Method, device: torch.device, dtype: torch.dtype
) -> Value | None:
    """What the algorithm needs: PPO the value that the configuration names, the others none.

    Raises:
        InputError: not one reward is a reward model, or it reads otherwise than the policy.
    """
    if config.algorithm != "ppo":
        return None
    if config.value == "head":
        return ValueHead(policy.model.config.hidden_size, device)
    place, folder = _find_reward_model(config)
    network = load_network(str(folder), "ranking")
    known, read = network.tokenizer.get_vocab(), policy.tokenizer.get_vocab()
    if not network.is_decoder or any(known.get(token) != number for token, number in read.items()):
        raise InputError(
            f"value: the reward model {folder} is an encoder, or has other tokens than '{config.model}', so it cannot "
            "follow an answer token by token. Take value head, or a reward model made from the same decoder"
        )
    put_under(network, method, config, dtype, partial(move, device=device))
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    weight = config.reward_weights[place] if config.reward_weights else 1.0
    scale = weight / (float(report["deviation"]) or 1.0)
    return ValueNetwork(network, find_rates(network, method, config), scale, float(report["shift"]), dtype)


def _find_reward_model(config: AlignConfig) -> tuple[int, Path]:
    """The one among the rewards, and its place among them."""
    folders = [Path(name).expanduser() for name in config.reward]
    found = [(place, folder) for place, folder in enumerate(folders) if (folder / REPORT).is_file()]
    if len(found) != 1:
        raise InputError(
            f"value reward begins as a run of `tunesmith reward`, and {len(found)} of the rewards "
            f"({', '.join(config.reward)}) are such runs. Name one, or take value head"
        )
    return found[0]
