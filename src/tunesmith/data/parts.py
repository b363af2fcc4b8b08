"""The rows of a configuration: read, looked at, divided, cut to size."""

from __future__ import annotations

from pathlib import Path

from tunesmith.config import DataConfig, SourceConfig
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
    rejects = Path(f"{Path(data).stem}.rejects.jsonl") if config.bad_rows == "skip" else None
    return sources.load(data, task, config.columns, config.encoding, rejects)


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
