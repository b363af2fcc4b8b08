"""A text as its tokens: what each is, and of which bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# What marks the beginning of a word (SentencePiece) or its going on (WordPiece) is written into the token.
BLANK, GOES_ON = "\u2581", "##"


@dataclass(frozen=True, slots=True)
class Token:
    """id      its row in the vocabulary
    piece   as the vocabulary spells it
    text    as it reads; a part of a character reads as the replacement sign
    data    its bytes, in hexadecimal
    special stands for no text
    """

    id: int
    piece: str
    text: str
    data: str
    special: bool


def tokens_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    """Each id as a token."""
    special, by_bytes = set(tokenizer.all_special_ids), _is_by_bytes(tokenizer)
    return [_token(token, token in special, by_bytes, tokenizer) for token in ids]


def _token(token: int, special: bool, by_bytes: bool, tokenizer: PreTrainedTokenizerBase) -> Token:
    found = tokenizer.convert_ids_to_tokens(int(token))
    piece = f"<{token}>" if found is None else str(found)  # embeddings may have more rows than the vocabulary has words
    data = piece.encode() if special else _bytes_of(piece, by_bytes)
    text = piece if special else data.decode("utf-8", errors="replace")
    return Token(int(token), piece, text, data.hex(" "), special)


def _bytes_of(piece: str, by_bytes: bool) -> bytes:
    if by_bytes and all(letter in _bytes_by_letter() for letter in piece):
        return bytes(_bytes_by_letter()[letter] for letter in piece)
    if alone := BYTE_TOKEN.fullmatch(piece):
        return bytes([int(alone[1], 16)])
    if piece.startswith(GOES_ON) and len(piece) > len(GOES_ON):
        piece = piece.removeprefix(GOES_ON)
    return piece.replace(BLANK, " ").encode()


def _is_by_bytes(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in repr(backend.decoder)


@cache
def _bytes_by_letter() -> dict[str, int]:
    """GPT-2's spelling of bytes: those that print stand for themselves, the others for letters from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


def characters_per_token(text: str, num_tokens: int) -> float:
    """How far a token goes."""
    return len(text) / max(1, num_tokens)
