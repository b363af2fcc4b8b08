"""Rows to ids, and which ids are trained: the only place where this is decided.

A conversation is rendered by the tokenizer's chat template, turn by turn. What the template writes
before an answer is context; the answer up to and with its stop token is trained; whatever the
template puts after the stop token is context again. Context and answer are tokenised apart, just as
at inference the prompt stands alone, so training and inference see the same ids. What SentencePiece would put before
an answer because it stands alone is left out.

Of a ranking the prompt comes first and then its answers, each rendered as the one answer to that prompt, up to and with
its stop token. A tokenizer without a chat template (an encoder's) reads prompt and answer as one text, whole for each.

A labelled text, or pair of texts, is judged as a whole: none of its tokens is trained. Of tagged words each is judged
at its first token; the other tokens of it are context.
Of a question to a passage the answer is trained, in each window of the passage that it stands in (`windows`).
Of an encoder-decoder a row is its source and, behind it, its target (`sides`), which is what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunesmith.data.inputs import Input, encode_pairs, encode_words
from tunesmith.data.render import (
    Dialogue,
    Piece,
    control_tokens,
    has_marks,
    mark_controls,
    render,
    split_marks,
)
from tunesmith.data.sides import Sides, closing_id, encode_targets, find_sides, source_text
from tunesmith.data.windows import Window, encode_windows
from tunesmith.data.words import ArrayOfIds, Words, encode_behind, encode_whole, reads_beginnings_otherwise
from tunesmith.errors import InputError
from tunesmith.records import Conversation, Example, LabelledText, Message, Ranking, SpanQuestion, TaggedWords, Target

NO_LIMIT = 2**31 - 1  # longer than any row
TooLong = Literal["refuse", "cut", "skip"]


@dataclass(frozen=True, slots=True)
class Ids:
    """A row's ids (T,) int32, which of them are trained (T,) bool, its target and how many tokens were cut off.

    `second_at`, `answers` and `offsets` are those of TokenizedExample; `num_lost` counts words that were cut off with
    their tags.
    """

    ids: ArrayOfIds
    trained: Any
    target: Target = None
    num_cut: int = 0
    second_at: int = 0
    num_lost: int = 0
    answers: tuple[int, ...] = ()
    offsets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    problem: str
    is_too_long: bool = False


# What a row becomes: ids, or those of each of its windows; None for one that is left out.
Encoded = Ids | tuple[Ids, ...] | Refusal | None


class Encoder:
    """Turns rows into ids, each by itself."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, too_long: TooLong, class_ids: dict[str, int]
    ) -> None:
        self.settings = (tokenizer, max_length, too_long, class_ids)
        self._tokenizer, self._max_length, self._too_long = tokenizer, max_length, too_long
        self._class_ids = class_ids
        self._sides = find_sides(tokenizer)

    @cached_property
    def _words(self) -> Words:
        """Made when a conversation comes: labelled texts, and who has others encode, need none."""
        return Words(self._tokenizer)

    def encode(self, rows: Sequence[Example]) -> list[Encoded]:
        if isinstance(rows[0], LabelledText):
            return self._encode_labelled([row for row in rows if isinstance(row, LabelledText)])
        if isinstance(rows[0], TaggedWords):
            return self._encode_tagged([row for row in rows if isinstance(row, TaggedWords)])
        if isinstance(rows[0], SpanQuestion):
            return self._encode_questions([row for row in rows if isinstance(row, SpanQuestion)])
        if isinstance(rows[0], Ranking):
            return self._encode_rankings([row for row in rows if isinstance(row, Ranking)])
        conversations = [row for row in rows if isinstance(row, Conversation)]
        if self._sides is not None:
            return self._encode_two_sided(conversations, self._sides)
        return self._encode_conversations(conversations)

    def _encode_labelled(self, rows: Sequence[LabelledText]) -> list[Encoded]:
        encoded = encode_labelled(rows, self._tokenizer, self._max_length)
        return [
            replace(_judged(given), target=self._target(row), second_at=given.second_at)
            for row, given in zip(rows, encoded, strict=True)
        ]

    def _target(self, row: LabelledText) -> Target:
        if isinstance(row.target, tuple):
            return tuple(name in row.target for name in self._class_ids)
        return self._class_ids[row.target] if isinstance(row.target, str) else row.target

    def _encode_tagged(self, rows: Sequence[TaggedWords]) -> list[Encoded]:
        made: list[Encoded] = []
        encoded = encode_words([row.words for row in rows], self._tokenizer, self._max_length)
        for row, given in zip(rows, encoded, strict=True):
            if not given.begins:
                made.append(Refusal("no word of it fits"))
                continue
            tags = tuple(self._class_ids[tag] for tag in row.tags[: len(given.begins)])
            made.append(replace(_judged(given), target=tags, num_lost=len(row.words) - len(given.begins)))
        return made

    def _encode_questions(self, rows: Sequence[SpanQuestion]) -> list[Encoded]:
        made: list[Encoded] = []
        for windows in encode_windows(rows, self._tokenizer, self._max_length):
            if isinstance(windows, str):
                made.append(None if self._too_long == "skip" else Refusal(windows))
            else:
                made.append(tuple(_ids_of_window(window) for window in windows))
        return made

    def _encode_rankings(self, rows: Sequence[Ranking]) -> list[Encoded]:
        if self._tokenizer.chat_template is None:
            return [self._fit_ranking(row, *self._encode_whole(row)) for row in rows]
        answered = [Dialogue((*row.prompt, Message("assistant", text))) for row in rows for text in row.answers]
        rendered = iter(render_marked(answered, self._tokenizer))
        return [self._encode_ranking(row, [next(rendered) for _ in row.answers]) for row in rows]

    def _encode_ranking(self, row: Ranking, rendered: Sequence[list[Piece] | InputError]) -> Encoded:
        pieces = [piece for piece in rendered if not isinstance(piece, InputError)]
        if len(pieces) < len(rendered):
            return Refusal(next(str(piece) for piece in rendered if isinstance(piece, InputError)))
        prompt, *whole = encode_pieces([pieces[0][:-1], *pieces], self._tokenizer)
        size = len(prompt.ids)
        return self._fit_ranking(row, prompt.ids, [one.ids[size:][one.trained[size:]] for one in whole])

    def _encode_whole(self, row: Ranking) -> tuple[ArrayOfIds, list[ArrayOfIds]]:
        before = [turn.content for turn in row.prompt]
        texts = ["\n\n".join([*before, answer]) for answer in row.answers]
        encoded = encode_texts(texts, self._tokenizer, NO_LIMIT)
        return np.array([], dtype=np.int32), [np.array(ids, dtype=np.int32) for ids, _ in encoded]

    def _fit_ranking(self, row: Ranking, prompt_T: ArrayOfIds, answers: Sequence[ArrayOfIds]) -> Encoded:
        """Each answer may have `max_length` tokens with its prompt; nothing is cut, or the ranking is another one."""
        longest = len(prompt_T) + max(map(len, answers))
        if longest > self._max_length:
            more = " (rankings are not cut: --too-long skip)" if self._too_long == "cut" else ""
            refused = Refusal(f"{longest:,} tokens in prompt and answer{more}", is_too_long=True)
            return None if self._too_long == "skip" else refused
        ends = np.cumsum([len(prompt_T), *map(len, answers)])
        ids_T = np.concatenate([prompt_T, *answers])
        return Ids(ids_T, np.arange(len(ids_T)) >= max(1, len(prompt_T)), row.ranks, answers=tuple(ends[:-1].tolist()))

    def _encode_conversations(self, rows: Sequence[Conversation]) -> list[Encoded]:
        rendered = render_marked([Dialogue(row.messages, row.tools) for row in rows], self._tokenizer)
        good = [pieces for pieces in rendered if not isinstance(pieces, InputError)]
        encoded = iter(encode_pieces(good, self._tokenizer, self._words))
        return [
            Refusal(str(pieces)) if isinstance(pieces, InputError) else self._fit(row, next(encoded))
            for row, pieces in zip(rows, rendered, strict=True)
        ]

    def _encode_two_sided(self, rows: Sequence[Conversation], sides: Sides) -> list[Encoded]:
        sources = self._encode_sources([row.messages[:-1] for row in rows], sides)
        targets = encode_targets([row.messages[-1].content for row in rows], self._tokenizer, sides)
        made: list[Encoded] = []
        for row, source, target in zip(rows, sources, targets, strict=True):
            if row.tools:
                made.append(Refusal("an encoder-decoder has no template to tell it of tools"))
            else:
                made.append(self._fit_two_sided(row, source, target, sides))
        return made

    def _encode_sources(self, rows: Sequence[Sequence[Message]], sides: Sides) -> list[list[int]]:
        texts = [source_text(messages, sides) for messages in rows]
        return [list(ids) for ids, _ in encode_texts(texts, self._tokenizer, NO_LIMIT)]

    def _fit_two_sided(self, row: Conversation, source: list[int], target: list[int], sides: Sides) -> Encoded:
        """Each side may have `max_length` tokens; a target is never cut."""
        sizes = {"source": len(source), "target": len(target)}
        too_long = [f"{side} {size:,} tokens" for side, size in sizes.items() if size > self._max_length]
        num_cut = 0
        if too_long and self._too_long == "skip":
            return None
        if len(target) <= self._max_length and self._too_long == "cut":
            kept = self._shorten_source(row.messages[:-1], sides) if too_long else source
            num_cut, source = len(source) - len(kept), kept
        elif too_long:
            return Refusal(", ".join(too_long), is_too_long=True)
        whole_T = np.array([*source, *target], dtype=np.int32)
        return Ids(whole_T, np.arange(len(whole_T)) >= len(source), None, num_cut)

    def _shorten_source(self, messages: Sequence[Message], sides: Sides) -> list[int]:
        """Without its oldest exchanges, then without its end: of a text to be summed up the beginning says most."""
        start = 1 if messages[0].role == "system" else 0
        questions = [number for number, turn in enumerate(messages) if turn.role == "user"]
        kept: Sequence[Message] = messages
        for first in questions[1:]:
            kept = [*messages[:start], *messages[first:]]
            (source,) = self._encode_sources([kept], sides)
            if len(source) <= self._max_length:
                return source
        ((ids, _),) = encode_texts([source_text(kept, sides)], self._tokenizer, self._max_length)
        return list(ids)

    def _fit(self, row: Conversation, ids: Ids) -> Encoded:
        if len(ids.ids) <= self._max_length:
            return ids
        if self._too_long == "skip":
            return None
        if self._too_long == "cut":
            return self._shorten(row, ids)
        return Refusal(f"{len(ids.ids):,} tokens", is_too_long=True)

    def _shorten(self, row: Conversation, whole: Ids) -> Ids | Refusal:
        """Without its oldest exchanges, then without the beginning of the question to its last answer."""
        start = 1 if row.messages[0].role == "system" else 0
        questions = [number for number, turn in enumerate(row.messages) if turn.role == "user"]
        for first in questions[1:]:
            kept = self._ids_of(replace(row, messages=(*row.messages[:start], *row.messages[first:])))
            if len(kept.ids) <= self._max_length:
                return replace(kept, num_cut=len(whole.ids) - len(kept.ids))
        turns = (*row.messages[:start], *row.messages[questions[-1] :])
        low, high = 1, len(turns[start].content)  # how many characters are left out: the least that suffices
        best: Ids | None = None
        while low <= high:
            middle = (low + high) // 2
            shorter = replace(turns[start], content=turns[start].content[middle:])
            tried = self._ids_of(replace(row, messages=(*turns[:start], shorter, *turns[start + 1 :])))
            if shorter.content.strip() and len(tried.ids) <= self._max_length:
                best, high = tried, middle - 1
            elif shorter.content.strip():
                low = middle + 1
            else:
                high = middle - 1
        if best is None:
            text = f"{len(whole.ids):,} tokens, and what stands outside of its question is too long"
            return Refusal(text, is_too_long=True)
        return replace(best, num_cut=len(whole.ids) - len(best.ids))

    def _ids_of(self, row: Conversation) -> Ids:
        (pieces,) = render_marked([Dialogue(row.messages, row.tools)], self._tokenizer)
        if isinstance(pieces, InputError):
            raise InputError(f"{row.origin}: {pieces}")
        return encode_pieces([pieces], self._tokenizer, self._words)[0]


def _ids_of_window(window: Window) -> Ids:
    first, last = window.answer
    trained_T = (np.arange(len(window.ids)) >= first) & (np.arange(len(window.ids)) <= last)
    ids_T = np.array(window.ids, dtype=np.int32)
    return Ids(ids_T, trained_T, window.answer, second_at=window.second_at, offsets=window.offsets)


def encode_labelled(rows: Sequence[LabelledText], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Input]:
    """Texts, or pairs of texts, as they are judged."""
    if rows and rows[0].pair:
        return encode_pairs([row.text for row in rows], [row.pair for row in rows], tokenizer, max_length)
    return [Input(ids, num_cut) for ids, num_cut in encode_texts([row.text for row in rows], tokenizer, max_length)]


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


def _judged(given: Input) -> Ids:
    """Without a target; the places where words begin are trained."""
    trained_T = np.zeros(len(given.ids), dtype=bool)
    trained_T[list(given.begins)] = True
    return Ids(np.array(given.ids, dtype=np.int32), trained_T, num_cut=given.num_cut)


def render_marked(dialogues: Sequence[Dialogue], tokenizer: PreTrainedTokenizerBase) -> list[list[Piece] | InputError]:
    """Pieces in which control tokens of the users' texts are marks."""
    controls = control_tokens(tokenizer)
    return render([mark_controls(dialogue, controls) for dialogue in dialogues], tokenizer)


def encode_pieces(
    rows: Sequence[Sequence[Piece]], tokenizer: PreTrainedTokenizerBase, words: Words | None = None
) -> list[Ids]:
    """Ids of rendered conversations; each answer is trained up to and with its stop token."""
    encoded = iter(_encode_rows(rows, tokenizer, words))
    is_special_V = _special_ids(tokenizer)
    end_1 = np.array([token for token in [tokenizer.eos_token_id] if token is not None], dtype=np.int32)
    made = []
    for pieces in rows:
        ids, trained = [], []
        found = iter(next(encoded))
        for piece in pieces:
            ids_T = next(found)
            trained_T = np.zeros(len(ids_T), dtype=bool)
            if piece.is_answer:
                places = np.flatnonzero(is_special_V[ids_T])
                if not len(places):
                    ids_T = np.concatenate([ids_T, end_1])
                num_taught = places[-1] + 1 if len(places) else len(ids_T)
                trained_T = np.arange(len(ids_T)) < num_taught
            ids.append(ids_T)
            trained.append(trained_T)
        made.append(Ids(np.concatenate(ids), np.concatenate(trained)))
    return made


def _encode_rows(
    rows: Sequence[Sequence[Piece]], tokenizer: PreTrainedTokenizerBase, words: Words | None = None
) -> list[list[ArrayOfIds]]:
    """Ids of each piece by itself; for tokenizers that put a blank before a text, behind the pieces before it."""
    encoded = iter(_encode([piece.text for pieces in rows for piece in pieces], tokenizer, words))
    made = [[next(encoded) for _ in pieces] for pieces in rows]
    if not reads_beginnings_otherwise(tokenizer):
        return made
    for pieces, ids in zip(rows, made, strict=True):
        texts = list(takewhile(lambda text: not has_marks(text), (piece.text for piece in pieces)))
        ids[: len(texts)] = encode_behind(texts, ids[: len(texts)], tokenizer)
    return made


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> Any:
    """(V,) bool: which ids are special tokens."""
    special = tokenizer.all_special_ids
    is_special_V = np.zeros(max(len(tokenizer), *special, 0) + 1, dtype=bool)
    is_special_V[special] = True
    return is_special_V


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, words: Words | None = None) -> list[ArrayOfIds]:
    """Ids of each text, without anything added; marks are the tokens of the words that they stand for."""
    plain = [index for index, text in enumerate(texts) if not has_marks(text)]
    those = [texts[index] for index in plain]
    found = encode_whole(those, tokenizer) if words is None else words.encode(those)
    if len(plain) == len(texts):
        return found
    made: list[ArrayOfIds] = [None] * len(texts)
    for index, ids_T in zip(plain, found, strict=True):
        made[index] = ids_T
    controls = control_tokens(tokenizer)
    for index in sorted(set(range(len(texts))) - set(plain)):
        parts = split_marks(texts[index], controls)
        made[index] = np.concatenate([encode_whole([text], tokenizer, is_control)[0] for text, is_control in parts])
    return made


def prompt_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: str = "") -> tuple[int, ...]:
    """Ids that lead up to the next answer: the same the model saw before that answer in training."""
    sides = find_sides(tokenizer)
    if sides is not None:
        return encode_texts([source_text(messages, sides)], tokenizer, NO_LIMIT)[0][0]
    (pieces,) = render_marked([Dialogue(tuple(messages), tools, is_open=True)], tokenizer)
    if isinstance(pieces, InputError):
        raise pieces
    return tuple(np.concatenate(_encode_rows([pieces], tokenizer)[0]).tolist())


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids at which generation stops: the one that closes an answer in this template, and end of text."""
    if find_sides(tokenizer) is not None:
        return (closing_id(tokenizer),)
    (pieces,) = render_marked([Dialogue((Message("user", "a"), Message("assistant", "b")))], tokenizer)
    if isinstance(pieces, InputError):
        raise pieces
    (ids_T,) = _encode([pieces[-1].text], tokenizer)
    ends = ids_T[_special_ids(tokenizer)[ids_T]][-1:].tolist()
    return tuple(dict.fromkeys(token for token in [*ends, tokenizer.eos_token_id] if token is not None))
