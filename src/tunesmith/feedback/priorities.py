"""What to ask next: the items whose answers a reward model, or several, can tell apart least.

Two ways, both in [0, 1] and averaged over the pairs of an item's answers (Settles 2009, Active Learning Literature
Survey, sections 3.1 and 3.2):
    uncertainty   entropy in bits of P(first better) = sigmoid(r_first - r_second), the models' mean
    disagreement  what of that entropy is of the models contradicting each other: entropy of the mean minus mean of the
                  entropies (BALD; Houlsby et al. 2011, arXiv 1112.5745)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tunesmith.data.sources import read_rows
from tunesmith.errors import InputError
from tunesmith.feedback.database import Database
from tunesmith.feedback.results import StoredItem, read_items
from tunesmith.feedback.settings import ChooseConfig
from tunesmith.feedback.store import Store
from tunesmith.records import RawRow
from tunesmith.storage import write_text

Floats = NDArray[np.float64]


def entropy(p: Floats) -> Floats:
    """Of a coin, in bits."""
    q = np.clip(p, 1e-12, 1 - 1e-12)
    bits: Floats = -q * np.log2(q) - (1 - q) * np.log2(1 - q)
    return bits


def doubt(scores_MK: Floats, way: str) -> float:
    """How much is to be learned from a ranking of K answers that M models have scored."""
    pairs = list(combinations(range(scores_MK.shape[1]), 2))
    differences_MP = np.stack([scores_MK[:, one] - scores_MK[:, other] for one, other in pairs], axis=1)
    chances_MP = expit(differences_MP)
    whole_P = entropy(chances_MP.mean(0))
    if way == "uncertainty":
        return float(whole_P.mean())
    return float((whole_P - entropy(chances_MP).mean(0)).mean())


def read_priorities(scores: Path, items: Mapping[str, StoredItem], way: str) -> dict[str, tuple[float, str]]:
    """Item -> (priority, reason) from rows {"item": ID, "scores": {CANDIDATE: [one score a model]}}.

    Raises:
        InputError: rows that are not that, or of another store.
    """
    found = {}
    for row in read_rows(scores):
        item, table = _read_scores(row, items)
        value = doubt(np.array(table, dtype=float).T, way)
        found[item] = (value, f"{way} {value:.3f} by {len(table[0])} reward model{'s' * (len(table[0]) > 1)}")
    return found


def _read_scores(row: RawRow, items: Mapping[str, StoredItem]) -> tuple[str, Sequence[Sequence[float]]]:
    item, scores = row.fields.get("item"), row.fields.get("scores")
    if not isinstance(item, str) or item not in items:
        raise InputError(
            f"{row.origin}: no item '{item}' in this store. `tunesmith feedback items` writes those there are"
        )
    if not isinstance(scores, Mapping) or set(scores) != set(items[item].candidates):
        raise InputError(
            f"{row.origin}: 'scores' must name each of the {len(items[item].candidates)} answers once, by id"
        )
    table = [scores[name] if isinstance(scores[name], list) else [scores[name]] for name in sorted(scores)]
    numbers = [value for line in table for value in line]
    if len({len(line) for line in table}) != 1 or not all(isinstance(value, int | float) for value in numbers):
        raise InputError(f"{row.origin}: 'scores' must have a number of each model for each answer")
    if not numbers or not np.isfinite(numbers).all():
        raise InputError(f"{row.origin}: 'scores' must be finite numbers")
    return item, table


def choose(config: ChooseConfig, database: Database) -> int:
    """Gives items the priorities that are asked for; returns how many these are.

    Raises:
        InputError: no scores where they are needed, or scores where they are not.
    """
    items = read_items(database)
    if (config.scores is None) != (config.by == "random"):
        raise InputError(f"by {config.by} goes {'without' if config.by == 'random' else 'by'} --scores")
    if config.scores is None:
        priorities = dict.fromkeys(items, (0.0, ""))
    else:
        priorities = read_priorities(config.scores, items, config.by)
    Store(database).set_priorities(priorities)
    return len(priorities)


def write_items(path: Path, items: Mapping[str, StoredItem]) -> None:
    """Items as rows that a reward model can score: item, prompt, and each answer by its id."""
    rows = [
        {
            "item": one.id,
            "prompt": [{"role": turn.role, "content": turn.content} for turn in one.prompt],
            "answers": {name: answer.text for name, answer in one.candidates.items()},
            "models": {name: answer.model for name, answer in one.candidates.items()},
            "priority": one.priority,
            "reason": one.reason,
        }
        for one in items.values()
    ]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
