r"""Ids of texts, word by word: each word is put to the tokenizer once, and looked up from then on.

That is exact where no token reaches over a space: where what a tokenizer splits a text into before it looks for
tokens ends at the latest before the next space. So it is for the tokenizers of GPT-2's kind (and Llama 3's, Qwen's,
tiktoken's) and BERT's. Others (SentencePiece's, which split otherwise or not at all) get their texts whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

MOST_CHARACTERS = 8_000_000  # of words held; by Zipf's law the frequent ones are there again soon
TEXTS_CHECKED = 256  # at the beginning, against the tokenizer's own way

# A space may be cut before where a visible character precedes it: a word, then "  and" when there are two spaces.
CUT = re.compile(r"(?<=[\w!-~])(?= )")
# A space before which it may not be cut: at the beginning, after another space or a line break.
UNUSUAL = re.compile(r"(?<![\w!-~]) ")

# Regular expressions of pre-tokenizers in which a space stands only at the beginning of a match.
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_AFTER_WORDS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KNOWN_SPLITS = frozenset(
    [rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}{_AFTER_WORDS}" for digits in (r"\p{N}{1,3}", r"\p{N}")]
    + [r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"]
)
# Those that change a character by what it is, not by what stands around the space beside it.
KNOWN_NORMALIZERS = frozenset(["NFC", "NFD", "Lowercase", "StripAccents", "BertNormalizer"])

ArrayOfIds = Any  # (T,) int32


class Words:
    """Turns texts into ids and remembers the words. Not for several threads at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_exact = backend is not None and ends_at_spaces(json.loads(backend.to_str()))
        self._num_checked = 0
        # By where a word stands: the same letters may give other ids, and only the last may end in a line break.
        self._first, self._middle, self._last = (_Known(before, tokenizer) for before in ("", " ", " "))
        self._unusual = _Known("", tokenizer)  # each with what stands before it: two spaces, a tab

    def encode(self, texts: Sequence[str]) -> list[ArrayOfIds]:
        """Ids of each text, with nothing added."""
        if not self._is_exact:
            return encode_whole(texts, self._tokenizer)
        found = [self._find(text) for text in texts]
        missing = [number for number, ids in enumerate(found) if ids is None]
        for number, ids in zip(missing, self._learn([texts[number] for number in missing]), strict=True):
            found[number] = ids
        made = [np.frombuffer(ids or b"", dtype=np.int32) for ids in found]
        if self._num_checked >= TEXTS_CHECKED:
            return made
        whole = encode_whole(texts, self._tokenizer)
        self._is_exact = all(map(np.array_equal, made, whole))
        self._num_checked += len(texts)
        return whole

    def _find(self, text: str) -> bytes | None:
        """Only for texts of known words: whether it may be cut at every space, its words were asked for then."""
        first, *others = text.split(" ")
        try:
            last = self._last.ids_of[others.pop()]
            return self._first.ids_of[first] + b"".join(map(self._middle.ids_of.__getitem__, others)) + last
        except (KeyError, IndexError):
            return None

    def _learn(self, texts: Sequence[str]) -> list[bytes]:
        split = [(text, UNUSUAL.search(text) is not None or " " not in text) for text in texts]
        usual = [text.split(" ") for text, is_unusual in split if not is_unusual]
        unusual = [CUT.split(text) for text, is_unusual in split if is_unusual]
        self._first.learn({words[0] for words in usual})
        self._middle.learn(set(chain.from_iterable(words[1:-1] for words in usual)))
        self._last.learn({words[-1] for words in usual})
        self._unusual.learn(set(chain.from_iterable(unusual)))
        others = iter(unusual)
        return [
            b"".join(map(self._unusual.ids_of.__getitem__, next(others))) if is_unusual else self._find(text) or b""
            for text, is_unusual in split
        ]


class _Known:
    """The ids of words that stand after the same text."""

    def __init__(self, before: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self._before, self._tokenizer = before, tokenizer
        self._num_characters = 0
        self.ids_of: dict[str, bytes] = {}

    def learn(self, words: set[str]) -> None:
        if self._num_characters > MOST_CHARACTERS:
            self.ids_of.clear()
            self._num_characters = 0
        new = list(words - self.ids_of.keys())
        self._num_characters += sum(map(len, new))
        found = encode_whole([self._before + word for word in new], self._tokenizer)
        self.ids_of.update(zip(new, (ids_T.tobytes() for ids_T in found), strict=True))


def encode_whole(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, as_text: bool = False) -> list[ArrayOfIds]:
    """The tokenizer's own way; with `as_text` control tokens are letters."""
    if not texts:
        return []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        options = {"add_special_tokens": False, "verbose": False, "split_special_tokens": as_text}
        return [np.array(ids, dtype=np.int32) for ids in tokenizer(list(texts), **options)["input_ids"]]
    # What the tokenizer itself would do, without the lists that nobody asked for: they take as long as the ids.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = as_text
    made = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int32) for encoding in made]


def reads_beginnings_otherwise(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text has other tokens at its beginning than behind a line break: SentencePiece puts a blank there."""
    alone, behind = encode_whole(["a", "\na"], tokenizer)
    return bool(list(alone[-1:]) != list(behind[-1:]))


def encode_behind(
    texts: Sequence[str], alone: Sequence[ArrayOfIds], tokenizer: PreTrainedTokenizerBase
) -> list[ArrayOfIds]:
    """Ids of each text behind the one before it, the first as it is `alone`; so is one that shares a token with it."""
    wholes = encode_whole([before + text for before, text in pairwise(texts)], tokenizer)
    made = list(alone[:1])
    for before_T, whole_T, ids_T in zip(alone, wholes, alone[1:], strict=False):
        size = len(before_T)
        made.append(whole_T[size:] if np.array_equal(whole_T[:size], before_T) else ids_T)
    return made


def ends_at_spaces(saved: Mapping[str, Any]) -> bool:
    """Whether no token reaches over a space, by what a tokenizer of `tokenizers` is saved as."""
    model, splits = saved["model"], list(_parts(saved["pre_tokenizer"], "pretokenizers"))
    return (
        (model["type"] == "WordPiece" or (model["type"] == "BPE" and not model["dropout"]))
        and all(part["type"] in KNOWN_NORMALIZERS for part in _parts(saved["normalizer"], "normalizers"))
        and all(map(_is_known_split, splits))
        and any(part["type"] != "Digits" and part.get("use_regex", True) for part in splits)
        and not any(token["rstrip"] or " " in token["content"] for token in saved["added_tokens"])
    )


def _parts(saved: Mapping[str, Any] | None, name: str) -> Iterator[Mapping[str, Any]]:
    if saved is not None and saved["type"] == "Sequence":
        for part in saved[name]:
            yield from _parts(part, name)
    elif saved is not None:
        yield saved


def _is_known_split(saved: Mapping[str, Any]) -> bool:
    if saved["type"] == "Split":
        return saved["pattern"].get("Regex") in KNOWN_SPLITS and saved["behavior"] in ("Isolated", "Removed")
    return saved["type"] in ("ByteLevel", "Digits", "BertPreTokenizer")
