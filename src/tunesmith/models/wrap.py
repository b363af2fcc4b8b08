"""PEFT around a model: made new, read from a folder, or merged into it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from transformers import PreTrainedModel

from tunesmith.errors import InputError
from tunesmith.models.heads import type_for_peft
from tunesmith.models.safety import ADAPTER_CONFIG, ADAPTER_WEIGHTS, VIRTUAL, check_folder
from tunesmith.models.weights import read_json, refuse_broken
from tunesmith.storage import sha256_of

# As it is by default; said aloud, torch does not warn when SHiRA makes its first sparse tensor.
torch.sparse.check_sparse_tensor_invariants.disable()


@contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings about which the user can do nothing: PEFT asks transformers for attributes by names that it has
    deprecated, and looks for a compiler of CUDA that BOFT can do without."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "(Failed to load the CUDA extension|Setting boft_n_butterfly_factor to 1)", UserWarning
        )
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def wrap(model: PreTrainedModel, config: PeftConfig) -> Any:
    """The PEFT model around `model`, with new adapter weights, called in its files what the model is for.

    Raises:
        InputError: virtual tokens for a model with two sides.
    """
    if model.config.is_encoder_decoder and config.is_prompt_learning:
        raise InputError(
            "virtual tokens are put before one row of tokens, and an encoder-decoder reads two. Take lora, "
            "bottleneck or bitfit"
        )
    kind = type_for_peft(model)
    # PEFT's own class for question answering keeps the types of tokens to itself; its plain one hands on all it gets.
    config.task_type = None if kind == TaskType.QUESTION_ANS and not config.is_prompt_learning else kind
    with _quietly():
        return get_peft_model(model, config)


def read(model: PreTrainedModel, folder: Path, name: str = "default") -> Any:
    """The PEFT model around `model`, with the adapter weights of a folder, which it calls `name`.

    Raises:
        InputError: the folder is hostile or damaged, or its adapter was made for another model.
    """
    with _reading(folder):
        wrapped = PeftModel.from_pretrained(model, folder, adapter_name=name)
    _check_complete(wrapped, folder, name)
    return wrapped


def read_further(wrapped: Any, folder: Path, name: str) -> None:
    """One more adapter for a PEFT model that has some already; it is not at work before `switch`. Raises as `read`."""
    with _reading(folder):
        wrapped.load_adapter(folder, name)
    _check_complete(wrapped, folder, name)


def switch(wrapped: Any, names: Sequence[str]) -> None:
    """Sets these adapters to work, one on top of the other, and no others; with none the base is as it was."""
    if names:
        wrapped.base_model.set_adapter(list(names), inference_mode=True)
        wrapped.base_model.enable_adapter_layers()
    else:
        wrapped.base_model.disable_adapter_layers()


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    check_folder(folder, str(folder))
    if not (folder / ADAPTER_CONFIG).is_file():  # PEFT would ask the hub for it
        raise InputError(f"{folder}: not an adapter, it holds no {ADAPTER_CONFIG}")
    try:
        with _quietly():
            # We look for missing weights ourselves.
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            yield
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise InputError(f"{folder}: the adapter does not fit the base model: {first_line}") from error


# Embeddings and heads that PEFT saves along, and the network of P-tuning, whose result is saved.
MAY_BE_SAVED_TOO = ("embed", "lm_head", "prompt_encoder")


def _check_complete(wrapped: PeftModel, folder: Path, name: str) -> None:
    """PEFT leaves at random what an adapter lacks, and leaves out what has no place."""
    weights = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False)
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        saved = set(file.keys())
    lacking = sorted(weights.keys() - saved)
    homeless = sorted(name for name in saved - weights.keys() if not any(part in name for part in MAY_BE_SAVED_TOO))
    if lacking or homeless:
        what = f"lacks {lacking[0]}" if lacking else f"has {homeless[0]}, for which it has no place"
        raise InputError(f"{folder / ADAPTER_WEIGHTS}: the adapter does not fit the base model: it {what}")
    refuse_broken(weights.items(), str(folder / ADAPTER_WEIGHTS))


def merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """`model` with an adapter's changes added to its own weights.

    Raises:
        InputError: as `read`, or an adapter that is no change of weights.
    """
    kind = read_json(folder / ADAPTER_CONFIG).get("peft_type")
    if kind in VIRTUAL:
        raise InputError(
            f"{folder}: an adapter of type {kind} puts virtual tokens before each row, and these cannot be merged into "
            "the base model's weights. Give the base"
        )
    return unwrap_merged(read(model, folder))


def unwrap_merged(wrapped: PeftModel) -> PreTrainedModel:
    """The base model of a PEFT model, with every adapter merged into the layer it stands in, and new heads in place.

    PEFT's own `merge_and_unload` stops at a head of several layers (BERT's pooler) for most kinds of adapters.
    """
    model: PreTrainedModel = wrapped.get_base_model()
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    vars(model).pop("peft_config", None)  # it would be asked whether a further adapter is meant to stand beside
    return model


def identify(folder: Path) -> str:
    """sha256 of an adapter: its weights and its settings, wherever its base model lies."""
    settings = read_json(folder / ADAPTER_CONFIG)
    settings.pop("base_model_name_or_path", None)
    said = f"{sha256_of(folder / ADAPTER_WEIGHTS)} {json.dumps(settings, sort_keys=True)}"
    return hashlib.sha256(said.encode()).hexdigest()
