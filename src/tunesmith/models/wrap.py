"""PEFT around a model: made new, or read from a folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel


@contextmanager
def _current_names() -> Iterator[None]:
    """PEFT asks transformers for attributes by names that it has deprecated; the user can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def wrap(model: PreTrainedModel, config: PeftConfig) -> Any:
    """The PEFT model around `model`, with new adapter weights."""
    with _current_names():
        return get_peft_model(model, config)


def read(model: PreTrainedModel, folder: Path) -> Any:
    """The PEFT model around `model`, with the adapter weights of a folder."""
    with _current_names():
        return PeftModel.from_pretrained(model, folder)
