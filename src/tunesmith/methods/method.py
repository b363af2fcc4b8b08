"""What a way to adjust the weights consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from tunesmith.config import TrainingConfig
from tunesmith.models.load import Network, quietly
from tunesmith.records import TokenizedExample

Attend = Callable[[Network, TrainingConfig, torch.optim.Optimizer, int], None]
Inform = Callable[[Network, TrainingConfig, Sequence[TokenizedExample], torch.dtype], None]
Family = Literal["full", "selective", "additive", "reparameterised"]


@dataclass(frozen=True, slots=True)
class Saving:
    """How a tuned network becomes files and how these are put back on a freshly loaded base.

    `form` says what the files are. Without `restore` they are a complete model, so that no base is needed.
    """

    form: str
    save: Callable[[Network, Path], None]
    restore: Callable[[Network, Path], None] | None = None

    @property
    def whole(self) -> bool:
        return self.restore is None


def save_pretrained(network: Network, folder: Path) -> None:
    """As transformers and PEFT save: a whole model, or an adapter."""
    wrapper: Any = network.wrapper
    with quietly():
        wrapper.save_pretrained(folder)


WHOLE = Saving("model", save_pretrained)

REFERENCE_WIDTH = 512


def _same(name: str) -> float:
    return 1.0


@dataclass(frozen=True, slots=True)
class Method:
    """One row.

    `learning_rate` is the default peak for AdamW: first for a model with a new head (classification,
    regression), then for a decoder that writes text. With `by_width` it is meant for matrices of a model
    REFERENCE_WIDTH wide and falls as 1 / width, the rule of muP for Adam (Yang et al. 2022, arXiv
    2203.03466): 1e-3 for LoRA on 512 is 1.25e-4 on 4,096. `rate_of` gives the factor for a parameter by its name.
    `settings` are those in which a method of PEFT's is not as PEFT has it; `merges` says that its adapter can become
    part of the base model's own weights; `starts_equal` that the model is as it was before the first step;
    `transposed` that GPT-2's linear layers (Conv1D), which keep their matrix the other way round, will do;
    `foreseen` that it can be planned without weights; `virtual` that `num_virtual_tokens` stand before each row.
    `inform` looks at training rows once the network is ready, before the first step, in products of the type given.
    `attend` puts something beside the optimizer once it is made, for so many steps.
    `options` are the keys that it takes as `method_options`.
    """

    name: str
    family: Family
    summary: str
    paper: str
    learning_rate: tuple[float, float]
    apply: Callable[[Network, TrainingConfig], None]
    saving: Saving = WHOLE
    by_width: bool = True
    rate_of: Callable[[str], float] = _same
    settings: Mapping[str, Any] = field(default_factory=dict)
    merges: bool = False
    starts_equal: bool = True
    transposed: bool = True
    foreseen: bool = True
    virtual: bool = False
    inform: Inform | None = None
    attend: Attend | None = None
    options: frozenset[str] = frozenset()
