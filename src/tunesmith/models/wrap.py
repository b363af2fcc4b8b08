"""PEFT around a model: made new, read from a folder, or merged into it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel

from tunesmith.errors import InputError
from tunesmith.models.safety import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_folder
from tunesmith.models.weights import read_json, refuse_broken
from tunesmith.storage import sha256_of


@contextmanager
def _current_names() -> Iterator[None]:
    """PEFT asks transformers for attributes by names that it has deprecated; the user can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def wrap(model: PreTrainedModel, config: PeftConfig) -> Any:
    """The PEFT model around `model`, with new adapter weights.

    Raises:
        InputError: virtual tokens for a model with two sides.
    """
    if model.config.is_encoder_decoder:
        if config.is_prompt_learning:
            raise InputError(
                "virtual tokens are put before one row of tokens, and an encoder-decoder reads two. Take lora, "
                "bottleneck or bitfit"
            )
        config.task_type = TaskType.SEQ_2_SEQ_LM  # else the files would ask for a decoder
    with _current_names():
        return get_peft_model(model, config)


def read(model: PreTrainedModel, folder: Path) -> Any:
    """The PEFT model around `model`, with the adapter weights of a folder.

    Raises:
        InputError: the folder is hostile or damaged, or its adapter was made for another model.
    """
    check_folder(folder, str(folder))
    if not (folder / ADAPTER_CONFIG).is_file():  # PEFT would ask the hub for it
        raise InputError(f"{folder}: not an adapter, it holds no {ADAPTER_CONFIG}")
    try:
        with _current_names():
            # We look for missing weights ourselves.
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            wrapped = PeftModel.from_pretrained(model, folder)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise InputError(f"{folder}: the adapter does not fit the base model: {first_line}") from error
    _check_complete(wrapped, folder)
    return wrapped


def _check_complete(wrapped: PeftModel, folder: Path) -> None:
    """PEFT leaves at random what an adapter lacks, and leaves out what has no place."""
    weights = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        saved = set(file.keys())
    lacking = sorted(weights.keys() - saved)
    homeless = sorted(name for name in saved - weights.keys() if "embed" not in name and "lm_head" not in name)
    if lacking or homeless:
        what = f"lacks {lacking[0]}" if lacking else f"has {homeless[0]}, for which it has no place"
        raise InputError(f"{folder / ADAPTER_WEIGHTS}: the adapter does not fit the base model: it {what}")
    refuse_broken(weights.items(), str(folder / ADAPTER_WEIGHTS))


def merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """`model` with an adapter's changes added to its own weights.

    Raises:
        InputError: as `read`, or an adapter of a type that is no change of weights.
    """
    kind = read_json(folder / ADAPTER_CONFIG).get("peft_type")
    if kind != "LORA":
        raise InputError(f"{folder}: an adapter of type {kind} cannot be merged into its base model. Give the base")
    wrapped = read(model, folder)
    merged: PreTrainedModel = wrapped.merge_and_unload()
    return merged


def identify(folder: Path) -> str:
    """sha256 of an adapter: its weights and its settings, wherever its base model lies."""
    settings = read_json(folder / ADAPTER_CONFIG)
    settings.pop("base_model_name_or_path", None)
    said = f"{sha256_of(folder / ADAPTER_WEIGHTS)} {json.dumps(settings, sort_keys=True)}"
    return hashlib.sha256(said.encode()).hexdigest()
