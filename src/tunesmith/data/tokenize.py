"""Rows to ids, and which ids are trained: the only place where this is decided.

A conversation is rendered by the tokenizer's chat template, turn by turn. What the template writes
before an answer is context; the answer up to and with its stop token is trained; whatever the
template puts after the stop token is context again. Context and answer are tokenised apart, just as
at inference the prompt stands alone, so training and inference see the same ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tunesmith.errors import InputError
from tunesmith.records import Conversation, Examples, LabelledText, Message, TokenizedExample


@dataclass(frozen=True, slots=True)
class Signal:
    """What a tokenized data set teaches, in rows and tokens."""

    num_rows: int
    num_tokens: int
    num_trained: int
    num_cut_rows: int
    num_cut_tokens: int
    longest: int

    def __str__(self) -> str:
        text = f"{self.num_rows:,} rows, {self.num_tokens:,} tokens, longest row {self.longest:,}"
        if self.num_trained:
            text += f"; {self.num_trained:,} tokens trained, {self.num_tokens - self.num_trained:,} context only"
        if self.num_cut_rows:
            text += f"; {self.num_cut_rows:,} rows cut at the end by {self.num_cut_tokens:,} tokens"
        return text


def tokenize(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[TokenizedExample]:
    """Ids and trained places of every row, in order.

    Labelled texts longer than `max_length` tokens lose their end, counted in `num_cut`. Conversations
    are never cut: a row that does not fit is an error.

    Raises:
        InputError: rows that are too long, whose template cannot be followed, or that hold the
            tokenizer's control tokens as text; each named by file and line.
    """
    if examples.task == "generation":
        return _tokenize_conversations(examples, tokenizer, max_length)
    ids = {name: index for index, name in enumerate(examples.class_names)}
    rows = [row for row in examples.rows if isinstance(row, LabelledText)]
    targets = [ids[row.target] if isinstance(row.target, str) else row.target for row in rows]
    encoded = encode_texts([row.text for row in rows], tokenizer, max_length)
    return [
        TokenizedExample(ids_T, (False,) * len(ids_T), target, num_cut, index)
        for index, ((ids_T, num_cut), target) in enumerate(zip(encoded, targets, strict=True))
    ]


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


def prompt_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that lead up to the next answer: the same the model saw before that answer in training."""
    _refuse_control_tokens(messages, tokenizer, "the prompt")
    pieces = list(_pieces(messages, tokenizer, open_end=True))
    return tuple(token for text, _ in pieces for token in _ids(text, tokenizer))


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids at which generation stops: the one that closes an answer in this template, and end of text."""
    turn = (Message("user", "a"), Message("assistant", "b"))
    *_, (answer, _) = _pieces(turn, tokenizer)
    ids = _ids(answer, tokenizer)
    stop = _last_special(ids, tokenizer)
    ends = [] if stop is None else [ids[stop]]
    return tuple(dict.fromkeys(token for token in [*ends, tokenizer.eos_token_id] if token is not None))


def measure(rows: Sequence[TokenizedExample]) -> Signal:
    return Signal(
        num_rows=len(rows),
        num_tokens=sum(len(row.input_ids) for row in rows),
        num_trained=sum(row.num_trained for row in rows),
        num_cut_rows=sum(row.num_cut > 0 for row in rows),
        num_cut_tokens=sum(row.num_cut for row in rows),
        longest=max((len(row.input_ids) for row in rows), default=0),
    )


def _tokenize_conversations(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[TokenizedExample]:
    tokenized, too_long = [], []
    for index, row in enumerate(examples.rows):
        assert isinstance(row, Conversation)
        ids, trained = _tokenize_conversation(row, tokenizer)
        if len(ids) > max_length:
            too_long.append(f"{row.origin}: {len(ids):,} tokens")
        tokenized.append(TokenizedExample(tuple(ids), tuple(trained), None, 0, index))
    if too_long:
        shown = "\n  ".join(too_long[:20])
        raise InputError(
            f"{len(too_long):,} of {len(tokenized):,} rows are longer than {max_length:,} tokens and an answer is "
            f"never cut silently. Raise --max-length, or shorten these rows:\n  {shown}"
        )
    return tokenized


def _tokenize_conversation(row: Conversation, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    trained: list[bool] = []
    _refuse_control_tokens(row.messages, tokenizer, str(row.origin))
    try:
        pieces = list(_pieces(row.messages, tokenizer))
    except InputError as error:
        raise InputError(f"{row.origin}: {error}") from error
    for text, is_answer in pieces:
        piece = _ids(text, tokenizer)
        num_taught = 0
        if is_answer:
            stop = _last_special(piece, tokenizer)
            if stop is None and tokenizer.eos_token_id is not None:
                piece.append(tokenizer.eos_token_id)
                stop = len(piece) - 1
            num_taught = len(piece) if stop is None else stop + 1
        ids += piece
        trained += [place < num_taught for place in range(len(piece))]
    return ids, trained


def _pieces(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, open_end: bool = False
) -> Iterator[tuple[str, bool]]:
    """(text, is answer) in order; the texts concatenated are the rendered conversation."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    done = ""
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before = _render(turns[:number], tokenizer, open_end=True)
        after = _render(turns[: number + 1], tokenizer)
        if not before.startswith(done) or not after.startswith(before):
            raise InputError(
                f"the chat template rewrites what stands before turn {number + 1}, so training would not match "
                "inference. Use a template that only appends (tokenizer.chat_template)"
            )
        yield before[len(done) :], False
        yield after[len(before) :], True
        done = after
    if open_end:
        yield _render(turns, tokenizer, open_end=True)[len(done) :], False


def _render(turns: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, open_end: bool = False) -> str:
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_end))
    except Exception as error:  # jinja raises what the template's author chose
        raise InputError(f"the chat template refuses this conversation: {error}") from error


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _last_special(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int | None:
    special = set(tokenizer.all_special_ids)
    return next((place for place in reversed(range(len(ids))) if ids[place] in special), None)


def _refuse_control_tokens(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Text that holds a control token would end turns or start new ones."""
    for message in messages:
        found = next((token for token in tokenizer.all_special_tokens if token in message.content), None)
        if found is not None:
            raise InputError(
                f"{where}: the {message.role}'s text holds the control token {found}, which would be read as one. "
                "Remove it or write it differently"
            )
