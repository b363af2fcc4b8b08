"""What crosses a stage's border, with shapes and units. Imports nothing of ours.

Shape letters: T tokens in a packed sequence, S segments (rows) packed into it, N places that are
judged by the loss, P virtual (prompt) tokens put before each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # records are read by commands that must start quickly
    import torch

Task = Literal[
    "classification",
    "regression",
    "generation",
    "multi-label",
    "token-classification",
    "extractive-qa",
    "ranking",
    "preference",
    "judgement",
    "text",
]
# What a run can be trained for, and what its loss is taken of: rows, words (each at its first token), where an answer
# begins and ends in a passage, the tokens of answers, or a prompt's answers set against each other. The other tasks are
# read and checked.
JUDGED: Mapping[Task, Literal["rows", "words", "spans", "answers", "rankings"]] = {
    "classification": "rows",
    "multi-label": "rows",
    "regression": "rows",
    "token-classification": "words",
    "extractive-qa": "spans",
    "generation": "answers",
    "ranking": "rankings",
    "preference": "rankings",
    "text": "answers",
}
# Those that data is for. Preference is what `align` makes of rankings: a model is to write the better answers; text is
# for `pretrain`, of which every token is one to be written, or found again behind a mask.
TASKS: tuple[Task, ...] = tuple(task for task in JUDGED if task not in ("preference", "text"))

# A class id, a score, whether each class holds (multi-label), the tag id of each judged word, the first and the last
# place of an answer in a passage, the rank of each answer, or what a preference is measured by (`train/preference.py`);
# None for answers.
Target = int | float | tuple[int, ...] | tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row was read: the file and the physical line (1-based) on which the row begins."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in the source: nothing converted, nothing lost."""

    fields: Mapping[str, object]
    origin: Origin


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text with its class name (classification), its score (regression) or all its class names (multi-label).

    `pair` is the second text where two are judged together, empty else.
    """

    text: str
    target: str | float | tuple[str, ...]
    origin: Origin
    pair: str = ""

    @property
    def whole(self) -> str:
        """All that is read, for whoever takes no pairs."""
        return f"{self.text}\n{self.pair}" if self.pair else self.text


@dataclass(frozen=True, slots=True)
class TaggedWords:
    """Words with one tag each (token classification)."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    origin: Origin


# The one class of extractive question answering: there where the data has questions that their passage does not answer.
UNANSWERABLE = "unanswerable"


@dataclass(frozen=True, slots=True)
class SpanQuestion:
    """A question, and the passage in which its answer stands (extractive question answering).

    `answers` are all that would be right, the first is the one that is taught; none where the passage does not say.
    `starts` has the character of `context`, from 0 on, at which each of them begins.
    """

    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is "system", "user", "assistant" or "tool". `more` is a JSON object with what else the turn
    has for the chat template (tool_calls, tool_call_id, name), empty when nothing."""

    role: str
    content: str
    more: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order; the last one is the assistant's and every assistant turn is trained.

    `tools` is a JSON list of the functions that may be called, as templates take it; empty when there are none.
    """

    messages: tuple[Message, ...]
    origin: Origin
    tools: str = ""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Answers to one prompt, best first. `ranks` rise from 1; equal ranks are a tie, and a gap is a stronger
    preference. `labeler` says whose opinion it is, empty where that is not known."""

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    ranks: tuple[int, ...]
    origin: Origin
    labeler: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """An answer that was found good or bad by itself."""

    prompt: tuple[Message, ...]
    answer: str
    is_good: bool
    origin: Origin


@dataclass(frozen=True, slots=True)
class PlainText:
    """A text to go on with, word by word."""

    text: str
    origin: Origin


Example = LabelledText | TaggedWords | SpanQuestion | Conversation | Ranking | Judgement | PlainText


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of one task.

    `rows` may lie in a file: a row is made when it is asked for. `class_names` is sorted and gives the
    class ids (empty unless the task has classes). `recognised` says in words which format was found and
    why. `fingerprint` is a sha256 over the rows' content. `groups` and `times` say, where they were asked
    for, what each row belongs to and when it was made.
    """

    task: Task
    rows: Sequence[Example]
    class_names: tuple[str, ...]
    recognised: str
    fingerprint: str
    groups: Sequence[str] = ()
    times: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """Three disjoint parts of one data set; no text stands in two of them, nor nearly the same one.

    `note` says how it was divided, `checked` what was found in the data before.
    """

    train: Examples
    validation: Examples
    test: Examples
    note: str = ""
    checked: str = ""


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """A row as ids, and which of them are trained.

    `trained[t]` is True where the model is taught to produce `input_ids[t]` from the tokens before
    it, or, for token classification, where a word begins whose tag is to be found, or, for extractive question
    answering, where the answer stands. Tasks that judge whole rows train no token. `num_cut` counts tokens that did not
    fit `max_length`. `second_at` is the place from which on tokens are of type 1, where the tokenizer tells the texts
    of a pair apart so; 0 when none is.
    `start` is there for encoder-decoders alone: the id that their decoder starts with. What is not trained is
    then the source, what is trained, behind it, the target.
    `answers` is there for rankings alone: the places where the answers to one prompt begin, which stand one behind the
    other, each up to and with its stop token. What is before the first is the prompt, that every one of them follows.
    `offsets` is there for extractive question answering alone, where a row is a window of a passage: of each token in
    turn where its characters begin and end in the whole passage, 0 and 0 outside of it. A window without its answer has
    the target (0, 0): its first token says so.
    """

    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    target: Target
    num_cut: int
    row: int
    second_at: int = 0
    start: int | None = None
    answers: tuple[int, ...] = ()
    offsets: tuple[int, ...] = ()

    @property
    def num_trained(self) -> int:
        return sum(self.trained)


@dataclass(frozen=True, slots=True)
class PackedSource:
    """What the encoder of an encoder-decoder reads: the rows of a PackedBatch, in its order, end to end.

    input_ids   (Z,)  int64
    position_ids(Z,)  int64; each row starts again at 0
    lengths           tokens per row, sum = Z
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    lengths: tuple[int, ...]

    def to(self, device: torch.device) -> PackedSource:
        return PackedSource(self.input_ids.to(device), self.position_ids.to(device), self.lengths)


@dataclass(frozen=True, slots=True)
class PackedAnswers:
    """The answers to the prompts of a PackedBatch, those of its first row first.

    tokens  (N,)  int64; the tokens of all answers, judged at `predict_from`
    owners  (N,)  int64; the answer that each belongs to, counted through the batch
    counts        answers of each row
    """

    tokens: torch.Tensor
    owners: torch.Tensor
    counts: tuple[int, ...]

    def to(self, device: torch.device) -> PackedAnswers:
        return PackedAnswers(self.tokens.to(device), self.owners.to(device), self.counts)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows laid end to end in one sequence, without padding. A beginning that rows share stands there once.

    input_ids   (T,)  int64; virtual tokens are place-holders with id 0
    position_ids(T,)  int64; each row starts again at 0, what follows a shared beginning goes on from it
    lengths           tokens per segment, virtual tokens included, sum = T
    parents           for each segment the one before it that it goes on from, -1 for a row's beginning;
                      a segment without children ends a row, and the rows' ends stand in the order of `rows`
    predict_from(N,)  int64; generation: places whose next token is judged, token classification: places that are
                      judged themselves, extractive QA: all places of all rows. Else (S,) first places of rows
    targets     (N,)  int64 token or class ids, float32 scores; multi-label (S, C) float32, 1 where a class holds;
                      rankings (S, K): the target of each row, filled up with zeros; extractive QA (S, 3) int64: first
                      and last place of the answer within its row, and how many places the row has
    rows              index of each packed row in its data set
    num_virtual       P
    token_types (T,)  int64, 1 in the second text of a pair; None when there is none
    source            of encoder-decoders, whose decoder reads all else: one row of it for each segment
    answers           of rankings: each chain is an answer behind its prompt, and a row has several
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    predict_from: torch.Tensor
    targets: torch.Tensor
    rows: tuple[int, ...]
    num_virtual: int = 0
    token_types: torch.Tensor | None = None
    source: PackedSource | None = None
    answers: PackedAnswers | None = None

    @property
    def chains(self) -> list[tuple[int, ...]]:
        """The segments of each row, in order: its own, or a shared beginning and its own."""
        inner = {parent for parent in self.parents if parent >= 0}
        ends = [segment for segment in range(len(self.lengths)) if segment not in inner]
        return [(end,) if self.parents[end] < 0 else (self.parents[end], end) for end in ends]

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, those of a shared beginning once for each row; virtual ones not counted."""
        of_source = 0 if self.source is None else sum(self.source.lengths)
        rows = sum(sum(self.lengths[segment] for segment in chain) - self.num_virtual for chain in self.chains)
        return of_source + rows

    def to(self, device: torch.device) -> PackedBatch:
        return PackedBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.lengths,
            self.parents,
            self.predict_from.to(device),
            self.targets.to(device),
            self.rows,
            self.num_virtual,
            None if self.token_types is None else self.token_types.to(device),
            None if self.source is None else self.source.to(device),
            None if self.answers is None else self.answers.to(device),
        )
