"""What a base model says, asked once and kept in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tunesmith.assets import cache_root
from tunesmith.evaluation.predictions import Predictions
from tunesmith.models.load import Network, load_network, rest
from tunesmith.models.safety import refuse_foreign
from tunesmith.storage import check_seal, sealed, write_json
from tunesmith.terminal import say

FORMAT = 1
PREDICTIONS, TENSORS = "predictions.json", "tensors.safetensors"


@dataclass(frozen=True, slots=True)
class Said:
    """Predictions by the name of what was asked, and whatever else is to be remembered."""

    predictions: Mapping[str, Predictions] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Base:
    """The model that a network was tuned from: loaded when something is asked that it was not asked before.

    It reads by the tuned network's tokenizer, so both see the same ids.
    """

    def __init__(self, tuned: Network, parent: Mapping[str, str], dtype: torch.dtype) -> None:
        """`parent` has the `name` and the `fingerprint` of the base, as a run's manifest has them; `dtype` is that of
        matrix products, for both models alike."""
        self._tuned, self._parent, self.dtype = tuned, parent, dtype
        self._loaded: Network | None = None

    def recall(self, what: str, ask: Callable[[Network], Said]) -> Said:
        """What the base says to `what`, which names all that the answers depend on besides the model."""
        folder = self._place(what)
        if folder.is_dir() and not check_seal(folder):
            return _read(folder)
        say(f"the base model {self._parent['name']} is asked once, and its answers kept in {folder}")
        said = ask(self._network())
        if not folder.exists():  # what is damaged there stays damaged, and is asked again
            _write(folder, said)
        return said

    def _network(self) -> Network:
        """Raises an InputError where the name stands for other weights now."""
        if self._loaded is None:
            tuned = self._tuned
            network = load_network(self._parent["name"], tuned.task, tuned.class_names)
            refuse_foreign(network, self._parent.get("fingerprint", ""), f"the run in {tuned.source}")
            network.tokenizer = tuned.tokenizer
            rest(network, self.dtype, tuned.model.device)
            self._loaded = network
        return self._loaded

    def _place(self, what: str) -> Path:
        tuned = self._tuned
        weights = self._parent.get("fingerprint") or self._parent["name"]
        words = (len(tuned.tokenizer), tuned.tokenizer.chat_template)
        key = repr((FORMAT, what, weights, tuned.task, tuned.model.device.type, str(self.dtype), words))
        return cache_root() / "forgetting" / hashlib.sha256(key.encode()).hexdigest()[:32]


def _write(folder: Path, said: Said) -> None:
    with sealed(folder) as partial:
        write_json(partial / PREDICTIONS, {name: one.to_mapping() for name, one in said.predictions.items()})
        save_file({name: tensor.contiguous() for name, tensor in said.tensors.items()}, partial / TENSORS)


def _read(folder: Path) -> Said:
    plain = json.loads((folder / PREDICTIONS).read_text(encoding="utf-8"))
    predictions = {name: Predictions.from_mapping(value) for name, value in plain.items()}
    return Said(predictions, load_file(folder / TENSORS))
