"""Tokenized rows to look at: each token with its text and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from tunesmith.data.signal import Proof
from tunesmith.pages import write_page
from tunesmith.records import Example, LabelledText, Ranking, SpanQuestion, TaggedWords, TokenizedExample

Kind = Literal["trained", "context", "special", "trained special", "cut"]
# A character may take so many tokens, each a part of its bytes.
LONGEST_CHARACTER = 4
CUT_SHOWN = 20  # pieces at either end of what is cut off


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that make up whole characters together, most often one."""

    text: str
    ids: tuple[int, ...]
    kind: Kind


@dataclass(frozen=True, slots=True)
class ShownRow:
    """`target` says the classes, tags or score of a labelled row, empty for conversations."""

    origin: str
    pieces: tuple[Piece, ...]
    num_tokens: int
    num_trained: int
    num_cut: int
    target: str = ""


def show_row(
    row: TokenizedExample, whole: TokenizedExample, origin: str, target: str, tokenizer: PreTrainedTokenizerBase
) -> ShownRow:
    """A row as it will be trained; what `whole`, the row without a limit, has beyond it is shown as cut."""
    place = _where_cut(row, whole)
    pieces = [
        *_pieces(_part(row, 0, place), tokenizer),
        *_cut_pieces(row, whole, place, tokenizer),
        *_pieces(_part(row, place, len(row.input_ids)), tokenizer),
    ]
    return ShownRow(origin, tuple(pieces), len(row.input_ids), row.num_trained, row.num_cut, target)


def describe_target(row: Example) -> str:
    """What is to be found for a row, in words; nothing for conversations."""
    if isinstance(row, TaggedWords):
        return " ".join(row.tags)
    if isinstance(row, LabelledText):
        return ", ".join(row.target) or "no class" if isinstance(row.target, tuple) else str(row.target)
    if isinstance(row, SpanQuestion):
        return " / ".join(dict.fromkeys(row.answers)) or "no answer"
    if isinstance(row, Ranking):
        return "answers of rank " + ", ".join(map(str, row.ranks))
    return ""


def _part(row: TokenizedExample, start: int, end: int) -> TokenizedExample:
    return replace(row, input_ids=row.input_ids[start:end], trained=row.trained[start:end])


def _where_cut(row: TokenizedExample, whole: TokenizedExample) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(row.input_ids, whole.input_ids, strict=False))
    return next((place for place, (one, other) in pairs if one != other), len(row.input_ids))


def _cut_pieces(
    row: TokenizedExample, whole: TokenizedExample, place: int, tokenizer: PreTrainedTokenizerBase
) -> list[Piece]:
    """The tokens that are missing at `place`; of many the first and the last."""
    if not row.num_cut:
        return []
    cut = _part(whole, place, place + len(whole.input_ids) - len(row.input_ids))
    pieces = [replace(piece, kind="cut") for piece in _pieces(cut, tokenizer)]
    if len(pieces) <= 2 * CUT_SHOWN:
        return pieces
    between = Piece(f" ... {len(pieces) - 2 * CUT_SHOWN:,} more ... ", (), "cut")
    return [*pieces[:CUT_SHOWN], between, *pieces[-CUT_SHOWN:]]


def _pieces(row: TokenizedExample, tokenizer: PreTrainedTokenizerBase) -> Iterator[Piece]:
    special = set(tokenizer.all_special_ids)
    place = 0
    while place < len(row.input_ids):
        token, trained = row.input_ids[place], row.trained[place]
        if token in special:
            yield Piece(tokenizer.decode([token]), (token,), "trained special" if trained else "special")
            place += 1
            continue
        ids = [token]
        text = tokenizer.decode(ids)
        while "\ufffd" in text and len(ids) < LONGEST_CHARACTER and place + len(ids) < len(row.input_ids):
            ids.append(row.input_ids[place + len(ids)])
            text = tokenizer.decode(ids)
        if "\ufffd" in text:
            ids, text = [token], tokenizer.decode([token])
        yield Piece(
            text or str(tokenizer.convert_ids_to_tokens(token)), tuple(ids), "trained" if trained else "context"
        )
        place += len(ids)


def write_view(path: Path, model: str, data: str, proof: Proof, rows: Sequence[ShownRow]) -> None:
    """Writes the page."""
    values = {"model": model, "data": data, "proof": proof, "rows": rows}
    write_page(path, "tunesmith.data", "view.html.j2", values)
