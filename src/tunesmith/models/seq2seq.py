"""Encoder-decoders: which ones are known, and where their packed pass needs more than attention.

One row of FAMILIES for each way of making logits from the decoder's states. What a family asks of its layers is found
by its parts: position embeddings that count places by themselves (BART, Marian), a bias by distance (T5).

Shape letters: T packed tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from tunesmith.errors import InputError
from tunesmith.models.segments import Crossing, Segments
from tunesmith.models.weights import read_json

# Of models whose scores know distances only: no row is too long for them but for memory.
NO_LIMIT = 2**20
# Whose embeddings take positions, and which can both read and write.
HALVES = ("bert", "roberta")


@dataclass(frozen=True, slots=True)
class Family:
    """`enter` maps the model and the decoder's last states to what its output layer takes; `bias` is what is added to
    the logits (V,), or None."""

    enter: Callable[[Any, torch.Tensor], torch.Tensor]
    bias: Callable[[Any], torch.Tensor | None]


def _as_they_are(_: Any, states: torch.Tensor) -> torch.Tensor:
    return states


def _scaled(model: Any, states: torch.Tensor) -> torch.Tensor:
    """T5 with a head that is its embedding; older versions of transformers have no name of its own for that."""
    config = model.config
    is_scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
    return states * config.d_model**-0.5 if is_scaled else states


def _of_decoder(model: Any, states: torch.Tensor) -> torch.Tensor:
    """What BERT's and RoBERTa's heads do before their last product."""
    decoder = model.decoder
    if hasattr(decoder, "cls"):
        transformed: torch.Tensor = decoder.cls.predictions.transform(states)
        return transformed
    head = decoder.lm_head
    normed: torch.Tensor = head.layer_norm(F.gelu(head.dense(states)))
    return normed


def _none(_: Any) -> None:
    return None


def _final_bias(model: Any) -> torch.Tensor:
    bias: torch.Tensor = model.final_logits_bias[0]
    return bias


def _own_bias(model: Any) -> torch.Tensor:
    bias: torch.Tensor = model.get_output_embeddings().bias
    return bias


FAMILIES: dict[str, Family] = {
    "t5": Family(_scaled, _none),
    "mt5": Family(_as_they_are, _none),
    "bart": Family(_as_they_are, _final_bias),
    "marian": Family(_as_they_are, _final_bias),
    "pegasus": Family(_as_they_are, _final_bias),
    "encoder-decoder": Family(_of_decoder, _own_bias),
}


def family_of(model: PreTrainedModel) -> Family:
    return FAMILIES[model.config.model_type]


def refuse_unknown(config: PreTrainedConfig, name: str) -> None:
    """Raises an InputError for encoder-decoders whose packed pass is not known to be exact."""
    kind = config.model_type
    if kind not in FAMILIES:
        raise InputError(
            f"'{name}' is an encoder-decoder of a kind unknown here ({kind}). Known: {', '.join(FAMILIES)}"
        )
    halves = halves_of(config)
    strange = [half.model_type for half in halves if len(halves) > 1 and half.model_type not in HALVES]
    if strange:
        raise InputError(f"'{name}' joins two models, one of them {strange[0]}. Known as halves: {', '.join(HALVES)}")


def halves_of(config: Any) -> tuple[Any, ...]:
    """The configurations of encoder and decoder where they are two, else the one."""
    return (config.encoder, config.decoder) if config.model_type == "encoder-decoder" else (config,)


def settle_config(config: Any) -> None:
    """Two joined models have no width; whoever asks for one means the decoder's."""
    if config.is_encoder_decoder and not hasattr(config, "hidden_size"):
        config.hidden_size = config.decoder.hidden_size


def longest_side(config: Any) -> int:
    """Most tokens of a source and of a target."""
    limits = [getattr(half, "max_position_embeddings", None) for half in halves_of(config)]
    # RoBERTa's positions start after the padding index.
    taken = [half.pad_token_id + 1 if half.model_type == "roberta" else 0 for half in halves_of(config)]
    return min((limit - less for limit, less in zip(limits, taken, strict=True) if limit), default=NO_LIMIT)


def find_start(config: Any, folder: Path, name: str) -> int:
    """The id that the decoder starts with: by the configuration, or that of generation.

    Raises:
        InputError: neither names one.
    """
    start = getattr(config, "decoder_start_token_id", None)
    saved = folder / "generation_config.json"
    if start is None and saved.is_file():
        start = read_json(saved).get("decoder_start_token_id")
    if start is None:
        raise InputError(
            f"'{name}': its config.json names no decoder_start_token_id. Write there what T5 calls its pad, "
            "BART its eos and BERT its cls token id"
        )
    return int(start)


def use_row_biases(model: nn.Module) -> None:
    """T5's attention makes the bias of the longest row of a pack, instead of one as large as the pack."""
    for module in model.modules():
        if hasattr(module, "has_relative_attention_bias") and hasattr(module, "compute_bias"):
            vars(module)["forward"] = MethodType(_forward_by_rows, module)


def _forward_by_rows(
    attention: Any,
    *args: Any,
    position_bias: torch.Tensor | None = None,
    segments: Segments | Crossing | None = None,
    **kwargs: Any,
) -> Any:
    if segments is not None:
        kwargs["segments"] = segments
        if position_bias is None:
            position_bias = _bias_of_longest(attention, segments, args[0].device)
    return type(attention).forward(attention, *args, position_bias=position_bias, **kwargs)


def _bias_of_longest(attention: Any, segments: Segments | Crossing, device: torch.device) -> torch.Tensor:
    """(1,H,L,L). Cross-attention has no bias of its own; that of its first layer stands in, and is passed over."""
    if not attention.has_relative_attention_bias:
        return torch.empty(0, device=device)
    longest = (segments.own if isinstance(segments, Crossing) else segments).longest
    bias: torch.Tensor = attention.compute_bias(longest, longest, device=device)
    return bias


@contextmanager
def at_places(stack: Any, position_ids: torch.Tensor) -> Iterator[None]:
    """Inside it position embeddings that count by themselves, where the stack has such, give those of these places."""
    table: Any = getattr(stack, "embed_positions", None)
    if table is None:
        yield
        return
    vars(table)["forward"] = lambda *_, **__: type(table).forward(table, position_ids[None], position_ids=position_ids)
    try:
        yield
    finally:
        del vars(table)["forward"]
