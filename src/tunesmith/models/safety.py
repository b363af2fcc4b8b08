"""A folder with a model, a tokenizer or an adapter, judged before transformers or peft read any of it.

Both run code, import packages or fetch from the hub where a folder's configuration says so, in more
ways than `trust_remote_code` governs. What of that is found here is refused by name; so are pickles
and damaged weights. Symbolic links are followed: the hub's own cache is made of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from tunesmith.errors import InputError
from tunesmith.models.weights import check_index, check_safetensors, read_json, refuse_pointer

MODEL_CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")

# Weights in formats that are not read. Beside safetensors they are left alone.
FOREIGN_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".gguf", ".onnx"}
# What trainers leave beside the weights; never read here.
LEFT_OVERS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")
# Short ones only: a pointer has some 130 bytes.
LONGEST_POINTER = 1024

ATTENTIONS = {None, "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4"}
EXPERTS = {None, "eager", "batched_mm", "grouped_mm"}
# Types of PEFT that put virtual tokens before each row, and those that change a matrix. All of them read no further
# files by names that stand in their configuration.
VIRTUAL = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
CHANGES = (
    *("LORA", "IA3", "LOHA", "LOKR", "VERA", "RANDLORA", "FOURIERFT", "OFT", "BOFT", "HRA", "MISS", "DELORA", "C3A"),
    *("VBLORA", "GRALORA", "SHIRA", "HIRA", "ROAD", "WAVEFT", "PEANUT", "PSOFT", "PVERA", "TINYLORA"),
    *("UNILORA", "ADAMSS", "GLORA", "DEFT"),
)
ADAPTERS = VIRTUAL + CHANGES
# Two models of transformers' own classes in one; `load` says which.
JOINED = ("encoder-decoder",)
# Keys whose own keys are a user's words.
WORDS = {"label2id", "id2label"}


class Fingerprinted(Protocol):
    """A network: what it was made from, and the sha256 of those weights."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def source(self) -> str: ...


def check_folder(folder: Path, given: str) -> None:
    """Refuses a folder that is hostile or damaged. Cheap enough for every load: of weights, headers are read.

    Args:
        given: what the user calls the model.

    Raises:
        InputError: which file, what was found in it, and how to mend it.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        _check_weights(folder, files)
        for path in files:
            if path.suffix != ".safetensors" and path.stat().st_size <= LONGEST_POINTER:
                refuse_pointer(path)
            if path.suffix == ".json" and _is_read(path.name):
                _check_config(path)
    except OSError as error:
        raise InputError(f"{given}: {error.filename or folder} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise InputError(f"{given}: a JSON file in {folder} is nested too deeply to be a configuration") from error


def has_weights(folder: Path) -> bool:
    """Whether the folder holds the weights of a whole model."""
    return any((folder / name).is_file() for name in MODEL_WEIGHTS)


def refuse_foreign(network: Fingerprinted, expected: str, what: str) -> None:
    """Refuses to put `what`, an adapter or a run, on a base model other than the one it was made from.

    Args:
        expected: the fingerprint of that base model; empty when it was not written down.
    """
    if expected and network.fingerprint != expected:
        raise InputError(
            f"{what}: made from another base model than '{network.source}': the fingerprint of its weights was "
            f"{expected[:16]}, this one's is {network.fingerprint[:16]}. Give the base model it was made from, or "
            "tune anew"
        )


def _check_weights(folder: Path, files: list[Path]) -> None:
    for path in files:
        if path.name.endswith(".safetensors.index.json"):
            check_index(path)
        elif path.suffix == ".safetensors":
            check_safetensors(path)
        if path.name.startswith("shard-") and path.suffix == ".safetensors":
            raise InputError(f"{path}: a shard of a distributed checkpoint. Save the model anew with `save_pretrained`")
    names = {path.name for path in files}
    foreign = [path for path in files if _is_foreign(path)]
    lacking = _lacking(names) if foreign else ""
    if lacking:
        first = next((path for path in foreign if path.name.startswith(lacking.partition(".")[0])), foreign[0])
        raise InputError(
            f"{first}: weights in a format that can run code or is not read, and no {lacking} beside it. Take a "
            "version of the model in safetensors, or convert this one, if you trust who made it, where there is "
            f"nothing to lose: `AutoModel....from_pretrained('{folder}').save_pretrained(...)`"
        )
    if ADAPTER_CONFIG in names and has_weights(folder):
        raise InputError(
            f"{folder}: holds a whole model and an adapter ({ADAPTER_CONFIG}), so it is not clear which is meant. "
            "Give each a folder of its own"
        )


def _is_foreign(path: Path) -> bool:
    return path.suffix in FOREIGN_WEIGHTS and not path.name.startswith(LEFT_OVERS)


def _lacking(names: set[str]) -> str:
    """The weights that the folder should hold in safetensors and does not."""
    if ADAPTER_CONFIG in names:
        return "" if ADAPTER_WEIGHTS in names else ADAPTER_WEIGHTS
    return MODEL_WEIGHTS[0] if MODEL_CONFIG in names and not names & set(MODEL_WEIGHTS) else ""


def _is_read(name: str) -> bool:
    """Configurations; `config.4.0.0.json`, which a config.json may point to, is one. Not vocabularies."""
    return "config" in name or name in ("special_tokens_map.json", "chat_template.json")


def _check_config(path: Path) -> None:
    config = read_json(path)
    for place, fault in _faults(config, ()):
        raise InputError(
            f"{path}: {'.'.join(place)}: {fault}. No code that a model brings or names is run. If transformers knows "
            "this architecture without it, remove the key from a copy of the folder"
        )
    if path.name == MODEL_CONFIG:
        _check_architecture(config, path)
    if path.name == ADAPTER_CONFIG:
        _check_adapter(config, path)


def _faults(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every key that names code, at any depth, with the reason."""
    if isinstance(value, list):
        for item in value:
            yield from _faults(item, place)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        here = (*place, key)
        rule = RULES.get(key.strip("_").removesuffix("_internal"))
        if rule is not None and not rule[0](item):
            yield here, rule[1]
        if key not in WORDS:
            yield from _faults(item, here)


def _is_nothing(value: Any) -> bool:
    return not value


def _are_built_in(known: set[str | None]) -> Callable[[Any], bool]:
    """A name, or a name for each part of the model."""

    def is_built_in(value: Any) -> bool:
        names = value.values() if isinstance(value, dict) else [value]
        return all(isinstance(name, str | None) and name in known for name in names)

    return is_built_in


def _is_usual_file(value: Any) -> bool:
    return value is None or value in MODEL_WEIGHTS


def _is_of_transformers(value: Any) -> bool:
    library = value.get("parent_library", "") if isinstance(value, dict) else value
    return not value or str(library).split(".")[0] == "transformers"


# By key, underscores around it aside: what its value may be, and what is wrong with others. This is what the loaders
# of transformers and peft import, run or fetch for a configuration, also where trust_remote_code is False.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "auto_map": (_is_nothing, "names Python code in the model's folder or on the hub"),
    "trust_remote_code": (_is_nothing, "asks for code from the hub to be run"),
    "custom_generate": (_is_nothing, "names Python code that replaces generation"),
    "custom_pipelines": (_is_nothing, "names Python code of a pipeline"),
    "attn_implementation": (_are_built_in(ATTENTIONS), "names an attention kernel to be fetched from the hub and run"),
    "experts_implementation": (_are_built_in(EXPERTS), "names a kernel for experts to be fetched from the hub and run"),
    "use_kernels": (_is_nothing, "asks for kernels to be fetched from the hub and run"),
    "kernel_config": (_is_nothing, "names kernels to be fetched from the hub and run"),
    "quantization_config": (_is_nothing, "quantised weights, whose packages and kernels would be imported"),
    "transformers_weights": (_is_usual_file, "names a file to be read in place of model.safetensors"),
    "auto_mapping": (_is_of_transformers, "names a package other than transformers to be imported"),
    "megatron_config": (_is_nothing, "names a package to be imported (megatron_core)"),
    "tokenizer_class": (lambda value: value != "RagTokenizer", "reads further tokenizers from folders within"),
}


def _check_architecture(config: dict[str, Any], path: Path) -> None:
    """Only what transformers has a class for, for writing text or judging it. Others may fetch parts of themselves."""
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, *JOINED}
    kind = config.get("model_type")
    if kind not in known:
        what = f"unknown architecture '{kind}'" if kind else "names no architecture (model_type)"
        close = difflib.get_close_matches(str(kind), known, n=5, cutoff=0.5)
        raise InputError(
            f"{path}: {what}. transformers knows {len(known)} that tunesmith can take"
            f"{', among them ' + ', '.join(close) if close else ', such as bert, gemma3_text, llama and qwen3'}. "
            "Code that comes with a model is never run"
        )


def _check_adapter(config: dict[str, Any], path: Path) -> None:
    kind = config.get("peft_type")
    if kind not in ADAPTERS:
        raise InputError(f"{path}: an adapter of type {kind}; tunesmith reads {', '.join(ADAPTERS)}")
    if not (path.parent / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"{path.parent}: an adapter without its weights ({ADAPTER_WEIGHTS}). Fetch them too")
