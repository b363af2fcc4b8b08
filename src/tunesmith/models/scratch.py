"""Models that know nothing yet: an architecture of a given size, with weights drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen3Config,
    T5Config,
)

from tunesmith.errors import InputError, nearest
from tunesmith.models.heads import choose_class
from tunesmith.models.load import quietly
from tunesmith.models.weights import read_json


@dataclass(frozen=True, slots=True)
class Size:
    """How large a model is to be; `longest` is its longest row in tokens, `deviation` that of its first weights."""

    layers: int
    width: int
    heads: int
    longest: int

    @property
    def deviation(self) -> float:
        """sqrt(2 / (5 D)) (Nguyen & Salazar 2019, arXiv 1910.05895, section 2.2)."""
        return float(f"{(2 / (5 * self.width)) ** 0.5:.3g}")

    @property
    def gated(self) -> int:
        """The inner width of a gated unit that has as many weights as a plain one of 4 D, in whole 32s."""
        return max(32, round(8 * self.width / 3 / 32) * 32)


def _usual(size: Size) -> dict[str, Any]:
    return {
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "max_position_embeddings": size.longest,
        "initializer_range": size.deviation,
        "tie_word_embeddings": True,
    }


def _llama(size: Size) -> dict[str, Any]:
    return _usual(size) | {"intermediate_size": size.gated, "num_key_value_heads": size.heads}


def _qwen3(size: Size) -> dict[str, Any]:
    return _llama(size) | {"head_dim": size.width // size.heads}


def _gpt2(size: Size) -> dict[str, Any]:
    return {
        "n_embd": size.width,
        "n_layer": size.layers,
        "n_head": size.heads,
        "n_positions": size.longest,
        "initializer_range": 0.02,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }


def _bert(size: Size) -> dict[str, Any]:
    return _usual(size) | {"intermediate_size": 4 * size.width}


def _modernbert(size: Size) -> dict[str, Any]:
    return _usual(size) | {"intermediate_size": size.gated}


def _t5(size: Size) -> dict[str, Any]:
    return {
        "d_model": size.width,
        "d_kv": size.width // size.heads,
        "d_ff": 4 * size.width,
        "num_layers": size.layers,
        "num_decoder_layers": size.layers,
        "num_heads": size.heads,
    }


def _bart(size: Size) -> dict[str, Any]:
    return {
        "d_model": size.width,
        "max_position_embeddings": size.longest,
        "init_std": size.deviation,
        **dict.fromkeys(("encoder_layers", "decoder_layers"), size.layers),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), size.heads),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 4 * size.width),
    }


ARCHITECTURES: dict[str, tuple[type[PreTrainedConfig], Callable[[Size], dict[str, Any]]]] = {
    "llama": (LlamaConfig, _llama),
    "qwen3": (Qwen3Config, _qwen3),
    "gpt2": (GPT2Config, _gpt2),
    "bert": (BertConfig, _bert),
    "modernbert": (ModernBertConfig, _modernbert),
    "t5": (T5Config, _t5),
    "bart": (BartConfig, _bart),
}
ENCODERS = ("bert", "modernbert")


def make_config(architecture: str, size: Size, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The configuration of a new model.

    Args:
        architecture: one of ARCHITECTURES, or a config.json, whose sizes are its own.

    Raises:
        InputError: an unknown architecture, or sizes that do not go together.
    """
    if architecture.endswith(".json"):
        values = read_json(Path(architecture).expanduser())
        kind = str(values.pop("model_type", ""))
        if not kind:
            raise InputError(f"{architecture}: names no model_type. Write there what kind of model it is, as 'llama'")
        config = AutoConfig.for_model(kind, **values)
    else:
        if architecture not in ARCHITECTURES:
            raise InputError(f"architecture '{architecture}': {nearest(architecture, ARCHITECTURES)}, or a config.json")
        if size.width % size.heads or (size.width // size.heads) % 2:
            raise InputError(
                f"width is {size.width} and heads {size.heads}: each head must have an even share of the width"
            )
        make, sizes = ARCHITECTURES[architecture]
        config = make(**sizes(size))
    _speak(config, tokenizer)
    return config


def _speak(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """The tokenizer's vocabulary and special tokens."""
    config.vocab_size = len(tokenizer)
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    config.pad_token_id, config.bos_token_id, config.eos_token_id = tokenizer.pad_token_id, begin, end
    for name in ("cls_token_id", "sep_token_id"):
        if hasattr(config, name):
            setattr(config, name, getattr(tokenizer, name))
    if config.is_encoder_decoder:
        config.decoder_start_token_id = tokenizer.pad_token_id


def write_model(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    """A folder that transformers loads, with weights drawn by the seed."""
    torch.manual_seed(seed)
    with quietly():
        model = choose_class(config, "text").from_config(config)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
