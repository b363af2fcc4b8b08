"""Solved training rows shown before a question: chosen at random or by likeness, and as many as the model can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from tunesmith.records import Conversation, Examples, LabelledText, Message
from tunesmith.terminal import say

# A question and its answer; of each test row, those that are shown before it.
Pair = tuple[str, str]
Shown = Sequence[Sequence[Pair]]

NUM_SHOWN = 4


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


def write_question(question: str, shown: Sequence[Pair], asks: str, answers: str) -> str:
    """`asks` and `answers` name the two, for example "Text" and "Label"."""
    return "".join(f"{asks}: {one}\n{answers}: {other}\n\n" for one, other in shown) + f"{asks}: {question}\n{answers}:"


def show_before(row: Conversation, shown: Sequence[Pair]) -> Conversation:
    """The conversation with its last question behind the demonstrations; as it was where there are none."""
    if not shown:
        return row
    text = write_question(row.messages[-2].content, shown, "Question", "Answer")
    asked: Message = replace(row.messages[-2], content=text)
    return replace(row, messages=(*row.messages[:-2], asked, row.messages[-1]))


def fit_shown(shown: Shown, fits: Callable[[int, Sequence[Pair]], bool]) -> list[Sequence[Pair]]:
    """Fewer demonstrations, the first ones left out, where row `index` with them would not fit; said aloud."""
    kept = [
        next(few for few in (pairs[start:] for start in range(len(pairs) + 1)) if not few or fits(index, few))
        for index, pairs in enumerate(shown)
    ]
    cut = sum(len(few) < len(all_of) for few, all_of in zip(kept, shown, strict=True))
    if cut:
        say(f"{cut} of {len(kept)} questions have fewer demonstrations: the model reads no more", style="yellow")
    return kept
