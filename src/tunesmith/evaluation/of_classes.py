"""Measures of classes: one a row, several a row, or one a word. Each takes the predictions and the rows that count."""

from __future__ import annotations

import numpy as np

from tunesmith.evaluation.predictions import Floats, Indices, Predictions
from tunesmith.evaluation.tags import PREFIXES

BINS = 15  # of confidence (Guo et al. 2017, arXiv 1706.04599, section 5)


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


def has_entities(predictions: Predictions) -> bool:
    """Whether the tags are those of entities, and not of parts of speech."""
    tags = {tag for row in predictions.targets for tag in row}
    return all(PREFIXES.fullmatch(tag) for tag in tags)


def mcc(predictions: Predictions, rows: Indices) -> float:
    """Matthews' correlation for any number of classes (Gorodkin 2004); 0 when either side is one class throughout,
    as scikit-learn has it."""
    targets, outputs = predictions.targets[rows], predictions.outputs[rows]
    size = int(max(targets.max(), outputs.max())) + 1
    true, said = np.bincount(targets, minlength=size).astype(float), np.bincount(outputs, minlength=size).astype(float)
    count, right = float(len(rows)), float((targets == outputs).sum())
    spread = (count**2 - said @ said) * (count**2 - true @ true)
    return float((count * right - true @ said) / np.sqrt(spread)) if spread > 0 else 0.0


def calibration_error(predictions: Predictions, rows: Indices) -> float:
    """ECE: how far apart confidence and accuracy are, on average over rows in BINS bins of equal width (Guo et al.
    2017, equation 3)."""
    confident, right = _confidence(predictions, rows)
    bins = np.minimum((confident * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=right - confident, minlength=BINS)
    return float(np.abs(gaps).sum() / len(rows))


def brier(predictions: Predictions, rows: Indices) -> float:
    """Squared distance of the probabilities from certainty of the right class, summed over classes (Brier 1950)."""
    assert predictions.probabilities is not None
    p_RC = predictions.probabilities[rows]
    own = np.take_along_axis(p_RC, predictions.targets[rows][:, None], 1)[:, 0]
    return float(((p_RC**2).sum(1) - 2 * own + 1).mean())


def _confidence(predictions: Predictions, rows: Indices) -> tuple[Floats, Floats]:
    assert predictions.probabilities is not None
    p_RC = predictions.probabilities[rows]
    return p_RC.max(1), (p_RC.argmax(1) == predictions.targets[rows]).astype(float)


def has_probabilities(predictions: Predictions) -> bool:
    return predictions.probabilities is not None
