"""A question and a passage as the windows that a model reads, and which tokens of a window are the answer.

A window is what the tokenizer itself makes of the pair of question and passage, with a part of the passage that fits:
the question stands before every part. Two parts that follow each other share `doc_stride` tokens, so that what is cut
at the end of the one stands whole in the next (Devlin et al. 2019 for SQuAD; `stride` of transformers' tokenizers).

Which token an answer's character belongs to is what the tokenizer says (offsets). A window in which the answer does not
stand whole says by its first token that it has none, and so do all windows of a question without an answer.

How a run reads passages is written into its tokenizer's settings and saved with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from tunesmith.data.inputs import find_second
from tunesmith.data.sides import use_prefix
from tunesmith.errors import InputError
from tunesmith.records import SpanQuestion, Task

if TYPE_CHECKING:  # processes that make ids need no schema
    from tunesmith.config import SourceConfig

STRIDE, LONGEST = "doc_stride", "max_answer_length"


@dataclass(frozen=True, slots=True)
class Windows:
    """How passages are read. `doc_stride`: tokens that neighbours share. `max_answer_length`: of a found answer, in
    tokens."""

    doc_stride: int = 128
    max_answer_length: int = 30


def find_windows(tokenizer: PreTrainedTokenizerBase) -> Windows:
    """Those that the tokenizer was saved with, or the usual ones."""
    usual, kept = Windows(), tokenizer.init_kwargs
    return Windows(int(kept.get(STRIDE, usual.doc_stride)), int(kept.get(LONGEST, usual.max_answer_length)))


def use_keys(tokenizer: PreTrainedTokenizerBase, task: Task, config: SourceConfig) -> None:
    """Writes into the tokenizer's settings how texts are read, so that a run reads later ones in the same way.

    Raises:
        InputError: a prefix for a model that has no source side.
    """
    use_prefix(tokenizer, config.source_prefix)
    if task == "extractive-qa":
        tokenizer.init_kwargs |= {STRIDE: config.doc_stride, LONGEST: config.max_answer_length}


@dataclass(frozen=True, slots=True)
class Window:
    """Ids with the model's usual special tokens.

    answer     first and last place of the answer, (0, 0) where it does not stand whole in this window
    offsets    of each token in turn where its characters begin and end in the passage; 0 and 0 outside of it
    second_at  from which place on tokens are of type 1; 0 when none is
    """

    ids: tuple[int, ...]
    answer: tuple[int, int]
    offsets: tuple[int, ...]
    second_at: int = 0


def encode_windows(
    rows: Sequence[SpanQuestion], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[list[Window] | str]:
    """The windows of each row; or, in words, why it cannot be taught.

    Control tokens that stand in the texts are read as plain text. Where a window has too little room for `doc_stride`,
    neighbours share half of what there is.

    Raises:
        InputError: a tokenizer that does not say which characters a token stands for.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} does not say which characters a token stands for, so answers cannot be found "
            "in passages. Take a model whose tokenizer comes as tokenizer.json"
        )
    stride = find_windows(tokenizer).doc_stride
    texts = [row.question for row in rows], [row.context for row in rows]
    options = {"return_offsets_mapping": True, "split_special_tokens": True, "verbose": False}
    encoded = tokenizer(*texts, **options)
    all_types = encoded.get("token_type_ids") or [()] * len(rows)
    for index, row in enumerate(rows):
        ids, kinds = encoded["input_ids"][index], encoded.sequence_ids(index)
        offsets, types = encoded["offset_mapping"][index], all_types[index]
        places = [place for place, kind in enumerate(kinds) if kind == 1]
        if not places or not places[0]:
            yield "its question or its passage becomes no token"
            continue
        inside = range(places[0], places[-1] + 1)
        room = max_length - (len(ids) - len(inside))
        if room < 2:
            yield (
                f"its question leaves no room for a passage in {max_length:,} tokens. Shorten it, or raise --max-length"
            )
            continue
        found = _find_answer(row, offsets, inside)
        if found is None:
            yield f"its answer '{row.answers[0][:40]}' becomes no token. Mend it, or leave the row out"
            continue
        whole = Window(tuple(ids), found, _flat(offsets, inside), find_second(types))
        made = list(_cut(whole, inside, room, min(stride, room // 2)))
        if row.answers and not any(window.answer[0] for window in made):
            tokens = found[1] - found[0] + 1
            yield f"its answer of {tokens:,} tokens stands whole in no window. Raise --doc-stride, or --max-length"
            continue
        yield made


def _find_answer(row: SpanQuestion, offsets: Sequence[tuple[int, int]], inside: range) -> tuple[int, int] | None:
    """First and last token that has a character of the first answer; (0, 0) where there is no answer."""
    if not row.answers:
        return 0, 0
    start, end = row.starts[0], row.starts[0] + len(row.answers[0])
    places = [place for place in inside if offsets[place][0] < end and offsets[place][1] > start]
    return (places[0], places[-1]) if places else None


def _flat(offsets: Sequence[tuple[int, int]], inside: range) -> tuple[int, ...]:
    return tuple(number for place, pair in enumerate(offsets) for number in (pair if place in inside else (0, 0)))


def _cut(whole: Window, inside: range, room: int, shared: int) -> Iterator[Window]:
    """Windows of at most `room` tokens of the passage, which stands at the places `inside` of the whole."""
    start = inside.start
    while True:
        part = range(start, min(start + room, inside.stop))
        first, last = whole.answer
        moved = first - start + inside.start, last - start + inside.start
        yield Window(
            (*whole.ids[: inside.start], *whole.ids[part.start : part.stop], *whole.ids[inside.stop :]),
            moved if first in part and last in part else (0, 0),
            (
                *whole.offsets[: 2 * inside.start],
                *whole.offsets[2 * part.start : 2 * part.stop],
                *whole.offsets[2 * inside.stop :],
            ),
            whole.second_at,
        )
        if part.stop == inside.stop:
            return
        start += room - shared
