"""Heads of encoders that find masked words again: what they do to the states before the last product.

Shape letters: N masked places, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class MaskedHead:
    """`modules` are the parts above the pre-trained body; `enter` maps the model and the states (N, D) to what its
    output layer takes, as transformers' own `...ForMaskedLM` does."""

    modules: tuple[str, ...]
    enter: Callable[[Any, torch.Tensor], torch.Tensor]


def _bert(model: Any, states_ND: torch.Tensor) -> torch.Tensor:
    entered: torch.Tensor = model.cls.predictions.transform(states_ND)
    return entered


def _roberta(model: Any, states_ND: torch.Tensor) -> torch.Tensor:
    head = model.lm_head
    entered: torch.Tensor = head.layer_norm(F.gelu(head.dense(states_ND)))
    return entered


def _distilbert(model: Any, states_ND: torch.Tensor) -> torch.Tensor:
    entered: torch.Tensor = model.vocab_layer_norm(model.activation(model.vocab_transform(states_ND)))
    return entered


def _modernbert(model: Any, states_ND: torch.Tensor) -> torch.Tensor:
    entered: torch.Tensor = model.head(states_ND)
    return entered


_ROBERTA = MaskedHead(("lm_head",), _roberta)
MASKED_HEADS: Mapping[str, MaskedHead] = {
    "bert": MaskedHead(("cls",), _bert),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": MaskedHead(("vocab_transform", "vocab_layer_norm", "vocab_projector"), _distilbert),
    "modernbert": MaskedHead(("head", "decoder"), _modernbert),
}
