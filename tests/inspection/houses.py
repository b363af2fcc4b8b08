"""Tiny models of the real classes in folders, with tokenizers, for looking inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from tests.parity.tiny import DECODERS, ENCODER_DECODERS, ENCODERS, make_tokenizer

TEXT, ANSWER = "w5 w17 w40 w8 w17 w93", "w21 w6 w70"
KINDS = ("gpt2", "llama", "gemma2", "bert", "roberta", "t5", "bart", "marian", "bert2bert")


def make_plain(kind: str, seed: int = 0) -> Any:
    """A model as transformers makes it."""
    torch.manual_seed(seed)
    auto = AutoModelForSeq2SeqLM if kind in ENCODER_DECODERS else AutoModelForCausalLM
    auto = AutoModelForMaskedLM if kind in ENCODERS else auto
    config = (DECODERS | ENCODERS | ENCODER_DECODERS)[kind]()
    return auto.from_config(config, attn_implementation="eager").eval()


def save_model(kind: str, folder: Path, seed: int = 0) -> Any:
    """The same, saved with a tokenizer."""
    model = make_plain(kind, seed)
    model.save_pretrained(folder)
    tokenizer = make_tokenizer(getattr(model.config, "pad_token_id", None) or 0)
    if kind in ENCODERS:
        tokenizer.add_special_tokens({"mask_token": "<cls>"})
    tokenizer.save_pretrained(folder)
    return model
