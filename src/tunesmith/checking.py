"""Stage: a data set looked at before any compute is spent, and the very tokens that will be trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith import assets
from tunesmith.config import CheckConfig, TokensConfig
from tunesmith.data.clean import write_clean
from tunesmith.data.ids import NO_LIMIT
from tunesmith.data.parts import load_examples
from tunesmith.data.quality.findings import Finding
from tunesmith.data.quality.page import write_report
from tunesmith.data.quality.report import Report, check, find_long
from tunesmith.data.signal import Proof, prove
from tunesmith.data.tokenize import tokenize
from tunesmith.data.view import ShownRow, describe_target, show_row
from tunesmith.data.windows import use_keys
from tunesmith.errors import InputError
from tunesmith.models.load import load_tokenizer, resolve_model
from tunesmith.records import TASKS, Examples
from tunesmith.tuning import longest_row


@dataclass(frozen=True, slots=True)
class Checked:
    """A report and the files that were written."""

    report: Report
    written: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Some rows as a model will see them, and what all of them teach."""

    rows: tuple[ShownRow, ...]
    proof: Proof


def check_data(config: CheckConfig) -> Checked:
    """Runs every check; writes the page and, when asked to, a cleaned copy.

    Raises:
        InputError: the data cannot be read, or a file that is to be written is there already.
    """
    examples = load_examples(config, config.data, config.task)
    test = load_examples(config, config.eval_data, examples.task) if config.eval_data else None
    more = _find_long(config, examples) if config.model else ()
    report = check(examples, test, config.label_errors, more, quiet=False)
    if assets.is_dataset(config.data):
        report = replace(report, card={**report.card, "licence": assets.DATASETS[config.data].licence})
    written: list[Path] = []
    if config.output is not None:
        write_report(config.output, config.data, report)
        written.append(config.output)
    if config.fix:
        written += write_clean(config.data, examples, report.removable, config.encoding)
    return Checked(report, tuple(written))


def _find_long(config: CheckConfig, examples: Examples) -> Iterator[Finding]:
    assert config.model is not None
    if examples.task not in TASKS or examples.task == "extractive-qa":  # of which nothing is cut off
        return
    tokenizer = load_tokenizer(resolve_model(config.model), config.model, examples.task)
    use_keys(tokenizer, examples.task, config)
    rows = tokenize(examples, tokenizer, NO_LIMIT, quiet=False)
    limit = config.max_length or longest_row(config.model)
    yield from find_long(rows.lengths, examples, limit, config.model)


def show_tokens(config: TokensConfig) -> Tokenized:
    """Tokenizes rows as training would, and proves the signal; a broken one is shown, not refused.

    Raises:
        InputError: the data cannot be read or is for a task without tokens to show, or the model is unknown.
    """
    examples = load_examples(config, config.data, config.task)
    if examples.task not in TASKS:
        raise InputError(f"the data is for {examples.task}; tokens are shown for {', '.join(TASKS)}. Give --task")
    tokenizer = load_tokenizer(resolve_model(config.model), config.model, examples.task)
    use_keys(tokenizer, examples.task, config)
    limit = config.max_length or longest_row(config.model)
    too_long = "skip" if config.too_long == "refuse" else config.too_long
    rows = tokenize(examples, tokenizer, limit, too_long, quiet=False)
    if config.first > len(rows):
        raise InputError(f"first is {config.first}, but there are {len(rows):,} rows")
    shown = []
    for row in rows[config.first - 1 : config.first - 1 + config.rows]:
        example = examples.rows[rows.examples[row.row]]
        target = describe_target(example)
        whole = row
        if row.num_cut:
            (whole,) = tokenize(replace(examples, rows=(example,), fingerprint=""), tokenizer, NO_LIMIT)
        shown.append(show_row(row, whole, str(example.origin), target, tokenizer))
    return Tokenized(tuple(shown), prove(rows, examples, tokenizer))
