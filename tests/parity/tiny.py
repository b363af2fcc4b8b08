"""Tiny randomly initialised models of the real classes, and a tokenizer made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    DistilBertConfig,
    EncoderDecoderConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MarianConfig,
    ModernBertConfig,
    MT5Config,
    PegasusConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)

from tunesmith.models.attention import PACKED
from tunesmith.models.heads import TASK_HEADS, head_settings
from tunesmith.models.load import Network
from tunesmith.records import Task

VOCABULARY = 96
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.08,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

DECODERS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_SIZES, **_GROUPED),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=64,
        initializer_range=0.08,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    "qwen2": lambda: Qwen2Config(**_SIZES, num_key_value_heads=2),
    "qwen3": lambda: Qwen3Config(**_SIZES, **_GROUPED),
    "gemma2": lambda: Gemma2Config(**_SIZES, **_GROUPED, sliding_window=4, query_pre_attn_scalar=8),
    "gemma3": lambda: Gemma3TextConfig(
        **_SIZES,
        **_GROUPED,
        sliding_window=4,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}
ENCODERS: dict[str, Any] = {
    "bert": lambda: BertConfig(**_SIZES, **_NO_DROPOUT),
    "roberta": lambda: RobertaConfig(**(_SIZES | {"pad_token_id": 1, "bos_token_id": 0}), **_NO_DROPOUT),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=32,
        n_layers=3,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=64,
        pad_token_id=0,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        initializer_range=0.08,
    ),
    "modernbert": lambda: ModernBertConfig(
        **_SIZES,
        local_attention=8,
        global_attn_every_n_layers=2,
        classifier_pooling="mean",
        cls_token_id=3,
        sep_token_id=2,
        reference_compile=False,
    ),
}


_T5_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
_BART_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "init_std": 0.08,
    "dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
}


def _two_halves(half: type[BertConfig], pad_id: int = 0) -> EncoderDecoderConfig:
    sizes = _SIZES | _NO_DROPOUT | {"pad_token_id": pad_id, "bos_token_id": 1 - pad_id}
    both = half(**sizes), half(**sizes, is_decoder=True, add_cross_attention=True)
    ids = {"pad_token_id": pad_id, "eos_token_id": 2, "decoder_start_token_id": 1 - pad_id}
    return EncoderDecoderConfig.from_encoder_decoder_configs(*both, **ids)


ENCODER_DECODERS: dict[str, Any] = {
    "t5": lambda: T5Config(**_T5_SIZES),
    "t5-gated": lambda: T5Config(**_T5_SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": lambda: MT5Config(**_T5_SIZES),
    "bart": lambda: BartConfig(**_BART_SIZES, decoder_start_token_id=2),
    "marian": lambda: MarianConfig(**_BART_SIZES, decoder_start_token_id=0),
    "pegasus": lambda: PegasusConfig(**_BART_SIZES, decoder_start_token_id=0),
    "bert2bert": lambda: _two_halves(BertConfig),
    "roberta2roberta": lambda: _two_halves(RobertaConfig, pad_id=1),
}


def make_tokenizer(pad_id: int = 0) -> PreTrainedTokenizerFast:
    """Words w5..w95 are single tokens; id 1 begins and id 2 ends a text."""
    words = ["<pad>", "<s>", "</s>", "<cls>", "<unk>"] + [f"w{i}" for i in range(5, VOCABULARY)]
    if pad_id == 1:
        words[0], words[1] = words[1], words[0]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    start, end = words.index("<s>"), words.index("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_model(kind: str, task: Task, num_classes: int = 3, seed: int = 0) -> PreTrainedModel:
    """A plain transformers model; weights large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    config = (DECODERS | ENCODERS | ENCODER_DECODERS)[kind]()
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").eval()
    if task not in TASK_HEADS:
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for key, value in head_settings(task, class_names(task, num_classes)).items():
        setattr(config, key, value)
    return TASK_HEADS[task].auto.from_config(config, attn_implementation="eager").eval()


def class_names(task: Task, num_classes: int = 3) -> tuple[str, ...]:
    return (
        ()
        if task in ("generation", "regression", "ranking", "preference")
        else tuple(f"class {i}" for i in range(num_classes))
    )


def make_network(kind: str, task: Task, folder: Path, num_classes: int = 3) -> Network:
    """The same model through tunesmith, from a saved folder."""
    from tunesmith.models.load import load_network

    model = make_model(kind, task, num_classes)
    model.save_pretrained(folder)
    make_tokenizer(model.config.pad_token_id).save_pretrained(folder)
    network = load_network(str(folder), task, class_names(task, num_classes))
    assert network.model.config._attn_implementation == PACKED
    return network


def kept_for_backward(run: Callable[[], object]) -> dict[int, int]:
    """Bytes of each storage that a forward pass keeps for the backward pass, by address."""
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return {place: storage.nbytes() for place, storage in kept.items()}


def kept_beside_weights(model: nn.Module, run: Callable[[], object]) -> int:
    """The same in all, without the weights themselves."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for place, size in kept_for_backward(run).items() if place not in own)
