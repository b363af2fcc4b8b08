"""The training signal, proved before the first step: what is trained, what is only read, and where it is broken."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import nlargest
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from tunesmith.data.ids import stop_token_ids
from tunesmith.data.render import takes_system
from tunesmith.data.sides import find_sides
from tunesmith.data.tokens import Signal, TokenRows
from tunesmith.data.windows import find_windows
from tunesmith.errors import InputError
from tunesmith.records import JUDGED, Conversation, Examples, SpanQuestion

SHOWN = 20
LONGEST_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found in tokenized rows. Rows are named by their origin.

    num_stopped    rows whose last trained token is one that ends an answer
    num_left_out   rows that were too long and left out
    padding        share of a padded batch of PADDED_BATCH rows in this order that would hold no token
    note           what else was done to the rows, empty when nothing
    """

    signal: Signal
    num_stopped: int
    idle: tuple[str, ...]
    num_idle: int
    doubled: tuple[str, ...]
    longest: tuple[tuple[str, int], ...]
    num_left_out: int
    padding: float
    note: str = ""
    PADDED_BATCH: ClassVar[int] = 16

    def __str__(self) -> str:
        text = str(self.signal)
        if self.signal.num_trained:
            text += f"; stop token trained in {self.num_stopped:,} of {self.signal.num_rows:,} rows"
        if self.num_left_out:
            text += f"; {self.num_left_out:,} rows too long, left out"
        return f"{text}; {self.note}" if self.note else text


def prove(rows: TokenRows, examples: Examples, tokenizer: PreTrainedTokenizerBase) -> Proof:
    """Looks at every row.

    Raises:
        InputError: the tokenizer's template cannot be followed.
    """
    is_written = JUDGED[examples.task] == "answers"
    stops = set(stop_token_ids(tokenizer)) if is_written else set()
    begin = tokenizer.bos_token_id
    lengths, padded, tokens = rows.lengths, 0, 0
    idle = [index for index, taught in enumerate(rows.taught) if not taught] if is_written else []
    pairs = enumerate(zip(rows.firsts, rows.seconds, strict=True))
    doubled = [index for index, pair in pairs if begin is not None and pair == (begin, begin)]

    def name(index: int) -> str:
        return str(examples.rows[rows.examples[index]].origin)

    for first in range(0, len(lengths), Proof.PADDED_BATCH):
        batch = lengths[first : first + Proof.PADDED_BATCH]
        padded, tokens = padded + max(batch) * len(batch), tokens + sum(batch)
    longest = nlargest(LONGEST_SHOWN, range(len(lengths)), key=lambda index: lengths[index])
    return Proof(
        signal=rows.signal,
        num_stopped=sum(last in stops for last in rows.lasts),
        idle=tuple(map(name, idle[:SHOWN])),
        num_idle=len(idle),
        doubled=tuple(map(name, doubled[:SHOWN])),
        longest=tuple((name(index), lengths[index]) for index in longest),
        num_left_out=len(examples.rows) - len(set(rows.examples)),
        padding=1 - tokens / padded if padded else 0.0,
        note=_note(examples, tokenizer, max(rows.taught, default=0)),
    )


def _note(examples: Examples, tokenizer: PreTrainedTokenizerBase, most_taught: int) -> str:
    first = examples.rows[0]
    longest = find_windows(tokenizer).max_answer_length
    if isinstance(first, SpanQuestion) and most_taught > longest:
        return (
            f"the longest answer has {most_taught:,} tokens, of which at most {longest:,} are found: max_answer_length"
        )
    sides = find_sides(tokenizer)
    if isinstance(first, Conversation) and sides is not None:
        before = f", after '{sides.prefix}'" if sides.prefix else ""
        return f"the last answer of a row is the target, all before it the source{before}"
    has_system = isinstance(first, Conversation) and first.messages[0].role == "system"
    if has_system and not takes_system(tokenizer):
        return "the chat template has no system role: its text opens the first question"
    return ""


def refuse_broken(proof: Proof) -> None:
    """A row that teaches nothing is a mistake in the data or the template, never a choice.

    Raises:
        InputError: rows without a trained token, with a doubled beginning, or answers that nothing ends.
    """
    total = proof.signal.num_rows
    if proof.num_idle:
        raise InputError(
            f"{proof.num_idle:,} of {total:,} rows have no token to train: {', '.join(proof.idle)}. "
            "`tunesmith data tokens` shows them; mend the rows or the chat template"
        )
    if proof.doubled:
        raise InputError(
            f"rows begin with the beginning-of-text token twice: {', '.join(proof.doubled)}. "
            "The chat template writes it and so does something else; take it out of one (tokenizer.chat_template)"
        )
    if proof.signal.num_trained and proof.num_stopped < total:
        raise InputError(
            f"the stop token is trained in {proof.num_stopped:,} of {total:,} rows, so answers would not end. "
            "The template must close each answer with a special token, or the tokenizer needs an eos_token"
        )
