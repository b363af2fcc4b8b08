"""Answers of models that our own loop cannot serve, made by transformers' `generate`; our `choose` still chooses.

Shape letters: R rows, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, LogitsProcessor

from tunesmith.data.sides import find_sides
from tunesmith.models.attention import unpacked
from tunesmith.models.load import Network
from tunesmith.runtime import autocast


@torch.inference_mode()
def generate_by_transformers(
    network: Network,
    prompts: Sequence[Sequence[int]],
    take: Callable[[torch.Tensor], torch.Tensor],
    stops: Sequence[int],
    most_new: int,
    dtype: torch.dtype,
) -> None:
    """Prompts of one length are continued until each row has met a stop token or `most_new` are made; those of an
    encoder-decoder may differ in length, since its encoder passes over padding.

    `take` gets the logits (R, V) of each step and gives the tokens (R,) to go on with; what it gives a row that
    has ended does not matter.
    """
    device = network.model.device
    # No row of a decoder is padded: PEFT forgets the positions of rows with virtual tokens, and not every model passes
    # over padding.
    ids, mask = _pad([list(row) for row in prompts], network.tokenizer.pad_token_id, device)
    wrapper: Any = network.root
    # Said here, since a model's own generation settings fill in what is not.
    neutral: dict[str, Any] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    pad = network.tokenizer.pad_token_id
    config = GenerationConfig(max_new_tokens=most_new, eos_token_id=list(stops), pad_token_id=pad, **neutral)
    sides = find_sides(network.tokenizer)
    if sides is not None:
        config.decoder_start_token_id = sides.start
    inputs = {"input_ids": ids, "attention_mask": mask, "generation_config": config}
    if sides is not None:  # the one that transformers makes has as many layers as the encoder
        inputs["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with unpacked(network.model), autocast(device, dtype), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported")
        wrapper.generate(**inputs, logits_processor=[_Chosen(take)])


def _pad(rows: list[list[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(R, T) ids, padded at their ends, and where they are real."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows], device=device)
    return ids, (torch.arange(longest) < torch.tensor([[len(row)] for row in rows])).long().to(device)


class _Chosen(LogitsProcessor):  # type: ignore[misc]
    """Leaves of each row's scores only the chosen token's, which greedy decoding then takes."""

    def __init__(self, take: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._take = take

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens_R = self._take(scores)
        return torch.full_like(scores, float("-inf")).scatter_(1, tokens_R[:, None], 0.0)
