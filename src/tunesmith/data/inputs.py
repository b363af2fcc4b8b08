"""What a model that judges reads: pairs of texts and single words, as the tokenizer itself lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tunesmith.errors import InputError


@dataclass(frozen=True, slots=True)
class Input:
    """Ids with the model's usual special tokens.

    num_cut    tokens that did not fit
    second_at  from which place on tokens are of type 1; 0 when none is
    begins     places of the first tokens of words, from the first word on; those that were cut off are missing
    """

    ids: tuple[int, ...]
    num_cut: int
    second_at: int = 0
    begins: tuple[int, ...] = ()


def encode_pairs(
    firsts: Sequence[str], seconds: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Input]:
    """The tokenizer's own encoding of two texts; where they are too long, the longer one loses its end.

    Control tokens that stand in the texts are read as plain text.
    """
    options = {"split_special_tokens": True, "verbose": False}
    whole = tokenizer(list(firsts), list(seconds), **options)
    all_types = whole.get("token_type_ids") or [()] * len(firsts)
    made = []
    for first, second, ids, types in zip(firsts, seconds, whole["input_ids"], all_types, strict=True):
        if len(ids) <= max_length:
            made.append(Input(tuple(ids), 0, find_second(types)))
            continue
        cut = tokenizer(first, second, truncation="longest_first", max_length=max_length, **options)
        kept = tuple(cut["input_ids"])
        made.append(Input(kept, len(ids) - len(kept), find_second(cut.get("token_type_ids") or ())))
    return made


def find_second(types: Sequence[int]) -> int:
    """From which place on tokens are of the second text's type; 0 when none is."""
    place = next((place for place, kind in enumerate(types) if kind), 0)
    if place and any(kind != 1 for kind in types[place:]):
        raise InputError(f"the tokenizer gives a pair of texts the types {list(types)}; known are only 0 and then 1")
    return place


def encode_words(rows: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Input]:
    """Words as the tokenizer's `is_split_into_words` takes them, each written as it would be within a text.

    Where spaces belong to tokens (GPT-2's kind) every word has one before it, as with `add_prefix_space`; a word
    that the tokenizer makes nothing of (of control characters alone) is the unknown token, so that each has a place.

    Raises:
        InputError: a tokenizer that does not say where words begin, or that has no token for a word.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"{type(tokenizer).__name__} does not say which tokens a word becomes, so words cannot be tagged. "
            "Take a model whose tokenizer comes as tokenizer.json"
        )
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # control tokens in a word are letters
    blank = " " if _needs_blank(tokenizer) else ""
    spelt = [[word if word.startswith(" ") else blank + word for word in words] for words in rows]
    return [
        _lay_out(words, encoding.ids, encoding.word_ids, tokenizer, max_length)
        for words, encoding in zip(rows, backend.encode_batch(spelt, is_pretokenized=True), strict=True)
    ]


def _needs_blank(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word within a text has another first token than one that is given alone: found by trying it out."""
    backend = tokenizer.backend_tokenizer
    text, one = (backend.encode(text, add_special_tokens=False).ids for text in ("a a", "a"))
    alone, spaced = (backend.encode([word], is_pretokenized=True, add_special_tokens=False).ids for word in ("a", " a"))
    within = text[len(one) :]
    return bool(within != alone and within == spaced)


def _lay_out(
    words: Sequence[str],
    ids: Sequence[int],
    word_ids: Sequence[int | None],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Input:
    """Special tokens stay; of the words the last tokens are cut off."""
    inside = [place for place, word in enumerate(word_ids) if word is not None]
    start, end = (inside[0], inside[-1] + 1) if inside else (_num_before(tokenizer), _num_before(tokenizer))
    tokens: list[list[int]] = [[] for _ in words]
    for place in inside:
        tokens[word_ids[place]].append(ids[place])  # type: ignore[index]
    body: list[int] = []
    begins = []
    for number, own in enumerate(tokens):
        if not own and tokenizer.unk_token_id is None:
            raise InputError(f"word {number + 1}, {words[number]!r}, becomes no token. Take it out, with its tag")
        begins.append(start + len(body))
        body += own or [tokenizer.unk_token_id]
    room = max(0, max_length - start - (len(ids) - end))
    kept = body[:room]
    laid = (*ids[:start], *kept, *ids[end:])
    return Input(laid, len(body) - len(kept), 0, tuple(place for place in begins if place < start + len(kept)))


def _num_before(tokenizer: PreTrainedTokenizerBase) -> int:
    """Special tokens before a text, for a row of which nothing else is left."""
    encoding = tokenizer.backend_tokenizer.encode("a")
    return next((place for place, word in enumerate(encoding.word_ids) if word is not None), 0)
