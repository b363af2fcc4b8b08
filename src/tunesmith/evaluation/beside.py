"""Test rows as several systems answered them, side by side; and which classes a system takes for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tunesmith.data.quality.findings import whole_text
from tunesmith.data.view import describe_target
from tunesmith.evaluation.predictions import Floats, Predictions
from tunesmith.evaluation.readings import READINGS
from tunesmith.outcomes import System, Verdict
from tunesmith.records import Conversation, Example, Examples

EACH = 12  # rows of each kind
MOST_CLASSES = 12  # of a confusion matrix that can be read
LEAST = 1e-9  # by which rows of graded tasks must differ


def set_beside(
    test: Examples, systems: Sequence[System], verdict: Verdict, predictions: Mapping[str, Predictions]
) -> dict[str, Any]:
    """Rows that tuning changed or that are still wrong: `names` of the systems shown, the method first, and `rows`.

    Each row has input, expected, outputs (one a system), right (True, False, or None where it is a matter of degree)
    and kind: `gained` where the method does better than the first baseline, `lost` where worse, `wrong` for the others
    that the method does worst. Nothing where there is no method or no baseline, or no row has an answer of both.
    """
    names = _choose(systems, verdict)
    if len(names) < 2 or test.task == "ranking":
        return {"names": [], "rows": []}
    grades = {name: grade(predictions[name]) for name in names}
    ours, theirs = grades[names[0]], grades[names[1]]
    both = np.flatnonzero(~np.isnan(ours) & ~np.isnan(theirs))
    gaps = ours[both] - theirs[both]
    best_first = both[np.argsort(-gaps, kind="stable")]
    kinds = {
        "gained": [row for row in best_first if ours[row] - theirs[row] > LEAST],
        "lost": [row for row in best_first[::-1] if ours[row] - theirs[row] < -LEAST],
    }
    alike = [row for row in both if abs(ours[row] - theirs[row]) <= LEAST]
    rest = alike if _is_plain(test) else [row for row in both if row not in kinds["gained"][:EACH]]
    kinds["wrong"] = sorted((row for row in rest if ours[row] < _best(test)), key=lambda row: ours[row])
    shown: list[dict[str, Any]] = []
    taken: set[int] = set()
    for kind, rows in kinds.items():
        fresh = [int(row) for row in rows if int(row) not in taken][:EACH]
        taken |= set(fresh)
        shown += [_show(test, row, kind, {name: predictions[name] for name in names}, grades) for row in fresh]
    return {"names": names, "rows": shown, "num_gained": len(kinds["gained"]), "num_lost": len(kinds["lost"])}


def _choose(systems: Sequence[System], verdict: Verdict) -> list[str]:
    """The method to be used or the best one, what it has to beat, and the model as it is with and without examples."""
    done = [system for system in systems if not system.error]
    methods = [system.name for system in done if system.kind == "method"]
    first = [name for name in (verdict.recommended, verdict.best, *methods) if name in methods][:1]
    baselines = [system for system in done if system.kind == "baseline"]
    as_is = [system.name for system in baselines if system.name == "zero-shot"]
    few = [system.name for system in baselines if system.name.startswith("few-shot")][-1:]
    others = [system.name for system in baselines[::-1] if system.family not in ("guess", "bound")][:1]
    found = dict.fromkeys([*as_is, *few] or others or [system.name for system in baselines][:1])
    return [*first, *found] if first else []


def _is_plain(test: Examples) -> bool:
    """Whether an answer is right or wrong, and nothing between."""
    return test.task in ("classification", "multi-label")


def _best(test: Examples) -> float:
    return 0.0 if test.task == "regression" else 1.0


def grade(predictions: Predictions) -> Floats:
    """(R,) how good each answer is, 1 at best: right or not, share of right words, ROUGE-L; of scores minus their gap.

    NaN where no answer was made.
    """
    match predictions.task:
        case "generation":
            return predictions.answers.rouge_l
        case "regression":
            return -np.abs(predictions.outputs - predictions.targets).astype(float)
        case "multi-label":
            return (predictions.outputs == predictions.targets).all(1).astype(float)
        case "extractive-qa":
            return predictions.by_question[:, 1]
        case "token-classification":
            return predictions.by_row[:, 3] / np.maximum(predictions.by_row[:, 4], 1)
        case _:
            return (predictions.outputs == predictions.targets).astype(float)


def _show(
    test: Examples, at: int, kind: str, said: Mapping[str, Predictions], grades: Mapping[str, Floats]
) -> dict[str, Any]:
    asked, expected = _read(test.rows[at])
    outputs = [_write(test, one.outputs[at]) for one in said.values()]
    plain = _is_plain(test)
    right = [bool(grades[name][at] == 1) if plain else None for name in said]
    return {"input": asked, "expected": expected, "outputs": outputs, "right": right, "kind": kind}


def _read(row: Example) -> tuple[str, str]:
    """What was asked, and what would have been right."""
    if isinstance(row, Conversation):
        return row.messages[-2].content, row.messages[-1].content
    return whole_text(row), describe_target(row)


def _write(test: Examples, output: Any) -> str:
    if test.task == "generation":
        return "-" if output is None else str(output)
    return READINGS[test.task].show(output, test.class_names)


def count_confusions(predictions: Predictions, num_classes: int) -> list[list[int]]:
    """Rows of each true class (down) by the class that was said (across); nothing of more classes than one can read."""
    if predictions.task != "classification" or not 0 < num_classes <= MOST_CLASSES:
        return []
    counts = np.zeros((num_classes, num_classes), dtype=int)
    np.add.at(counts, (predictions.targets, predictions.outputs), 1)
    found: list[list[int]] = counts.tolist()
    return found
