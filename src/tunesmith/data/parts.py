"""The rows of a configuration: read, looked at, divided, cut to size."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunesmith.config import DataConfig, SourceConfig, TrainingConfig
from tunesmith.data import sources
from tunesmith.data.quality.report import check
from tunesmith.data.split import split, split_given, take, weigh
from tunesmith.errors import InputError
from tunesmith.records import TASKS, Examples, Split, Task


def load_split(config: DataConfig) -> Split:
    """The data of a configuration, recognised, divided and cut to size.

    Raises:
        InputError: data that cannot be used, or that no run can be trained for.
    """
    examples = load_examples(config, config.data, config.task)
    if examples.task not in TASKS:
        raise InputError(
            f"the data is for {examples.task} ({examples.recognised}); a run is trained for {', '.join(TASKS)}. "
            "`tunesmith data check` reads it all the same"
        )
    return split_examples(examples, config, quiet=False)


def load_examples(config: SourceConfig, data: str, task: Task | None) -> Examples:
    """Rows as a configuration asks for them.

    Raises:
        InputError: nothing found under that name, or rows that cannot be used.
    """
    return sources.load(data, task, config.columns, config.encoding, _rejects(config, data))


def load_prompts(config: SourceConfig) -> Examples:
    """The same of data that need hold nothing but prompts."""
    rejects = _rejects(config, config.data)
    return sources.load_prompts(config.data, config.task, config.columns, config.encoding, rejects)


def _rejects(config: SourceConfig, data: str) -> Path | None:
    return Path(f"{Path(data).stem}.rejects.jsonl") if config.bad_rows == "skip" else None


def load_keep_data(config: TrainingConfig, task: Task, class_names: Sequence[str]) -> Examples:
    """The rows whose content is to be kept, as a run for `task` with these classes reads them.

    Raises:
        InputError: rows of another task, or of classes that the run does not have.
    """
    assert config.keep_data is not None
    found = sources.load(config.keep_data, task)
    unknown = sorted(set(found.class_names) - set(class_names))
    if unknown:
        known = ", ".join(class_names)
        raise InputError(f"keep_data '{config.keep_data}' has the class '{unknown[0]}', the training rows have {known}")
    return replace(found, class_names=tuple(class_names))


def with_replay(config: TrainingConfig, parts: Split) -> Split:
    """Training rows with rows of `keep_data` among them, drawn by the seed: each as often as the others, to within one.

    Raises:
        InputError: there is nothing to be replayed.
    """
    if not config.replay:
        return parts
    if config.keep_data is None:
        raise InputError("replay has nothing to draw from. Give a file of rows that are to be kept with --keep-data")
    train = parts.train
    kept = load_keep_data(config, train.task, train.class_names)
    num = max(1, round(config.replay * len(train.rows)))
    order = random.Random(f"{config.seed}/replay").sample(range(len(kept.rows)), len(kept.rows))
    drawn = [kept.rows[order[index % len(order)]] for index in range(num)]
    fingerprint = hashlib.sha256(f"{train.fingerprint} {kept.fingerprint} {num} {config.seed}".encode()).hexdigest()
    mixed = replace(train, rows=[*train.rows, *drawn], fingerprint=fingerprint, groups=(), times=())
    note = f"{parts.note}; {num:,} rows of {config.keep_data} among the training rows"
    return replace(parts, train=mixed, note=note)


def split_examples(examples: Examples, config: DataConfig, quiet: bool = True) -> Split:
    """Examples looked at, divided and cut to size as the configuration says."""
    report = check(examples, with_labels=False, quiet=quiet) if config.check else None
    clusters = report.clusters if report is not None else None
    if config.eval_data is not None:
        test = load_examples(config, config.eval_data, examples.task)
        parts = split_given(examples, test, config.seed, clusters=clusters)
    else:
        parts = split(examples, config.seed, clusters=clusters)
    taken = [
        take(parts.train, config.max_train_samples, config.seed),
        take(parts.validation, config.max_validation_samples, config.seed),
        take(parts.test, config.max_test_samples, config.seed),
    ]
    if config.weights:
        taken[0] = weigh(taken[0], config.weights, config.seed)
    used = ", ".join(
        f"{name} {len(part.rows):,}" for name, part in zip(("train", "validation", "test"), taken, strict=True)
    )
    cut = taken != [parts.train, parts.validation, parts.test]
    note = f"{parts.note}; used: {used}" if cut else parts.note
    return Split(taken[0], taken[1], taken[2], note, report.brief(config.data) if report is not None else "")
