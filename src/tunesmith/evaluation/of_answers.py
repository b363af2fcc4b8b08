"""Measures of answers. Each takes the predictions and the rows that count; rows without an answer are left out."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from tunesmith.evaluation.predictions import Floats, Indices, Predictions


def mean_loss(predictions: Predictions, rows: Indices) -> float:
    """Nats per judged token; a long answer weighs as much as it is long."""
    assert predictions.losses is not None
    assert predictions.num_tokens is not None
    return float(predictions.losses[rows].sum() / predictions.num_tokens[rows].sum())


def perplexity(predictions: Predictions, rows: Indices) -> float:
    with np.errstate(over="ignore"):  # a hopeless model has infinite perplexity
        return float(np.exp(mean_loss(predictions, rows)))


def bits_per_byte(predictions: Predictions, rows: Indices) -> float:
    """Of the right answers in UTF-8: a loss that models with other tokens can be compared by."""
    assert predictions.losses is not None
    num_bytes = sum(len(predictions.targets[row].encode()) for row in rows)
    return float(predictions.losses[rows].sum() / math.log(2) / max(1, num_bytes))


def mean_of(name: str) -> Callable[[Predictions, Indices], float]:
    """The mean of one of the numbers in `Answers`."""

    def mean(predictions: Predictions, rows: Indices) -> float:
        values: Floats = getattr(predictions.answers, name)[rows]
        answered = values[~np.isnan(values)]
        return float(answered.mean()) if len(answered) else float("nan")

    return mean


def bleu(predictions: Predictions, rows: Indices) -> float:
    """Corpus BLEU as sacrebleu has it: 13a tokens, case kept, exponential smoothing (Post 2018, arXiv 1804.08771)."""
    correct, total, lengths = (part[rows].sum(0) for part in predictions.answers.bleu)
    made = BLEU.compute_bleu(correct.tolist(), total.tolist(), int(lengths[0]), int(lengths[1]), smooth_method="exp")
    return float(made.score) if lengths[1] else float("nan")


def length_ratio(predictions: Predictions, rows: Indices) -> float:
    """Words of all answers for each word of what would have been right."""
    said, true = predictions.answers.words[rows].sum(0)
    return float(said / true) if true else float("nan")


def unfinished(predictions: Predictions, rows: Indices) -> float:
    """Share of answers that were cut off at the most tokens they could have."""
    assert predictions.finished is not None
    ended = [predictions.finished[row] for row in rows if predictions.finished[row] is not None]
    return 1 - sum(map(bool, ended)) / len(ended) if ended else float("nan")


def exact_span(predictions: Predictions, rows: Indices) -> float:
    """Share of questions whose answer is a right one, letter case, punctuation and articles aside."""
    return float(predictions.by_question[rows, 0].mean())


def span_f1(predictions: Predictions, rows: Indices) -> float:
    """Mean over questions of the F1 of words with the right answer that is most like; of no answer 1 or 0."""
    return float(predictions.by_question[rows, 1].mean())


def answerable_f1(predictions: Predictions, rows: Indices) -> float:
    """The same of the questions that have an answer."""
    _, f1, has_answer = predictions.by_question[rows].T
    return float(f1[has_answer > 0].mean()) if has_answer.any() else float("nan")


def unanswerable_accuracy(predictions: Predictions, rows: Indices) -> float:
    """Share of the questions without an answer that get none."""
    exact, _, has_answer = predictions.by_question[rows].T
    return float(exact[has_answer == 0].mean()) if not has_answer.all() else float("nan")


def has_unanswerable(predictions: Predictions) -> bool:
    return not all(predictions.targets)


def has_losses(predictions: Predictions) -> bool:
    return predictions.losses is not None and predictions.num_tokens is not None


def has_answers(predictions: Predictions) -> bool:
    return any(answer is not None for answer in predictions.outputs)


def has_ends(predictions: Predictions) -> bool:
    return predictions.finished is not None and any(ended is not None for ended in predictions.finished)
