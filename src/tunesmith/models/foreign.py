"""Answers of decoders that our own loop cannot serve, made by transformers' `generate`; our `choose` still chooses.

Shape letters: R rows, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor

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
    """Prompts of one length are continued until each row has met a stop token or `most_new` are made.

    `take` gets the logits (R, V) of each step and gives the tokens (R,) to go on with; what it gives a row that
    has ended does not matter.
    """
    device = network.model.device
    # No row is padded: PEFT forgets the positions of rows with virtual tokens, and not every model passes over padding.
    ids = torch.tensor([list(row) for row in prompts], device=device)
    wrapper: Any = network.wrapper if network.wrapper is not None else network.model
    # Said here, since a model's own generation settings fill in what is not.
    neutral = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    pad = network.tokenizer.pad_token_id
    config = GenerationConfig(max_new_tokens=most_new, eos_token_id=list(stops), pad_token_id=pad, **neutral)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "generation_config": config}
    with unpacked(network.model), autocast(device, dtype), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported")
        wrapper.generate(**inputs, logits_processor=[_Chosen(take)])


class _Chosen(LogitsProcessor):  # type: ignore[misc]
    """Leaves of each row's scores only the chosen token's, which greedy decoding then takes."""

    def __init__(self, take: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._take = take

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens_R = self._take(scores)
        return torch.full_like(scores, float("-inf")).scatter_(1, tokens_R[:, None], 0.0)
