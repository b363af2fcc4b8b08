"""Metrics with bootstrap intervals, and the difference between two systems on the same rows.

Pure functions on arrays. A metric sees rows through an index array, so a bootstrap resample is just
other indices: Efron & Tibshirani 1993, percentile interval, 95 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import rankdata

from tunesmith.errors import InputError, nearest
from tunesmith.records import Interval, Score, Task

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.integer[Any]]

RESAMPLES = 1000
TAILS = (2.5, 97.5)


@dataclass
class Predictions:
    """What a system said about R rows, and what would have been right.

    classification  targets, outputs: class ids (R,)
    regression      targets, outputs: scores (R,)
    generation      targets: reference answers; outputs: answers, None where none was made
    losses          (R,) sum of losses per row in nats (regression: squared error), or None
    num_tokens      (R,) judged tokens per row, or None for one each
    """

    task: Task
    targets: Any
    outputs: Any
    losses: Floats | None = None
    num_tokens: Indices | None = None

    def __post_init__(self) -> None:
        if self.task != "generation":
            self.targets, self.outputs = np.asarray(self.targets), np.asarray(self.outputs)

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def rouge_l(self) -> Floats:
        """ROUGE-L F of each answer (Lin 2004; Porter stemmer on), NaN where there is no answer."""
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        scores = [
            np.nan if answer is None else scorer.score(reference, answer)["rougeL"].fmeasure
            for reference, answer in zip(self.targets, self.outputs, strict=True)
        ]
        return np.array(scores)

    def to_mapping(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name) for name in ("targets", "outputs", "losses", "num_tokens")}
        return {"task": self.task} | {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in arrays.items()
        }

    @classmethod
    def from_mapping(cls, plain: Mapping[str, Any]) -> Predictions:
        losses, counts = plain["losses"], plain["num_tokens"]
        return cls(
            plain["task"],
            plain["targets"],
            plain["outputs"],
            None if losses is None else np.array(losses),
            None if counts is None else np.array(counts),
        )


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of METRICS. `function` gives the value over the rows at some indices; `applies` says
    whether the predictions hold what it needs."""

    name: str
    higher_is_better: bool
    function: Callable[[Predictions, Indices], float]
    applies: Callable[[Predictions], bool] = lambda predictions: True


def accuracy(predictions: Predictions, rows: Indices) -> float:
    return float((predictions.outputs[rows] == predictions.targets[rows]).mean())


def macro_f1(predictions: Predictions, rows: Indices) -> float:
    """Unweighted mean of the F1 of all classes that occur among targets or outputs of these rows."""
    targets, outputs = predictions.targets[rows], predictions.outputs[rows]
    size = int(max(targets.max(), outputs.max())) + 1
    right = np.bincount(targets[targets == outputs], minlength=size)
    support = np.bincount(targets, minlength=size) + np.bincount(outputs, minlength=size)
    present = support > 0
    return float((2 * right[present] / support[present]).mean())


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


def mean_loss(predictions: Predictions, rows: Indices) -> float:
    """Nats per judged token; a long answer weighs as much as it is long."""
    assert predictions.losses is not None
    assert predictions.num_tokens is not None
    return float(predictions.losses[rows].sum() / predictions.num_tokens[rows].sum())


def perplexity(predictions: Predictions, rows: Indices) -> float:
    with np.errstate(over="ignore"):  # a hopeless model has infinite perplexity
        return float(np.exp(mean_loss(predictions, rows)))


def mean_rouge_l(predictions: Predictions, rows: Indices) -> float:
    scores = predictions.rouge_l[rows]
    answered = scores[~np.isnan(scores)]
    return float(answered.mean()) if len(answered) else float("nan")


def _has_losses(predictions: Predictions) -> bool:
    return predictions.losses is not None and predictions.num_tokens is not None


def _has_answers(predictions: Predictions) -> bool:
    return any(answer is not None for answer in predictions.outputs)


# The first metric of a task is the one systems are ranked by.
METRICS: dict[Task, tuple[Metric, ...]] = {
    "classification": (Metric("accuracy", True, accuracy), Metric("macro_f1", True, macro_f1)),
    "regression": (
        Metric("mae", False, mean_absolute_error),
        Metric("spearman", True, spearman),
        Metric("rmse", False, root_mean_squared_error),
        Metric("pearson", True, pearson),
    ),
    "generation": (
        Metric("loss", False, mean_loss, _has_losses),
        Metric("rouge_l", True, mean_rouge_l, _has_answers),
        Metric("perplexity", False, perplexity, _has_losses),
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
    samples = _resample(len(predictions), seed, resamples)
    value = metric.function(predictions, np.arange(len(predictions)))
    return _interval(value, [metric.function(predictions, rows) for rows in samples])


def paired_difference(
    one: Predictions, other: Predictions, metric: str, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """`one` minus `other`, both resampled by the same rows.

    Raises:
        InputError: the two were not made on the same rows, or the metric is unknown.
    """
    if one.task != other.task or not np.array_equal(one.targets, other.targets):
        raise InputError("two systems can be compared only on the same test rows")
    by_name = {entry.name: entry for entry in METRICS[one.task]}
    if metric not in by_name:
        raise InputError(f"unknown metric '{metric}': {nearest(metric, by_name)}")
    if not (by_name[metric].applies(one) and by_name[metric].applies(other)):
        raise InputError(f"'{metric}' is not known for both systems")
    function = by_name[metric].function

    def gap(rows: Indices) -> float:
        return function(one, rows) - function(other, rows)

    return _interval(gap(np.arange(len(one))), [gap(rows) for rows in _resample(len(one), seed, resamples)])


def _resample(num_rows: int, seed: int, resamples: int) -> Iterator[Indices]:
    """(rows,) indices drawn with replacement, one resample at a time: all at once would be 8 bytes x resamples
    x rows, and count as memory of the system that is judged."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, num_rows, num_rows) for _ in range(resamples))


def _interval(value: float, drawn: Sequence[float]) -> Interval:
    """Draws for which the metric is undefined are left out."""
    defined = np.array(drawn)[~np.isnan(drawn)]
    if not len(defined):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(defined, TAILS)
    return Interval(value, float(low), float(high))
