"""A whole data set to ids: by this process or by several, and kept for the next run.

Which ids a row has, and which of them are trained, is decided in `ids`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunesmith.data.ids import Encoded, Encoder, Ids, Refusal, TooLong
from tunesmith.data.problems import Problems
from tunesmith.data.sides import find_sides
from tunesmith.data.store import Stored
from tunesmith.data.tokens import Signal, TokenRows, find_kept, is_kept, keep, name_of
from tunesmith.data.windows import find_windows
from tunesmith.data.workers import count_workers, encode_by_workers
from tunesmith.errors import InputError
from tunesmith.records import Example, Examples, Origin, TokenizedExample
from tunesmith.terminal import Bar

ROWS_AT_ONCE = 256
BAR_FROM = 20_000  # rows; fewer are done before anyone would look


def tokenize(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    too_long: TooLong = "refuse",
    quiet: bool = True,
) -> TokenRows:
    """Ids and trained places of every row, in order.

    Labelled texts longer than `max_length` tokens lose their end, counted in `num_cut`. Of a conversation that
    does not fit an answer is never cut: the row is refused, or loses the beginning of what stands before its
    last answer ("cut"), or is left out ("skip"). Of an encoder-decoder each side may have `max_length` tokens, and
    of a source it is the end that is cut. A passage that does not fit becomes several rows, one for each window.

    Raises:
        InputError: rows that are too long, or whose template cannot be followed; each named by file and line.
    """
    sides = find_sides(tokenizer) if examples.task == "generation" else None
    windows = find_windows(tokenizer) if examples.task == "extractive-qa" else None
    settings = (max_length, too_long, *(known for known in (sides, windows) if known is not None))
    kept_as = name_of(examples, tokenizer, *settings) if is_kept(examples) else ""
    kept = find_kept(examples, kept_as) if kept_as else None
    start = None if sides is None else sides.start
    if kept is not None:
        kept.start = start
        return kept
    rows, refused, done = TokenRows(start), _Refused(), 0
    encoder = Encoder(tokenizer, max_length, too_long, {name: at for at, name in enumerate(examples.class_names)})
    with Bar("tokens", len(examples.rows), quiet or len(examples.rows) < BAR_FROM) as bar:
        for made in _encode_all(examples.rows, encoder):
            for index, row in enumerate(made, done):
                if isinstance(row, Refusal):
                    refused.add(examples.rows[index].origin, row)
                else:
                    rows.extend(row, index)
            done += len(made)
            bar.advance(steps=len(made))
    refused.settle(len(examples.rows), max_length)
    if not rows:
        raise InputError(f"every row is longer than {max_length:,} tokens. Raise --max-length")
    if kept_as:
        keep(rows, kept_as)
    return rows


def _encode_all(rows: Sequence[Example], encoder: Encoder) -> Iterator[list[Encoded]]:
    """In order, some hundred rows at a time."""
    num_workers = count_workers(len(rows))
    if num_workers > 1 and isinstance(rows, Stored):
        yield from encode_by_workers(rows, encoder, num_workers)
    else:
        for first in range(0, len(rows), ROWS_AT_ONCE):
            yield encoder.encode(rows[first : first + ROWS_AT_ONCE])


class _Refused:
    def __init__(self) -> None:
        self._problems = Problems()
        self._num_too_long = 0

    def add(self, origin: Origin, refusal: Refusal) -> None:
        self._problems.add(origin, refusal.problem)
        self._num_too_long += refusal.is_too_long

    def settle(self, num_rows: int, max_length: int) -> None:
        if self._num_too_long and self._num_too_long == self._problems.count:
            shown = "\n  ".join(self._problems.shown)
            raise InputError(
                f"{self._num_too_long:,} of {num_rows:,} rows are longer than {max_length:,} tokens and an "
                "answer is never cut silently. Raise --max-length, shorten these rows, cut the beginning of what "
                f"stands before the answer with --too-long cut, or leave them out with --too-long skip:\n  {shown}"
            )
        self._problems.settle(f"{num_rows:,} rows")


def measure(rows: Sequence[TokenizedExample]) -> Signal:
    if isinstance(rows, TokenRows):
        return rows.signal
    made = TokenRows()
    for row in rows:
        ids_T, trained_T = np.array(row.input_ids, dtype=np.int32), np.array(row.trained, dtype=bool)
        made.append(Ids(ids_T, trained_T, row.target, row.num_cut, row.second_at, 0, row.answers, row.offsets), row.row)
    return made.signal
