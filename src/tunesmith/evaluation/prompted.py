"""The untuned decoder, asked: with the best of some wordings, behind solved training rows, behind passages to read.

What is to be chosen is chosen on validation rows, so that the test rows are answered once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluation.answers import agreement
from tunesmith.evaluation.predictions import Predictions
from tunesmith.evaluation.prompting import WORDINGS, Prompting, draw, nearest_rows, solved, write_reading
from tunesmith.evaluation.retrieval import best_passages, find_passages, passages_of, read_passages
from tunesmith.models.generate import Answer
from tunesmith.records import Examples, Split

# Validation rows by which a prompt is chosen; how many rows may be shown, and how often they are drawn.
NUM_CHOOSING = 50
COUNTS = (1, 4, 8, 16)
DRAWS = 3
# Answers of which the best is taken, and how they are drawn (Wang et al. 2023, arXiv 2203.11171, section 3.1).
NUM_ANSWERS, TEMPERATURE = 8, 0.7


class Ask(Protocol):
    """Rows and how they are put to the untuned decoder -> what it says, without answers where these are not needed."""

    def __call__(self, examples: Examples, prompting: Prompting, with_answers: bool = True) -> Predictions: ...


class Draw(Protocol):
    """Rows and how they are put to the untuned decoder -> so many answers to each of those that are answered, and the
    tokens that were read for them."""

    def __call__(
        self, examples: Examples, prompting: Prompting, num_answers: int, temperature: float
    ) -> tuple[list[list[Answer]], list[int]]: ...


@dataclass(frozen=True, slots=True)
class Resources:
    """What a baseline may ask of the pretrained model; each is made only when called.

    embed      texts, or pairs of texts -> (texts, D) frozen embeddings
    ask        rows, put to the untuned decoder
    seed       of what is drawn at random
    documents  a folder of texts to find answers in; the training rows where there is none
    draw       several answers to rows, drawn at random
    """

    embed: Callable[[list[Any]], NDArray[np.floating[Any]]]
    ask: Ask
    seed: int = 0
    documents: Path | None = None
    draw: Draw | None = None


def predict_zero_shot(parts: Split, resources: Resources) -> Predictions:
    """The class whose name is likeliest as an answer, or the answer, to the best of three wordings."""
    wording, note = _best_wording(parts, resources)
    return replace(resources.ask(parts.test, Prompting(wording)), note=note)


def _best_wording(parts: Split, resources: Resources) -> tuple[str, str]:
    """And how it was chosen."""
    wordings = WORDINGS[parts.test.task]
    some = _some(parts.validation)
    losses = [_loss(resources.ask(some, Prompting(wording), with_answers=False)) for wording in wordings]
    best = int(np.argmin(losses))
    others = ", ".join(f"{loss:.3f}" for loss in losses)
    said = f'"{wordings[best].strip()}"' if wordings[best] else "the question alone"
    return wordings[best], f"{said}: best of {len(wordings)} wordings by {_measure(parts, some)} ({others})"


def predict_best_of(parts: Split, resources: Resources) -> Predictions:
    """Of several drawn answers the one most like the others, which needs no label: minimum Bayes risk, and for short
    answers much the same as what most of them say (self-consistency). Of equally good ones the one that the model holds
    for the likeliest, by the mean log-probability of its tokens."""
    assert resources.draw is not None
    wording, note = _best_wording(parts, resources)
    started = time.monotonic()
    drawn, read = resources.draw(parts.test, Prompting(wording), NUM_ANSWERS, TEMPERATURE)
    made = [choose_answer(answers) for answers in drawn]
    seconds = time.monotonic() - started
    written = np.mean([sum(len(answer.ids) for answer in answers) for answers in drawn]) if drawn else 0
    targets = [answer for _, answer in solved(parts.test)]
    silent = [None] * (len(targets) - len(made))
    return Predictions(
        "generation",
        targets,
        [*(answer.text for answer in made), *silent],
        finished=[*(answer.finished for answer in made), *silent],
        prompt_tokens=read,
        seconds=seconds,
        note=f"of {NUM_ANSWERS} answers, {written:.0f} tokens in all, that most like the others; {note}",
    )


def choose_answer(answers: Sequence[Answer]) -> Answer:
    """The one most like the others by ROUGE-L; of equal ones the likeliest."""
    likeness = agreement([answer.text for answer in answers])
    return answers[max(range(len(answers)), key=lambda at: (likeness[at], np.mean(answers[at].logprobs)))]


def predict_few_shot(parts: Split, resources: Resources) -> Predictions:
    """Behind random training rows with their answers, the same before every question; as many as serve best of 1, 4, 8
    and 16 (Brown et al. 2020, arXiv 2005.14165)."""
    some, wording = _some(parts.validation), WORDINGS[parts.test.task][0]

    def loss(count: int, seed: int) -> float:
        shown = Prompting(wording, draw(parts.train, len(some.rows), seed, count))
        return _loss(resources.ask(some, shown, with_answers=False))

    counts = [count for count in COUNTS if count <= len(parts.train.rows)] or [len(parts.train.rows)]
    losses = {count: [loss(count, resources.seed + turn) for turn in range(DRAWS)] for count in counts}
    best = min(counts, key=lambda count: np.mean(losses[count]))
    found = resources.ask(parts.test, Prompting(wording, draw(parts.train, len(parts.test.rows), resources.seed, best)))
    tried = ", ".join(f"{count}: {np.mean(of):.3f} ±{np.std(of, ddof=1):.3f}" for count, of in losses.items())
    return replace(found, note=f"{best} rows shown, by {_measure(parts, some)}, mean of {DRAWS} draws ({tried})")


def predict_few_shot_nearest(parts: Split, resources: Resources) -> Predictions:
    """Behind the four training rows most like the question (Liu et al. 2021, arXiv 2101.06804)."""
    shown = nearest_rows(parts.train, parts.test)
    return resources.ask(parts.test, Prompting(WORDINGS[parts.test.task][0], shown))


def predict_rag(parts: Split, resources: Resources) -> Predictions:
    """Behind the three passages that BM25 finds for the question: retrieval-augmented generation."""
    return resources.ask(parts.test, reading(found_passages(parts, resources.documents)))


def predict_rag_oracle(parts: Split, resources: Resources) -> Predictions:
    """Behind the passage most like the right answer: what better search could bring at most."""
    answers = [answer for _, answer in solved(parts.test)]
    return resources.ask(parts.test, reading(best_passages(_passages(parts, resources.documents), answers)))


def reading(passages: Sequence[Sequence[str]]) -> Prompting:
    """Questions behind passages."""
    return Prompting("", passages, write_reading)


def found_passages(parts: Split, documents: Path | None) -> list[list[str]]:
    """What is found for each test question in the documents, or in the training rows where there are none."""
    return find_passages(_passages(parts, documents), [question for question, _ in solved(parts.test)])


def _passages(parts: Split, documents: Path | None) -> list[str]:
    return passages_of(parts.train) if documents is None else read_passages(documents)


def _some(validation: Examples) -> Examples:
    return replace(validation, rows=validation.rows[:NUM_CHOOSING], fingerprint="")


def _loss(found: Predictions) -> float:
    """Lower is better: the share of wrong classes, or nats per token of the right answers."""
    if found.task == "classification":
        return float((found.outputs != found.targets).mean()) if len(found) else 0.0
    assert found.losses is not None
    assert found.num_tokens is not None
    return float(found.losses.sum() / max(found.num_tokens.sum(), 1))


def _measure(parts: Split, some: Examples) -> str:
    what = "share of errors" if parts.test.task == "classification" else "nats a token"
    return f"{what} on {len(some.rows)} validation rows"
