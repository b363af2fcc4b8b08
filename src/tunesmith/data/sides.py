"""Encoder-decoders read a source and write a target: how a conversation is divided between the two.

All turns before the last answer, joined by blank lines, are the source, earlier answers among them; the last answer is
the target, and nothing else is trained. Each side is what the tokenizer itself makes of such a text: T5 closes both
with its end-of-text token, BERT puts [CLS] before and [SEP] behind. The decoder reads its start token and then the
target, so a target does not begin with that token once more.

That a tokenizer belongs to an encoder-decoder is written into its settings, and so is what stands before every source:
they are saved with it, so that a run reads texts as it was trained to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunesmith.errors import InputError
from tunesmith.records import Message

START = "decoder_start_token_id"
PREFIX = "source_prefix"


@dataclass(frozen=True, slots=True)
class Sides:
    """`start` is the id that the decoder starts with, `prefix` the text put before every source."""

    start: int
    prefix: str


def find_sides(tokenizer: PreTrainedTokenizerBase) -> Sides | None:
    """None: the tokenizer belongs to a model that reads and writes one text."""
    start = tokenizer.init_kwargs.get(START)
    return None if start is None else Sides(int(start), str(tokenizer.init_kwargs.get(PREFIX) or ""))


def set_start(tokenizer: PreTrainedTokenizerBase, start: int) -> None:
    """From now on the tokenizer is one of an encoder-decoder."""
    tokenizer.init_kwargs[START] = start


def use_prefix(tokenizer: PreTrainedTokenizerBase, prefix: str) -> None:
    """Puts `prefix` before every source; without one what the tokenizer was saved with stays.

    Raises:
        InputError: the model has no source side.
    """
    if not prefix:
        return
    if find_sides(tokenizer) is None:
        raise InputError(
            f"source_prefix '{prefix}' is for encoder-decoders such as T5, and for data that is written. Write it "
            "into the prompts, or leave it out"
        )
    tokenizer.init_kwargs[PREFIX] = prefix


def source_text(messages: Sequence[Message], sides: Sides) -> str:
    """What the encoder reads of the turns before an answer."""
    return sides.prefix + "\n\n".join(turn.content for turn in messages)


def encode_targets(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, sides: Sides) -> list[list[int]]:
    """Ids of answers, each up to and with the token that closes it; control tokens in a text are read as letters."""
    end = closing_id(tokenizer)
    # Some tokenizers (Marian's) write another language than they read.
    whole: Any = tokenizer(text_target=list(texts), split_special_tokens=True, verbose=False)["input_ids"]
    begun = [ids[1:] if ids[:1] == [sides.start] else list(ids) for ids in whole]
    return [ids if ids[-1:] == [end] else [*ids, end] for ids in begun]


def closing_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that ends a target: end of text, or for BERT's kind the separator.

    Raises:
        InputError: the tokenizer has neither.
    """
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise InputError("the tokenizer has neither an eos_token nor a sep_token, so answers would not end. Set one")
    return int(end)
