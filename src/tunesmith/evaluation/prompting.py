"""What is put to a model that was not tuned: a wording, and what stands before each question: solved training rows, or
passages to read; as much of it as the model can read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from tunesmith.records import Conversation, Examples, LabelledText, Message
from tunesmith.terminal import say

# A question and its answer.
Pair = tuple[str, str]
# What question and answer are called where they are written out.
Titles = tuple[str, str]
TEXT_AND_LABEL: Titles = ("Text", "Label")
QUESTION_AND_ANSWER: Titles = ("Question", "Answer")

NUM_SHOWN = 4

# Instructions before a question, the plainest first; {names} are the class names.
WORDINGS: Mapping[str, tuple[str, ...]] = {
    "classification": (
        "Which of these labels fits the text best: {names}?\n",
        "Classify the text below. Possible labels: {names}. Say the label and nothing else.\n\n",
        "Somebody who reads carefully has sorted texts under {names}.\n\n",
    ),
    "generation": (
        "",
        "Answer in one or two sentences.\n\n",
        "You know this field well. Answer the question below briefly, with facts.\n\n",
    ),
}


def write_question(question: str, shown: Sequence[Pair], titles: Titles) -> str:
    """The question behind solved ones."""
    asks, answers = titles
    return "".join(f"{asks}: {one}\n{answers}: {other}\n\n" for one, other in shown) + f"{asks}: {question}\n{answers}:"


def write_reading(question: str, passages: Sequence[str], titles: Titles) -> str:
    """The question behind passages that may hold the answer, in the order given."""
    texts = "".join(f"{passage.strip()}\n\n" for passage in passages)
    return f"Use what helps of these texts.\n\n{texts}{write_question(question, (), titles)}"


@dataclass(frozen=True, slots=True)
class Prompting:
    """How rows are put to a decoder.

    wording  an instruction before each question; {names} are the class names
    before   of each row, what stands before its question; empty where nothing does
    write    a question, what stands before it, and the titles of question and answer -> what is asked
    """

    wording: str = ""
    before: Sequence[Sequence[Any]] = ()
    write: Callable[[str, Sequence[Any], Titles], str] = write_question

    def ask_label(self, text: str, before: Sequence[Any], class_names: Sequence[str]) -> Message:
        """The question which of the classes a text has."""
        names = self.wording.replace("{names}", ", ".join(class_names))  # not format: a name may hold braces
        return Message("user", names + self.write(text, before, TEXT_AND_LABEL))

    def ask(self, row: Conversation, before: Sequence[Any]) -> Conversation:
        """The conversation with its last question put so; as it was where there is nothing to add."""
        question = row.messages[-2].content
        written = self.write(question, before, QUESTION_AND_ANSWER) if before else question
        asked = replace(row.messages[-2], content=self.wording + written)
        return replace(row, messages=(*row.messages[:-2], asked, row.messages[-1]))


def solved(examples: Examples) -> list[Pair]:
    """Question and answer of each row: text and class name, or the last two turns of a conversation."""
    labelled = [(row.whole, str(row.target)) for row in examples.rows if isinstance(row, LabelledText)]
    return labelled or [
        (row.messages[-2].content, row.messages[-1].content) for row in examples.rows if isinstance(row, Conversation)
    ]


def draw(train: Examples, num_rows: int, seed: int, count: int = NUM_SHOWN) -> list[list[Pair]]:
    """The same `count` random training rows before every question."""
    known = solved(train)
    chosen = np.random.default_rng(seed).permutation(len(known))[:count]
    return [[known[index] for index in chosen]] * num_rows


def nearest_rows(train: Examples, asked: Examples, count: int = NUM_SHOWN) -> list[list[Pair]]:
    """The `count` training rows most like each question by TF-IDF of word parts, the most similar one last."""
    known = solved(train)
    alike = likeness([question for question, _ in solved(asked)], [question for question, _ in known]).toarray()
    return [[known[index] for index in row[-count:]] for row in alike.argsort(axis=1, kind="stable")]


def likeness(asked: Sequence[str], known: Sequence[str]) -> Any:
    """(asked, known), sparse: cosines of texts by TF-IDF of word parts, whose weights the known texts give."""
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    terms = vectorizer.fit_transform(known)
    return vectorizer.transform(asked) @ terms.T


def fit_before(before: Sequence[Sequence[Any]], fits: Callable[[int, Sequence[Any]], bool]) -> list[Sequence[Any]]:
    """Less before a question, the first left out first, where row `index` with all of it would not fit; said aloud."""
    kept = [
        next(few for few in (given[start:] for start in range(len(given) + 1)) if not few or fits(index, few))
        for index, given in enumerate(before)
    ]
    cut = sum(len(few) < len(all_of) for few, all_of in zip(kept, before, strict=True))
    if cut:
        say(f"{cut} of {len(kept)} questions have less before them: the model reads no more", style="yellow")
    return kept
