"""What the logits of tasks that judge mean: as predictions to be scored, and as a person reads them.

READINGS is the table, one row a task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

from tunesmith.data.tokens import TokenRows
from tunesmith.errors import InputError
from tunesmith.evaluation.predictions import Predictions
from tunesmith.evaluation.spans import Found, find_answers
from tunesmith.records import Example, Examples, LabelledText, Message, Origin, Ranking, SpanQuestion, TaggedWords, Task
from tunesmith.train.validate import RowOutputs

Names = Sequence[str]
# A text, two texts that are judged together (or a question and a passage), or the words of a text.
Given = str | tuple[str, str] | Sequence[str]


@dataclass(frozen=True, slots=True)
class Reading:
    """One row.

    score   rows, ids and outputs -> what was said and what would have been right
    row     what is given, class names -> a row to be judged, its target of no meaning
    tell    logits of one row, (C,) or (words, C), or what was found in a passage; class names -> what is said, in
            JSON's types
    show    an entry of `Predictions.outputs`, class names -> the same in one line
    """

    score: Callable[[Examples, TokenRows, RowOutputs], Predictions]
    row: Callable[[Given, Names, Origin], Example]
    tell: Callable[[Any, Names], dict[str, Any]]
    show: Callable[[Any, Names], str]


def _score_class(_: Examples, rows: TokenRows, outputs: RowOutputs) -> Predictions:
    chances = softmax(outputs.logits.astype(float), axis=1)
    said = outputs.logits.argmax(1)
    return Predictions("classification", _targets(rows), said, outputs.losses, probabilities=chances)


def _score_labels(_: Examples, rows: TokenRows, outputs: RowOutputs) -> Predictions:
    return Predictions("multi-label", _targets(rows), outputs.logits > 0, outputs.losses)


def _score_number(_: Examples, rows: TokenRows, outputs: RowOutputs) -> Predictions:
    return Predictions("regression", _targets(rows), outputs.logits[:, 0].astype(float), outputs.losses)


def _score_tags(examples: Examples, rows: TokenRows, outputs: RowOutputs) -> Predictions:
    """Words that were cut off have no tag, and count as wrong."""
    said = by_row(outputs, words=True)
    names = examples.class_names
    targets, tags = [], []
    for place, logits_NC in zip(rows.examples, said, strict=True):
        row = examples.rows[place]
        assert isinstance(row, TaggedWords)
        found = [names[tag] for tag in logits_NC.argmax(1)]
        targets.append(row.tags)
        tags.append((*found, *[None] * (len(row.words) - len(found))))
    return Predictions("token-classification", targets, tags, outputs.losses, outputs.num_judged)


def _score_ranking(examples: Examples, rows: TokenRows, outputs: RowOutputs) -> Predictions:
    ranks = [row.ranks for row in (examples.rows[place] for place in rows.examples) if isinstance(row, Ranking)]
    rewards = np.split(outputs.logits[:, 0].astype(float), np.cumsum([len(one) for one in ranks])[:-1])
    return Predictions("ranking", ranks, [one.tolist() for one in rewards], outputs.losses)


def _score_spans(examples: Examples, rows: TokenRows, outputs: RowOutputs) -> Predictions:
    found = find_answers(examples, rows, outputs, examples.class_names)
    kept, of_row = np.unique(np.array(rows.examples), return_inverse=True)
    asked = [row for row in (examples.rows[place] for place in kept) if isinstance(row, SpanQuestion)]
    return Predictions(
        "extractive-qa",
        [row.answers for row in asked],
        [one.text for one in found],
        np.bincount(of_row, outputs.losses).astype(float),
        np.bincount(of_row, outputs.num_judged).astype(int),
    )


def _passage_row(given: Given, _: Names, origin: Origin) -> Example:
    if isinstance(given, str) or len(given) != 2:
        raise InputError(f"{origin}: an answer is found for a pair of texts: a question and a passage")
    return SpanQuestion(given[0], given[1], (), (), origin)


def _answered_row(given: Given, _: Names, origin: Origin) -> Example:
    """A prompt and the answer to it."""
    if isinstance(given, str) or len(given) != 2:
        raise InputError(f"{origin}: a reward model judges a pair of texts: a prompt and an answer")
    return Ranking((Message("user", given[0]),), (given[1],), (1,), origin)


def _targets(rows: TokenRows) -> np.ndarray:
    return np.array([row.target for row in rows])


def by_row(outputs: RowOutputs, words: bool) -> list[np.ndarray]:
    """The logits of each row: (C,), or (words, C)."""
    return np.split(outputs.logits, np.cumsum(outputs.num_judged)[:-1]) if words else list(outputs.logits)


def _judged_row(target: Callable[[Names], Any]) -> Callable[[Given, Names, Origin], Example]:
    def make(given: Given, names: Names, origin: Origin) -> Example:
        if isinstance(given, str):
            return LabelledText(given, target(names), origin)
        if len(given) != 2:
            raise InputError(f"{origin}: {len(given)} texts are given, expected one or a pair")
        return LabelledText(given[0], target(names), origin, given[1])

    return make


def _words_row(given: Given, names: Names, origin: Origin) -> Example:
    """A text is divided into words where it has blanks."""
    words = tuple(given.split() if isinstance(given, str) else given)
    return TaggedWords(words, (names[0],) * len(words), origin)


def _tell_class(logits_C: np.ndarray, names: Names) -> dict[str, Any]:
    odds_C = np.exp(logits_C - logits_C.max())
    best = int(odds_C.argmax())
    return {"label": names[best], "probability": float(odds_C[best] / odds_C.sum())}


def _tell_labels(logits_C: np.ndarray, names: Names) -> dict[str, Any]:
    """Every class with its probability; those above one half are the labels."""
    chances = (1 / (1 + np.exp(-logits_C.astype(float)))).tolist()
    held = [name for name, logit in zip(names, logits_C, strict=True) if logit > 0]
    return {"labels": held, "probabilities": dict(zip(names, chances, strict=True))}


def _tell_span(found: Found, _: Names) -> dict[str, Any]:
    place = {"start": found.start, "end": found.start + len(found.text)} if found.text else {}
    return {"answer": found.text, **place, "margin": found.margin}


def _tell_tags(logits_NC: np.ndarray, names: Names) -> dict[str, Any]:
    return {"tags": [names[tag] for tag in logits_NC.argmax(1)]}


def _show_labels(said: Sequence[bool], names: Names) -> str:
    return ", ".join(name for name, holds in zip(names, said, strict=True) if holds) or "no class"


READINGS: Mapping[Task, Reading] = {
    "classification": Reading(
        _score_class,
        _judged_row(lambda names: names[0]),
        _tell_class,
        lambda said, names: names[said],
    ),
    "multi-label": Reading(_score_labels, _judged_row(lambda names: ()), _tell_labels, _show_labels),
    "regression": Reading(
        _score_number,
        _judged_row(lambda names: 0.0),
        lambda logits, names: {"score": float(logits[0])},
        lambda said, names: f"{said:.2f}",
    ),
    "ranking": Reading(
        _score_ranking,
        _answered_row,
        lambda logits, names: {"reward": float(logits[0])},
        lambda said, names: ", ".join(f"{reward:.2f}" for reward in said),
    ),
    "extractive-qa": Reading(_score_spans, _passage_row, _tell_span, lambda said, names: said or "no answer"),
    "token-classification": Reading(
        _score_tags, _words_row, _tell_tags, lambda said, names: " ".join(tag or "-" for tag in said)
    ),
}
