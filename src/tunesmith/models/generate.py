"""Answers from a decoder: prompts of ids in, text out, whole or token by token."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, TextIteratorStreamer

from tunesmith.data.tokenize import prompt_ids, stop_token_ids
from tunesmith.errors import InputError
from tunesmith.models.attention import unpacked
from tunesmith.models.load import Network
from tunesmith.records import Message
from tunesmith.runtime import autocast

PROMPTS_PER_PASS = 16


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the next token is chosen: the likeliest at temperature 0, else sampled."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0

    def to_config(self, network: Network) -> GenerationConfig:
        sampling: dict[str, Any] = {"do_sample": False}
        if self.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            eos_token_id=list(stop_token_ids(network.tokenizer)),
            pad_token_id=network.tokenizer.pad_token_id,
            **sampling,
        )


def generate(
    network: Network, prompts: Sequence[Sequence[Message]], decoding: Decoding, dtype: torch.dtype
) -> list[str]:
    """One answer per conversation; prompts of like length are answered together."""
    encoded = [prompt_ids(messages, network.tokenizer) for messages in prompts]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    answers = [""] * len(encoded)
    for start in range(0, len(order), PROMPTS_PER_PASS):
        chosen = order[start : start + PROMPTS_PER_PASS]
        texts = _generate_batch(network, [encoded[index] for index in chosen], decoding, dtype)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text
    return answers


def stream(network: Network, messages: Sequence[Message], decoding: Decoding, dtype: torch.dtype) -> Iterator[str]:
    """The answer piece by piece, as it is made; the pieces concatenated are the answer."""
    ids = prompt_ids(messages, network.tokenizer)
    _refuse_too_long(network, len(ids))
    streamer = TextIteratorStreamer(network.tokenizer, skip_prompt=True, skip_special_tokens=True)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            _run(network, [ids], decoding, dtype, streamer=streamer)
        except BaseException as error:  # carried over to the reader, who would wait for ever
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield from streamer
    thread.join()
    if failure:
        raise failure[0]


def _generate_batch(
    network: Network, prompts: list[tuple[int, ...]], decoding: Decoding, dtype: torch.dtype
) -> list[str]:
    longest = max(len(ids) for ids in prompts)
    _refuse_too_long(network, longest)
    made = _run(network, prompts, decoding, dtype)
    return [str(text) for text in network.tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)]


def _refuse_too_long(network: Network, length: int) -> None:
    if length >= network.max_positions:
        raise InputError(
            f"the prompt has {length:,} tokens, '{network.source}' takes {network.max_positions:,} in all. Shorten it"
        )


@torch.inference_mode()
def _run(
    network: Network,
    prompts: list[tuple[int, ...]],
    decoding: Decoding,
    dtype: torch.dtype,
    streamer: TextIteratorStreamer | None = None,
) -> torch.Tensor:
    """Prompts padded on the left and continued; (rows, longest prompt + new tokens)."""
    device = network.model.device
    longest = max(len(ids) for ids in prompts)
    pad = network.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
    wrapper: Any = network.wrapper if network.wrapper is not None else network.model
    with unpacked(network.model), autocast(device, dtype):
        made: torch.Tensor = wrapper.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=decoding.to_config(network),
            streamer=streamer,
        )
    return made
