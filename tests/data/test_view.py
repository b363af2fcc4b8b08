"""Rows to look at: what is trained, what is not, and what was cut off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.data.test_tokenize import CHATML, byte_tokenizer

from tunesmith.data import sources
from tunesmith.data.tokenize import tokenize
from tunesmith.data.view import ShownRow, show_row

TURNS = [("user", "Ein großes Haus?"), ("assistant", "Ja."), ("user", "Und 3 kleine?"), ("assistant", "Nein, €5.")]
CHAT = [{"messages": [{"role": role, "content": text} for role, text in TURNS]}]


def shown(data: Any, longest: int) -> ShownRow:
    tokenizer = byte_tokenizer(CHATML)
    examples = sources.load(data)
    row, whole = (tokenize(examples, tokenizer, limit, "cut")[0] for limit in (longest, 10_000))
    return show_row(row, whole, "here", "", tokenizer)


def text_of(row: ShownRow, *kinds: str) -> str:
    return "".join(piece.text for piece in row.pieces if not kinds or piece.kind in kinds)


def test_characters_are_whole_and_kinds_are_right() -> None:
    row = shown(CHAT, 10_000)
    assert text_of(row) == "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in TURNS)
    assert text_of(row, "trained") == "Ja.Nein, €5."
    assert text_of(row, "trained special") == 2 * "<|im_end|>"
    assert [piece.ids for piece in row.pieces if piece.text == "€"] != []
    assert text_of(row, "cut") == ""


@pytest.mark.parametrize("longest", [68, 63])
def test_what_is_cut_stands_where_it_was(longest: int) -> None:
    """First the oldest exchange goes, then the beginning of the last question."""
    whole, row = shown(CHAT, 10_000), shown(CHAT, longest)
    assert row.num_tokens <= longest < whole.num_tokens
    assert row.num_cut == whole.num_tokens - row.num_tokens == sum(len(p.ids) for p in row.pieces if p.kind == "cut")
    assert text_of(row, "cut").startswith("Ein gro")
    assert text_of(row) == text_of(whole)


def test_a_labelled_text_loses_its_end() -> None:
    data = [{"text": "word " * 9 + "end", "label": name} for name in "ab"]
    row = shown(data, 12)
    assert (text_of(row, "context"), row.num_cut) == ("word word wo", 36)
    assert text_of(row, "cut") == text_of(shown(data, 100))[12:]


def test_of_much_the_ends_are_shown() -> None:
    row = shown([{"text": "x" * 1_000, "label": name} for name in "ab"], 10)
    assert text_of(row) == "x" * 30 + " ... 950 more ... " + "x" * 20
    assert replace(row, pieces=()).num_cut == 990
