"""One text in one model: a single pass, and all that it leaves behind.

Shape letters: T tokens, S tokens of an encoder-decoder's source, L layers, H heads, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import psutil
import torch
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions as Output

from tunesmith.data.ids import prompt_ids
from tunesmith.errors import InputError
from tunesmith.inspection.subject import Subject
from tunesmith.models.packed import two_sided_logits
from tunesmith.records import Message

Side = Literal["own", "source", "cross"]
"""Attention of the tokens to each other, of the source's to each other, of the tokens to the source's."""
SHARE_OF_MEMORY = 4
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Given:
    """What is read: `answer` goes on after the text; of an encoder-decoder it is the target. As a `chat` the text is a
    question, put as the model's template puts it, after what was said `before`."""

    text: str
    answer: str = ""
    chat: bool = False
    before: tuple[Message, ...] = ()


@dataclass
class Reading:
    """What a model makes of a text.

    ids        (T,)  the text and the answer; of an encoder-decoder its start token and the answer
    source     (S,)  what the encoder reads, or None
    num_given        where the answer begins
    states           L+1 of (T, D): the embeddings, then what each layer gives; the last after the final norm
    logits     (T, V) or None, where the model has no head for words
    attention        per side, L of (H, T, T), (H, S, S) or (H, T, S); empty where there was no room, see `notes`
    """

    subject: Subject
    ids: tuple[int, ...]
    source: tuple[int, ...] | None
    num_given: int
    states: list[torch.Tensor]
    logits: torch.Tensor | None
    attention: dict[Side, list[torch.Tensor]]
    notes: list[str]

    @cached_property
    def tokens_of(self) -> dict[Side, tuple[int, ...]]:
        """Ids by side, those that look and those that are looked at."""
        return {"own": self.ids} if self.source is None else {"own": self.ids, "source": self.source}


@torch.inference_mode()
def read(subject: Subject, given: Given, ids: tuple[int, ...] | None = None) -> Reading:
    """One pass of a text through a model. `ids` are read instead of the text's own where they are given.

    Raises:
        InputError: nothing to read, or more than the model takes.
    """
    source, own, num_given = _encode(subject, given)
    own = own if ids is None else ids
    notes: list[str] = []
    room = _has_room(subject, len(own), len(source or ()), notes)
    device = subject.model.device
    inputs: dict[str, Any] = {"output_hidden_states": True, "output_attentions": room}
    if source is None:
        inputs |= {"input_ids": torch.tensor([own], device=device)}
    else:
        inputs |= {"input_ids": torch.tensor([source], device=device)}
        inputs |= {"decoder_input_ids": torch.tensor([own], device=device)}
    if subject.family != "encoder":
        inputs["use_cache"] = False
    model = subject.model if subject.speaks else subject.model.base_model
    with eagerly(subject.model, room):
        out = model(**inputs)
    states = out.decoder_hidden_states if source is not None else out.hidden_states
    attention: dict[Side, list[torch.Tensor]] = {}
    if room:
        names = {"own": "attentions"} if source is None else ENCODER_DECODER
        attention = {side: [layer[0] for layer in out[name]] for side, name in names.items()}  # type: ignore[misc]
        _check_rows(attention)
    logits = out.logits[0].float() if subject.speaks else None
    return Reading(subject, own, source, num_given, [state[0] for state in states], logits, attention, notes)


ENCODER_DECODER = {"own": "decoder_attentions", "source": "encoder_attentions", "cross": "cross_attentions"}


@contextmanager
def eagerly(model: Any, wanted: bool = True) -> Iterator[None]:
    """Inside it attention is computed step by step, so that its weights can be seen; or by PyTorch's fused function,
    which keeps none."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager" if wanted or not model._supports_sdpa else "sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _encode(subject: Subject, given: Given) -> tuple[tuple[int, ...] | None, tuple[int, ...], int]:
    """Source, own tokens, and where the answer begins."""
    tokenizer = subject.tokenizer
    answer = tuple(tokenizer(given.answer, add_special_tokens=False)["input_ids"]) if given.answer else ()
    if subject.family == "encoder-decoder":
        source = tuple(prompt_ids([*given.before, Message("user", given.text)], tokenizer))
        if given.answer:
            answer = tuple(tokenizer(text_target=given.answer, add_special_tokens=False)["input_ids"])
        _refuse_length(subject, max(len(source), 1 + len(answer)), len(source))
        return source, (subject.start, *answer), 1
    if given.chat:
        if subject.family == "encoder":
            raise InputError(f"'{subject.name}' is an encoder: it is not asked questions. Leave out --chat")
        own = tuple(prompt_ids([*given.before, Message("user", given.text)], tokenizer))
    else:
        own = tuple(tokenizer(given.text)["input_ids"])
    if answer and subject.family == "encoder":
        raise InputError(f"'{subject.name}' is an encoder: it goes on with no answer. Leave out --answer")
    _refuse_length(subject, len(own) + len(answer), len(own))
    return None, (*own, *answer), len(own)


def _refuse_length(subject: Subject, most: int, given: int) -> None:
    if most > subject.longest:
        raise InputError(f"the text has {most:,} tokens, '{subject.name}' takes {subject.longest:,}. Shorten it")
    if not given:
        raise InputError("the text is empty: there is nothing to look at. Give some words")


def _has_room(subject: Subject, length: int, source: int, notes: list[str]) -> bool:
    """Whether all attention weights fit into memory; else a note says which length would."""
    config = subject.model.config
    layers = getattr(config, "num_hidden_layers", None) or config.decoder.num_hidden_layers
    heads = getattr(config, "num_attention_heads", None) or config.decoder.num_attention_heads
    per_pair = 4 * layers * heads
    free = psutil.virtual_memory().available // SHARE_OF_MEMORY
    needed = per_pair * (length**2 + source**2 + length * source)
    if needed <= free:
        return True
    most = int((free / per_pair / (3 if source else 1)) ** 0.5)
    notes.append(
        f"attention is left out: for {max(length, source):,} tokens it would take {needed / 1e9:.1f} GB. "
        f"There is room for {most:,} tokens"
    )
    return False


def _check_rows(attention: dict[Side, list[torch.Tensor]]) -> None:
    """Each row is a distribution; what is none was not computed as we think."""
    for side, layers in attention.items():
        for number, weights in enumerate(layers):
            worst = float((weights.float().sum(-1) - 1).abs().max())
            assert worst < TOLERANCE, f"{side} attention of layer {number} sums to one but for {worst}"


@contextmanager
def _saying(body: Any, states: torch.Tensor) -> Iterator[None]:
    """Inside it `body` gives these states, whatever it is asked."""
    vars(body)["forward"] = lambda *_, **__: Output(last_hidden_state=states)
    try:
        yield
    finally:
        del vars(body)["forward"]


def words_from(subject: Subject, states_RTD: torch.Tensor) -> torch.Tensor:
    """(R, T, V): logits that the model's own head gives for last hidden states."""
    if subject.family == "encoder-decoder":
        return two_sided_logits(subject.model, states_RTD).float()
    dummy = torch.zeros(states_RTD.shape[:2], dtype=torch.long, device=states_RTD.device)
    with _saying(subject.body, states_RTD):
        logits: torch.Tensor = subject.model(input_ids=dummy).logits
    return logits.float()
