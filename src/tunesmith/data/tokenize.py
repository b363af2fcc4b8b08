"""Rows to ids, and which ids are trained: the only place where this is decided.

A conversation is rendered by the tokenizer's chat template, turn by turn. What the template writes
before an answer is context; the answer up to and with its stop token is trained; whatever the
template puts after the stop token is context again. Context and answer are tokenised apart, just as
at inference the prompt stands alone, so training and inference see the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from tunesmith.data.problems import Problems
from tunesmith.data.render import (
    Dialogue,
    Piece,
    control_tokens,
    has_marks,
    mark_controls,
    render,
    split_marks,
)
from tunesmith.data.tokens import Signal, TokenRows, find_kept, is_kept, keep, name_of
from tunesmith.errors import InputError
from tunesmith.records import Conversation, Example, Examples, LabelledText, Message, TokenizedExample
from tunesmith.terminal import Bar

ROWS_AT_ONCE = 256
BAR_FROM = 20_000  # rows; fewer are done before anyone would look

TooLong = Literal["refuse", "cut", "skip"]


@dataclass(frozen=True, slots=True)
class Ids:
    """A row's ids, which of them are trained, and how many tokens were cut off."""

    ids: Sequence[int]
    trained: Sequence[bool]
    num_cut: int = 0


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
    last answer ("cut"), or is left out ("skip").

    Raises:
        InputError: rows that are too long, or whose template cannot be followed; each named by file and line.
    """
    kept_as = name_of(examples, tokenizer, max_length, too_long) if is_kept(examples) else ""
    kept = find_kept(examples, kept_as) if kept_as else None
    if kept is not None:
        return kept
    rows = TokenRows()
    encoder = _Encoder(tokenizer, max_length, too_long, {name: at for at, name in enumerate(examples.class_names)})
    with Bar("tokens", len(examples.rows), quiet or len(examples.rows) < BAR_FROM) as bar:
        for first, made in _in_chunks(examples.rows, encoder):
            for index, (row, target) in enumerate(made, first):
                if row is not None:
                    rows.append(row.ids, row.trained, target, row.num_cut, index)
            bar.advance(steps=len(made))
    if encoder.problems.count:
        encoder.refuse(len(examples.rows))
    if not rows:
        raise InputError(f"every row is longer than {max_length:,} tokens. Raise --max-length")
    if kept_as:
        keep(rows, kept_as)
    return rows


Made = list[tuple[Ids | None, "int | float | None"]]


def _in_chunks(rows: Sequence[Example], encoder: _Encoder) -> Iterator[tuple[int, Made]]:
    """Chunks in order: while one is turned into ids by a thread of the tokenizer, the next one is rendered."""
    before: tuple[int, Future[Made]] | None = None
    with ThreadPoolExecutor(1) as thread:
        for first in range(0, len(rows), ROWS_AT_ONCE):
            finish = encoder.begin([rows[index] for index in range(first, min(first + ROWS_AT_ONCE, len(rows)))])
            if before is not None:
                yield before[0], before[1].result()
            before = first, thread.submit(finish)
        if before is not None:
            yield before[0], before[1].result()


class _Encoder:
    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, too_long: TooLong, class_ids: dict[str, int]
    ) -> None:
        self._tokenizer, self._max_length, self._too_long = tokenizer, max_length, too_long
        self._class_ids = class_ids
        self._num_too_long = 0
        self.problems = Problems()

    def begin(self, rows: Sequence[Example]) -> Callable[[], Made]:
        """Renders rows; what is returned turns them into ids."""
        if isinstance(rows[0], LabelledText):
            labelled = [row for row in rows if isinstance(row, LabelledText)]
            return lambda: self._finish_labelled(labelled)
        conversations = [row for row in rows if isinstance(row, Conversation)]
        dialogues = [Dialogue(row.messages, row.tools) for row in conversations]
        pieces = render_marked(dialogues, self._tokenizer)
        return lambda: self._finish_conversations(conversations, pieces)

    def _finish_labelled(self, rows: Sequence[LabelledText]) -> Made:
        encoded = encode_texts([row.text for row in rows], self._tokenizer, self._max_length)
        targets = [self._class_ids[row.target] if isinstance(row.target, str) else row.target for row in rows]
        return [
            (Ids(ids, (), num_cut), target if isinstance(target, int | float) else None)
            for (ids, num_cut), target in zip(encoded, targets, strict=True)
        ]

    def _finish_conversations(self, rows: Sequence[Conversation], rendered: Sequence[list[Piece] | InputError]) -> Made:
        good = [pieces for pieces in rendered if not isinstance(pieces, InputError)]
        encoded = iter(encode_pieces(good, self._tokenizer))
        made: Made = []
        for row, pieces in zip(rows, rendered, strict=True):
            if isinstance(pieces, InputError):
                self.problems.add(row.origin, str(pieces))
                made.append((None, None))
            else:
                made.append((self._fit(row, next(encoded)), None))
        return made

    def _fit(self, row: Conversation, ids: Ids) -> Ids | None:
        if len(ids.ids) <= self._max_length:
            return ids
        if self._too_long == "skip":
            return None
        if self._too_long == "cut":
            return self._shorten(row, ids)
        self._num_too_long += 1
        self.problems.add(row.origin, f"{len(ids.ids):,} tokens")
        return None

    def _shorten(self, row: Conversation, whole: Ids) -> Ids | None:
        """Without its oldest exchanges, then without the beginning of the question to its last answer."""
        start = 1 if row.messages[0].role == "system" else 0
        questions = [number for number, turn in enumerate(row.messages) if turn.role == "user"]
        for first in questions[1:]:
            kept = self._encode(replace(row, messages=(*row.messages[:start], *row.messages[first:])))
            if len(kept.ids) <= self._max_length:
                return replace(kept, num_cut=len(whole.ids) - len(kept.ids))
        turns = (*row.messages[:start], *row.messages[questions[-1] :])
        low, high = 1, len(turns[start].content)  # how many characters are left out: the least that suffices
        best: Ids | None = None
        while low <= high:
            middle = (low + high) // 2
            shorter = replace(turns[start], content=turns[start].content[middle:])
            tried = self._encode(replace(row, messages=(*turns[:start], shorter, *turns[start + 1 :])))
            if shorter.content.strip() and len(tried.ids) <= self._max_length:
                best, high = tried, middle - 1
            elif shorter.content.strip():
                low = middle + 1
            else:
                high = middle - 1
        if best is None:
            self._num_too_long += 1
            self.problems.add(
                row.origin, f"{len(whole.ids):,} tokens, and what stands outside of its question is too long"
            )
            return None
        return replace(best, num_cut=len(whole.ids) - len(best.ids))

    def _encode(self, row: Conversation) -> Ids:
        (pieces,) = render_marked([Dialogue(row.messages, row.tools)], self._tokenizer)
        if isinstance(pieces, InputError):
            raise InputError(f"{row.origin}: {pieces}")
        return encode_pieces([pieces], self._tokenizer)[0]

    def refuse(self, num_rows: int) -> None:
        if self._num_too_long == self.problems.count:
            shown = "\n  ".join(self.problems.shown)
            raise InputError(
                f"{self._num_too_long:,} of {num_rows:,} rows are longer than {self._max_length:,} tokens and an "
                "answer is never cut silently. Raise --max-length, shorten these rows, cut the beginning of what "
                f"stands before the answer with --too-long cut, or leave them out with --too-long skip:\n  {shown}"
            )
        self.problems.settle(f"{num_rows:,} rows")


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[tuple[tuple[int, ...], int]]:
    """Ids of each text with the model's usual special tokens, and how many tokens were cut off.

    Control tokens that stand in the text are read as plain text.
    """
    if not texts:
        return []
    whole = tokenizer(list(texts), split_special_tokens=True, verbose=False)["input_ids"]
    encoded = []
    for text, ids in zip(texts, whole, strict=True):
        kept = ids
        if len(ids) > max_length:
            kept = tokenizer(text, truncation=True, max_length=max_length, split_special_tokens=True)["input_ids"]
        encoded.append((tuple(kept), len(ids) - len(kept)))
    return encoded


def render_marked(dialogues: Sequence[Dialogue], tokenizer: PreTrainedTokenizerBase) -> list[list[Piece] | InputError]:
    """Pieces in which control tokens of the users' texts are marks."""
    controls = control_tokens(tokenizer)
    return render([mark_controls(dialogue, controls) for dialogue in dialogues], tokenizer)


def encode_pieces(rows: Sequence[Sequence[Piece]], tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    """Ids of rendered conversations; each answer is trained up to and with its stop token."""
    encoded = iter(_encode([piece.text for pieces in rows for piece in pieces], tokenizer))
    special = set(tokenizer.all_special_ids)
    made = []
    for pieces in rows:
        ids: list[int] = []
        trained: list[bool] = []
        for piece in pieces:
            tokens = list(next(encoded))
            num_taught = 0
            if piece.is_answer:
                stop = _last_special(tokens, special)
                if stop is None and tokenizer.eos_token_id is not None:
                    tokens.append(tokenizer.eos_token_id)
                    stop = len(tokens) - 1
                num_taught = len(tokens) if stop is None else stop + 1
            ids += tokens
            trained += [True] * num_taught + [False] * (len(tokens) - num_taught)
        made.append(Ids(ids, trained))
    return made


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of each text, without anything added; marks are the tokens of the words that they stand for."""
    plain = [index for index, text in enumerate(texts) if not has_marks(text)]
    found = _ids([texts[index] for index in plain], tokenizer)
    made: list[list[int]] = [[]] * len(texts)
    for index, ids in zip(plain, found, strict=True):
        made[index] = ids
    controls = control_tokens(tokenizer) if len(plain) < len(texts) else []
    for index in sorted(set(range(len(texts))) - set(plain)):
        parts = split_marks(texts[index], controls)
        made[index] = [token for text, is_control in parts for token in _ids([text], tokenizer, is_control)[0]]
    return made


def _ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, as_text: bool = False) -> list[list[int]]:
    if not texts:
        return []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        options = {"add_special_tokens": False, "verbose": False, "split_special_tokens": as_text}
        return list(tokenizer(list(texts), **options)["input_ids"])
    # What the tokenizer itself would do, without the lists that nobody asked for: they take as long as the ids.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = as_text
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _last_special(ids: Sequence[int], special: set[int]) -> int | None:
    return next((place for place in reversed(range(len(ids))) if ids[place] in special), None)


def prompt_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: str = "") -> tuple[int, ...]:
    """Ids that lead up to the next answer: the same the model saw before that answer in training."""
    (pieces,) = render_marked([Dialogue(tuple(messages), tools, is_open=True)], tokenizer)
    if isinstance(pieces, InputError):
        raise pieces
    return tuple(token for ids in _encode([piece.text for piece in pieces], tokenizer) for token in ids)


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids at which generation stops: the one that closes an answer in this template, and end of text."""
    (pieces,) = render_marked([Dialogue((Message("user", "a"), Message("assistant", "b")))], tokenizer)
    if isinstance(pieces, InputError):
        raise pieces
    (ids,) = _encode([pieces[-1].text], tokenizer)
    stop = _last_special(ids, set(tokenizer.all_special_ids))
    ends = [] if stop is None else [ids[stop]]
    return tuple(dict.fromkeys(token for token in [*ends, tokenizer.eos_token_id] if token is not None))


def measure(rows: Sequence[TokenizedExample]) -> Signal:
    if isinstance(rows, TokenRows):
        return rows.signal
    made = TokenRows()
    for row in rows:
        made.append(row.input_ids, row.trained, row.target, row.num_cut, row.row)
    return made.signal
