"""Metrics with bootstrap intervals, and the difference between two systems on the same rows.

METRICS is the table. A metric sees rows through an index array, so a bootstrap resample is just other indices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from tunesmith.errors import InputError, nearest
from tunesmith.evaluation import of_answers as answers
from tunesmith.evaluation import of_classes as classes
from tunesmith.evaluation.intervals import RESAMPLES, interval_of, resampled
from tunesmith.evaluation.predictions import Floats, Indices, Predictions
from tunesmith.outcomes import Interval, Score
from tunesmith.records import Task


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of METRICS. `function` gives the value over the rows at some indices; `applies` says
    whether the predictions hold what it needs."""

    name: str
    higher_is_better: bool
    function: Callable[[Predictions, Indices], float]
    applies: Callable[[Predictions], bool] = lambda predictions: True


def mean_absolute_error(predictions: Predictions, rows: Indices) -> float:
    return float(np.abs(predictions.outputs[rows] - predictions.targets[rows]).mean())


def root_mean_squared_error(predictions: Predictions, rows: Indices) -> float:
    return float(np.sqrt(np.square(predictions.outputs[rows] - predictions.targets[rows]).mean()))


def pearson(predictions: Predictions, rows: Indices) -> float:
    return _correlation(predictions.outputs[rows], predictions.targets[rows])


def spearman(predictions: Predictions, rows: Indices) -> float:
    """Correlation of ranks, equal values sharing their mean rank."""
    return _correlation(rankdata(predictions.outputs[rows]), rankdata(predictions.targets[rows]))


def _correlation(a: Floats, b: Floats) -> float:
    """NaN when one side does not vary."""
    # Not told from the variance: the mean of equal numbers can differ from them in the last bit.
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b) / float(np.sqrt((a @ a) * (b @ b)))


def pair_accuracy(predictions: Predictions, rows: Indices) -> float:
    """Share of pairs whose better answer has the higher reward. NaN where all are tied."""
    right, _, num = predictions.by_pair[rows].sum(0)
    return float(right / num) if num else float("nan")


def pair_loss(predictions: Predictions, rows: Indices) -> float:
    """Mean of -log sigmoid(better - worse) over pairs, in nats."""
    _, loss, num = predictions.by_pair[rows].sum(0)
    return float(loss / num) if num else float("nan")


# The first metric of a task that applies is the one systems are ranked by; the terminal shows the first three.
METRICS: dict[Task, tuple[Metric, ...]] = {
    "classification": (
        Metric("accuracy", True, classes.accuracy),
        Metric("macro_f1", True, classes.macro_f1),
        Metric("mcc", True, classes.mcc),
        Metric("ece", False, classes.calibration_error, classes.has_probabilities),
        Metric("brier", False, classes.brier, classes.has_probabilities),
    ),
    "multi-label": (
        Metric("micro_f1", True, classes.micro_f1),
        Metric("macro_f1", True, classes.macro_f1_of_labels),
        Metric("subset_accuracy", True, classes.subset_accuracy),
    ),
    "token-classification": (
        Metric("entity_f1", True, classes.entity_f1, classes.has_entities),
        Metric("accuracy", True, classes.word_accuracy),
        Metric("entity_precision", True, classes.entity_precision, classes.has_entities),
        Metric("entity_recall", True, classes.entity_recall, classes.has_entities),
    ),
    "extractive-qa": (
        Metric("token_f1", True, answers.span_f1),
        Metric("exact_match", True, answers.exact_span),
        Metric("answerable_f1", True, answers.answerable_f1, answers.has_unanswerable),
        Metric("unanswerable_accuracy", True, answers.unanswerable_accuracy, answers.has_unanswerable),
    ),
    "regression": (
        Metric("mae", False, mean_absolute_error),
        Metric("spearman", True, spearman),
        Metric("rmse", False, root_mean_squared_error),
        Metric("pearson", True, pearson),
    ),
    "ranking": (Metric("accuracy", True, pair_accuracy), Metric("loss", False, pair_loss)),
    "generation": (
        Metric("loss", False, answers.mean_loss, answers.has_losses),
        Metric("rouge_l", True, answers.mean_of("rouge_l"), answers.has_answers),
        Metric("perplexity", False, answers.perplexity, answers.has_losses),
        Metric("bits_per_byte", False, answers.bits_per_byte, answers.has_losses),
        Metric("rouge_1", True, answers.mean_of("rouge_1"), answers.has_answers),
        Metric("rouge_2", True, answers.mean_of("rouge_2"), answers.has_answers),
        Metric("bleu", True, answers.bleu, answers.has_answers),
        Metric("chrf", True, answers.mean_of("chrf"), answers.has_answers),
        Metric("token_f1", True, answers.mean_of("token_f1"), answers.has_answers),
        Metric("exact_match", True, answers.mean_of("exact"), answers.has_answers),
        Metric("length_ratio", True, answers.length_ratio, answers.has_answers),
        Metric("empty", False, answers.mean_of("empty"), answers.has_answers),
        Metric("repeated", False, answers.mean_of("repeated"), answers.has_answers),
        Metric("unfinished", False, answers.unfinished, answers.has_ends),
    ),
}


def score(predictions: Predictions, seed: int = 0, resamples: int = RESAMPLES) -> Score:
    """Every metric of the task that the predictions allow, each with its interval."""
    metrics = {
        metric.name: bootstrap(metric, predictions, seed, resamples)
        for metric in METRICS[predictions.task]
        if metric.applies(predictions)
    }
    return Score(metrics, len(predictions))


def bootstrap(metric: Metric, predictions: Predictions, seed: int, resamples: int) -> Interval:
    samples = resampled(len(predictions), seed, resamples)
    value = metric.function(predictions, np.arange(len(predictions)))
    return interval_of(value, [metric.function(predictions, rows) for rows in samples], len(predictions))


def paired_difference(
    one: Predictions, other: Predictions, metric: str, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """`one` minus `other`, both resampled by the same rows.

    Raises:
        InputError: the two were not made on the same rows, or the metric is unknown.
    """
    if one.task != other.task or not _are_equal(one.targets, other.targets):
        raise InputError("two systems can be compared only on the same test rows")
    by_name = {entry.name: entry for entry in METRICS[one.task]}
    if metric not in by_name:
        raise InputError(f"unknown metric '{metric}': {nearest(metric, by_name)}")
    if not (by_name[metric].applies(one) and by_name[metric].applies(other)):
        raise InputError(f"'{metric}' is not known for both systems")
    function = by_name[metric].function

    def gap(rows: Indices) -> float:
        return function(one, rows) - function(other, rows)

    drawn = [gap(rows) for rows in resampled(len(one), seed, resamples)]
    return interval_of(gap(np.arange(len(one))), drawn, len(one))


def _are_equal(one: Any, other: Any) -> bool:
    return bool(one == other) if isinstance(one, list) else np.array_equal(one, other)
