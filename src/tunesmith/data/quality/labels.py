"""Classes: how they are spelt and how many rows they have, and labels that are probably wrong."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from tunesmith.data.quality.findings import SHOWN, Finding, Shown, show
from tunesmith.records import Example, LabelledText
from tunesmith.terminal import describe_count

RARE = 5  # rows; a class with fewer has none to spare for validation and test
UNEVEN = 20  # times as many rows as the smallest class
FOLDS = 5
# More rows than this and a random part of them is looked at: five classifiers are trained on the others.
MOST_JUDGED = 100_000
FEWEST_JUDGED = 50


def find_class_faults(counts: Counter[str], unit: str = "row") -> Iterator[Finding]:
    """`unit` is what has a class: a row, or a word. Signs tell tags apart (PRP and PRP$), but not class names."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted(counts):
        letters = "".join(letter for letter in name.casefold() if letter.isalnum() or unit == "word")
        alike[letters or name].append(name)
    pairs = [names for names in alike.values() if len(names) > 1]
    if pairs:
        shown = tuple(
            Shown(
                "",
                " / ".join(f"'{name}'" for name in names),
                ", ".join(describe_count(counts[name], unit) for name in names),
            )
            for names in pairs[:SHOWN]
        )
        yield Finding(
            "class names",
            "error",
            sum(counts[name] for names in pairs for name in names),
            f"{describe_count(len(pairs), 'class')} written in more than one way",
            "Write each in one way; the model would learn them as different classes",
            shown,
        )
    rare = [name for name, count in sorted(counts.items()) if count < RARE]
    if rare:
        shown = tuple(Shown("", f"'{name}'", describe_count(counts[name], unit)) for name in rare[:SHOWN])
        yield Finding(
            "rare classes",
            "warning",
            sum(counts[name] for name in rare),
            f"{describe_count(len(rare), 'class')} with fewer than {RARE} {unit}s: too few to learn and to test",
            "Find more rows, join classes, or leave them out",
            shown,
        )
    most, least = max(counts.values()), min(counts.values())
    if most >= UNEVEN * least:
        yield Finding(
            "class balance",
            "note",
            most,
            f"the largest class has {most / least:,.0f} times the {unit}s of the smallest ({most:,} and {least:,})",
            f"Look at the macro F1 and not at the accuracy; more {unit}s of the small classes help most",
        )


def find_label_errors(rows: Sequence[Example], groups: np.ndarray, seed: int = 0) -> Iterator[Finding]:
    """Confident learning (Northcutt, Jiang and Chuang 2021, arXiv 1911.00068).

    Each row is judged by a classifier that did not see it (logistic regression on TF-IDF of words and letters).
    The threshold of a class is the mean probability that its own rows get for it; a row is suspect when some other
    class reaches its threshold, more likely than any, and its own is the less likely. Ordered by the margin.

    Args:
        groups: (rows,) equal numbers for rows that say nearly the same: never one to learn from and one to judge.
    """
    labelled = [(index, row) for index, row in _sample(rows, seed) if isinstance(row, LabelledText)]
    names = sorted({str(row.target) for _, row in labelled})
    given = np.array([names.index(str(row.target)) for _, row in labelled])
    if len(labelled) < FEWEST_JUDGED or len(names) < 2 or np.bincount(given).min() < FOLDS:
        return
    chances = _out_of_fold([row.whole for _, row in labelled], given, groups[[index for index, _ in labelled]], seed)
    suspects = suspect(chances, given)
    if not len(suspects):
        return
    shown = [
        show(
            labelled[at][1],
            f"labelled {names[given[at]]}, rather {names[chances[at].argmax()]} ({chances[at].max():.0%})",
        )
        for at in suspects[:SHOWN]
    ]
    yield Finding(
        "label errors",
        "warning",
        len(suspects),
        f"{describe_count(len(suspects), 'label')} probably wrong, the likeliest first",
        "Look at them in this order; how many of them are is for a person to say",
        tuple(shown),
        array("q", [labelled[at][0] for at in suspects]),
    )


def suspect(chances_NC: np.ndarray, given_N: np.ndarray) -> np.ndarray:
    """Indices of rows whose label is probably wrong, the likeliest first.

    Args:
        chances_NC: out-of-fold probabilities of each class; given_N: the labels' class numbers.
    """
    num_rows, num_classes = chances_NC.shape
    own_N = chances_NC[np.arange(num_rows), given_N]
    thresholds_C = np.array([own_N[given_N == number].mean() for number in range(num_classes)])
    confident_NC = np.where(chances_NC >= thresholds_C, chances_NC, -1.0)
    best_N = confident_NC.argmax(1)
    is_suspect_N = (confident_NC.max(1) > 0) & (best_N != given_N)
    margin_N = own_N - chances_NC.max(1)
    found = np.flatnonzero(is_suspect_N)
    return np.asarray(found[np.argsort(margin_N[found], kind="stable")])


def _sample(rows: Sequence[Example], seed: int) -> Iterator[tuple[int, Example]]:
    indices = np.arange(len(rows))
    if len(rows) > MOST_JUDGED:
        indices = np.sort(np.random.default_rng(seed).choice(len(rows), MOST_JUDGED, replace=False))
    for index in indices.tolist():
        yield index, rows[index]


def _out_of_fold(texts: Sequence[str], given: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """(rows, classes) probabilities."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline, make_union

    chances = np.zeros((len(texts), given.max() + 1))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for train, judged in folds.split(np.zeros(len(texts)), given, groups):
        model = make_pipeline(
            make_union(
                TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=50_000),
                TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(3, 4), max_features=50_000),
            ),
            LogisticRegression(C=2.0, max_iter=300),
        )
        model.fit([texts[at] for at in train], given[train])
        chances[np.ix_(judged, model.classes_)] = model.predict_proba([texts[at] for at in judged])
    return chances
