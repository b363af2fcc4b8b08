"""Metrics with bootstrap intervals, and the difference between two systems on the same rows.

Pure functions on arrays. A metric sees rows through an index array, so a bootstrap resample is just
other indices: Efron & Tibshirani 1993, percentile interval, 95 %.
"""

from __future__ import annotations

import re
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
    multi-label     targets, outputs: whether each class holds (R, C)
    regression      targets, outputs: scores (R,)
    ranking         targets: ranks, outputs: rewards of each row's answers
    token-class.    targets, outputs: tags of each row's words, None where none was given
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
        if self.task in ("token-classification", "ranking"):
            self.targets, self.outputs = list(map(tuple, self.targets)), list(map(tuple, self.outputs))
        elif self.task != "generation":
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

    @cached_property
    def by_class(self) -> tuple[Floats, Floats]:
        """(R, C) each: right yeses, and yeses of targets and outputs together."""
        targets, outputs = self.targets.astype(bool), self.outputs.astype(bool)
        return (targets & outputs).astype(float), targets.astype(float) + outputs

    @cached_property
    def by_pair(self) -> Floats:
        """(R, 3): pairs whose better answer has the higher reward (level ones half), their -log sigmoid(gap) in nats,
        and pairs; of each ranking."""
        sums = []
        for ranks, rewards in zip(self.targets, self.outputs, strict=True):
            rank_K, reward_K = np.array(ranks), np.array(rewards)
            gaps = (reward_K[:, None] - reward_K[None, :])[rank_K[:, None] < rank_K[None, :]]
            sums.append(((0.5 + 0.5 * np.sign(gaps)).sum(), np.logaddexp(0, -gaps).sum(), len(gaps)))
        return np.array(sums)

    @cached_property
    def by_row(self) -> Indices:
        """(R, 5): entities that are right, said and true; words that are right, and words."""
        counts = []
        for targets, outputs in zip(self.targets, self.outputs, strict=True):
            true, said = entities(targets), entities(outputs)
            right = sum(one == other for one, other in zip(targets, outputs, strict=True))
            counts.append((len(true & said), len(said), len(true), right, len(targets)))
        return np.array(counts)

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


def micro_f1(predictions: Predictions, rows: Indices) -> float:
    """Of all yeses together: 2 right / (said + true). NaN where there are none."""
    right, both = (counts.sum(1)[rows].sum() for counts in predictions.by_class)
    return float(2 * right / both) if both else float("nan")


def macro_f1_of_labels(predictions: Predictions, rows: Indices) -> float:
    """Unweighted mean of the F1 of all classes that hold or are said to hold in any of these rows."""
    times = np.bincount(rows, minlength=len(predictions)).astype(float)
    right, both = (times @ counts for counts in predictions.by_class)
    present = both > 0
    return float((2 * right[present] / both[present]).mean()) if present.any() else float("nan")


def subset_accuracy(predictions: Predictions, rows: Indices) -> float:
    """Share of rows of which every class is right."""
    right, both = predictions.by_class
    return float((2 * right.sum(1) == both.sum(1))[rows].mean())


PREFIXES = re.compile(r"O|[BIESLU]-.+", re.DOTALL)


def entities(tags: Sequence[str | None]) -> set[tuple[str, int, int]]:
    """(type, first word, one past the last) of each entity in a row of tags, None counting as O.

    As conlleval reads them (Tjong Kim Sang and Buchholz 2000, CoNLL), and seqeval after it: an entity begins at B, and
    wherever a tag follows an O, an entity that has ended, or another type; it goes on through I of its type. So IOB2,
    IOB1, IOBES (S alone, E at the end) and BILOU (U alone, L at the end) are read alike.
    """
    found: set[tuple[str, int, int]] = set()
    kind, start, is_open = "", -1, False
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = (tag or "O").partition("-")
        begins = prefix != "O" and (prefix in "BSU" or name != kind or not is_open)
        if start >= 0 and (prefix == "O" or begins):
            found.add((kind, start, place))
            start = -1
        if begins:
            kind, start = name, place
        is_open = prefix not in "OELSU"
    return found


def entity_f1(predictions: Predictions, rows: Indices) -> float:
    """Of entities whose type and both ends are right: 2 right / (said + true). NaN where there are none."""
    right, said, true, *_ = predictions.by_row[rows].sum(0)
    return float(2 * right / (said + true)) if said + true else float("nan")


def entity_precision(predictions: Predictions, rows: Indices) -> float:
    right, said, *_ = predictions.by_row[rows].sum(0)
    return float(right / said) if said else float("nan")


def entity_recall(predictions: Predictions, rows: Indices) -> float:
    right, _, true, *_ = predictions.by_row[rows].sum(0)
    return float(right / true) if true else float("nan")


def word_accuracy(predictions: Predictions, rows: Indices) -> float:
    *_, right, words = predictions.by_row[rows].sum(0)
    return float(right / words)


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


def pair_accuracy(predictions: Predictions, rows: Indices) -> float:
    """Share of pairs whose better answer has the higher reward. NaN where all are tied."""
    right, _, num = predictions.by_pair[rows].sum(0)
    return float(right / num) if num else float("nan")


def pair_loss(predictions: Predictions, rows: Indices) -> float:
    """Mean of -log sigmoid(better - worse) over pairs, in nats."""
    _, loss, num = predictions.by_pair[rows].sum(0)
    return float(loss / num) if num else float("nan")


def _has_losses(predictions: Predictions) -> bool:
    return predictions.losses is not None and predictions.num_tokens is not None


def _has_entities(predictions: Predictions) -> bool:
    """Whether the tags are those of entities, and not of parts of speech."""
    tags = {tag for row in predictions.targets for tag in row}
    return all(PREFIXES.fullmatch(tag) for tag in tags)


def _has_answers(predictions: Predictions) -> bool:
    return any(answer is not None for answer in predictions.outputs)


# The first metric of a task that applies is the one systems are ranked by.
METRICS: dict[Task, tuple[Metric, ...]] = {
    "classification": (Metric("accuracy", True, accuracy), Metric("macro_f1", True, macro_f1)),
    "multi-label": (
        Metric("micro_f1", True, micro_f1),
        Metric("macro_f1", True, macro_f1_of_labels),
        Metric("subset_accuracy", True, subset_accuracy),
    ),
    "token-classification": (
        Metric("entity_f1", True, entity_f1, _has_entities),
        Metric("accuracy", True, word_accuracy),
        Metric("entity_precision", True, entity_precision, _has_entities),
        Metric("entity_recall", True, entity_recall, _has_entities),
    ),
    "regression": (
        Metric("mae", False, mean_absolute_error),
        Metric("spearman", True, spearman),
        Metric("rmse", False, root_mean_squared_error),
        Metric("pearson", True, pearson),
    ),
    "ranking": (Metric("accuracy", True, pair_accuracy), Metric("loss", False, pair_loss)),
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

    return _interval(gap(np.arange(len(one))), [gap(rows) for rows in _resample(len(one), seed, resamples)])


def _are_equal(one: Any, other: Any) -> bool:
    return bool(one == other) if isinstance(one, list) else np.array_equal(one, other)


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
