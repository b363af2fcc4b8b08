"""Stage: what a tuned model has forgotten of what its base could do, each measure with its 95 % interval.

Models that write: bits per byte of general texts, KL(base || tuned) on the base's own words, and the general probe.
All others: how far their representations of general texts have moved, and what a linear model still finds in them.
Either: the user's second data set. The base is measured once, and what it said is kept in the cache.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunesmith.data import sources
from tunesmith.data.tokenize import tokenize
from tunesmith.errors import InputError
from tunesmith.evaluation.drift import cosines, linear_cka, probe_classes
from tunesmith.evaluation.intervals import interval_of, resampled
from tunesmith.evaluation.metrics import METRICS, bootstrap, paired_difference
from tunesmith.evaluation.own_words import diverge, write_own_words
from tunesmith.evaluation.predictions import Floats, Predictions
from tunesmith.evaluation.probe import VERSION, ask_items, read_general, read_items
from tunesmith.evaluation.readings import READINGS
from tunesmith.evaluation.recall import Base, Said
from tunesmith.evaluation.tasks import predict_rows
from tunesmith.models.load import Network
from tunesmith.outcomes import Interval
from tunesmith.records import Examples, LabelledText, Origin, Task, TokenizedExample
from tunesmith.runs.run import Run
from tunesmith.runtime import choose_precision
from tunesmith.train.validate import embed, validate

GENERATED = 32  # answers to the user's second data set
FEWEST = 2  # rows of a class in it, one to learn from and one to be judged
RESAMPLES = 200  # of drift: each is a product of matrices


@dataclass(frozen=True, slots=True)
class Change:
    """One measure before and after. `change` is tuned - base, by paired bootstrap over the same rows.

    Of rows that are right or wrong, `kept` are right in both, `lost` in the base alone, `gained` in the tuned model
    alone.
    """

    measure: str
    metric: str
    higher_is_better: bool
    num_rows: int
    base: Interval
    tuned: Interval
    change: Interval
    kept: int | None = None
    lost: int | None = None
    gained: int | None = None

    @property
    def is_worse(self) -> bool:
        return self.change.high < 0 if self.higher_is_better else self.change.low > 0

    @property
    def is_better(self) -> bool:
        return self.change.low > 0 if self.higher_is_better else self.change.high < 0


def measure_forgetting(run: Run, also_keep: Any = None) -> list[Change]:
    """What a run has forgotten, by measure.

    Args:
        also_keep: a second data set, scored before and after: of answers for a model that writes, of texts and their
            classes for all others, whose representations a linear model then reads.

    Raises:
        InputError: the base model is gone or another one, or the second data set is of another kind.
    """
    return measure_network(run.network, run.manifest["parent"], also_keep)


def measure_network(network: Network, parent: Mapping[str, str], also_keep: Any = None) -> list[Change]:
    """The same of a network in memory; `parent` has the `name` and the `fingerprint` of its base."""
    network.model.eval()
    base = Base(network, parent, choose_precision("auto", network.model.device))
    writes = network.task == "generation"
    also = None if also_keep is None else load_second(also_keep, network.task)
    changes = _changes_of_words(network, base) if writes else _drift(network, base)
    if also is not None:
        second = _second_answers if writes else _second_classes
        changes.append(second(network, base, also, str(also_keep)))
    return changes


def load_second(also_keep: Any, task: Task) -> Examples:
    """The user's second data set, as a model for `task` is asked it.

    Raises:
        InputError: it is of another kind.
    """
    if task == "generation":
        return sources.load(also_keep, "generation")
    also = sources.load(also_keep, "classification")
    if any(isinstance(row, LabelledText) and row.pair for row in also.rows):
        raise InputError(f"also_keep '{also_keep}' has pairs of texts; give rows of one text and its class")
    if min(Counter(row.target for row in also.rows if isinstance(row, LabelledText)).values()) < FEWEST:
        raise InputError(f"also_keep '{also_keep}' has a class of fewer than {FEWEST} rows")
    return also


# Models that write


def _changes_of_words(network: Network, base: Base) -> list[Change]:
    def ask(asked: Network) -> Said:
        return Said(_ask_general(asked, base.dtype), write_own_words(asked, base.dtype))

    before = base.recall(f"words {VERSION}", ask)
    after = _ask_general(network, base.dtype)
    changes = [_change(name, before.predictions[name], after[name]) for name in after]
    moved = diverge(network, before.tensors, base.dtype)
    unmoved = Predictions("generation", moved.targets, moved.outputs, np.zeros(len(moved)), moved.num_tokens)
    return [_change("own_words", unmoved, moved, metric="loss", shown="kl_to_base"), *changes]


def _ask_general(network: Network, dtype: torch.dtype) -> dict[str, Predictions]:
    """Nothing of encoder-decoders, which are no models of texts as such."""
    if network.model.config.is_encoder_decoder:
        return {}
    return {"general_text": _read_texts(network, dtype), **ask_items(network, dtype)}


def _read_texts(network: Network, dtype: torch.dtype) -> Predictions:
    """Losses of general texts. The first token of each has nothing before it to be said from and is not judged."""
    limit = network.max_positions - network.num_virtual
    ids = [network.tokenizer(text, add_special_tokens=False)["input_ids"][:limit] for text in _texts()]
    rows = [TokenizedExample(tuple(row), (False, *(True,) * (len(row) - 1)), None, 0, at) for at, row in enumerate(ids)]
    outputs = validate(network, rows, dtype)
    judged = [network.tokenizer.decode(row[1:]) for row in ids]
    return Predictions("generation", judged, [None] * len(rows), outputs.losses, outputs.num_judged)


def _second_answers(network: Network, base: Base, also: Examples, name: str) -> Change:
    def ask(asked: Network) -> Said:
        return Said({"also": predict_rows(asked, also, base.dtype, GENERATED)})

    before = base.recall(f"also {also.fingerprint}", ask)
    return _change(f"also: {name}", before.predictions["also"], ask(network).predictions["also"])


# All others


def _drift(network: Network, base: Base) -> list[Change]:
    """General texts and the probe's questions as vectors: CKA, cosine, and by what each question is about."""
    items = read_items()
    texts = [*(item["question"] for item in items), *_texts()]
    before = (
        base.recall(f"vectors {VERSION}", lambda asked: _embed(asked, texts, base.dtype)).tensors["vectors"].numpy()
    )
    after = _embed(network, texts, base.dtype).tensors["vectors"].numpy()
    subjects = np.unique([item["subject"] for item in items], return_inverse=True)[1]
    return [
        _agreement("representations", "cka", before, after, linear_cka),
        _agreement("representations", "cosine", before, after, lambda one, other: float(cosines(one, other).mean())),
        _change_of_probe("linear_probe", before[: len(items)], after[: len(items)], subjects),
    ]


def _second_classes(network: Network, base: Base, also: Examples, name: str) -> Change:
    rows = [row for row in also.rows if isinstance(row, LabelledText)]
    texts = [row.text for row in rows]
    before = base.recall(f"vectors of {also.fingerprint}", lambda asked: _embed(asked, texts, base.dtype)).tensors[
        "vectors"
    ]
    classes = np.unique([str(row.target) for row in rows], return_inverse=True)[1]
    return _change_of_probe(
        f"also: {name}", before.numpy(), _embed(network, texts, base.dtype).tensors["vectors"].numpy(), classes
    )


def _embed(network: Network, texts: list[str], dtype: torch.dtype) -> Said:
    given = [READINGS["regression"].row(text, (), Origin("<text>", at)) for at, text in enumerate(texts, 1)]
    limit = network.max_positions - network.num_virtual
    rows = tokenize(Examples("regression", given, (), "", ""), network.tokenizer, limit)
    return Said(tensors={"vectors": torch.from_numpy(embed(network, rows, dtype))})


def _change_of_probe(name: str, before: Floats, after: Floats, classes: Any) -> Change:
    one, other = (Predictions("classification", classes, probe_classes(side, classes)) for side in (before, after))
    return _change(name, one, other)


def _agreement(measure: str, metric: str, before: Floats, after: Floats, function: Any) -> Change:
    """How alike two sets of vectors are; the base is like itself."""
    drawn = [function(before[rows], after[rows]) for rows in resampled(len(before), 0, RESAMPLES)]
    found = interval_of(function(before, after), drawn, len(before))
    change = Interval(found.value - 1, found.low - 1, found.high - 1)
    return Change(measure, metric, True, len(before), Interval(1.0, 1.0, 1.0), found, change)


def _texts() -> list[str]:
    return [json.loads(line)["text"] for line in read_general("texts").splitlines()]


# Before and after


def _change(measure: str, before: Predictions, after: Predictions, metric: str = "", shown: str = "") -> Change:
    """By the metric named, or else that for general texts or the task's first."""
    name = metric or ("bits_per_byte" if measure == "general_text" else METRICS[before.task][0].name)
    entry = next(one for one in METRICS[before.task] if one.name == name)
    base, tuned = (bootstrap(entry, side, 0, 1000) for side in (before, after))
    change = paired_difference(after, before, name)
    counts: tuple[int, ...] = ()
    if before.task == "classification":
        was, is_now = before.outputs == before.targets, after.outputs == after.targets
        counts = tuple(int(one.sum()) for one in (was & is_now, was & ~is_now, ~was & is_now))
    return Change(measure, shown or name, entry.higher_is_better, len(before), base, tuned, change, *counts)
