"""Commands that judge: systems beside each other, one on labelled rows, answers one by one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from tunesmith.commands.console import AsJson, ConfigFile, given, out, print_json, print_lines
from tunesmith.config import split_list, split_mapping
from tunesmith.config_align import JudgeConfig
from tunesmith.config_compare import CompareConfig
from tunesmith.errors import InputError
from tunesmith.flags import flags_of
from tunesmith.storage import write_text
from tunesmith.system_tables import (
    comparison_table,
    duel_lines,
    forgetting_table,
    search_table,
    seed_table,
    use_table,
)


@flags_of(CompareConfig)
def compare(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Compare methods and baselines on one split: a table, a page, a recommendation."""
    _compare(CompareConfig.read(config, given(settings)), as_json)


def demo(*, output: Path = Path("runs/demo"), as_json: AsJson = False) -> None:
    """The main job on the catalogue's model and data: methods and baselines on film reviews."""
    settings = {
        "model": "minilm-l6",
        "data": "vader-movies",
        "output": output,
        "per_device_train_batch_size": 32,
        "num_train_epochs": 1.5,
        "max_train_samples": 1500,
        "max_validation_samples": 150,
        "max_test_samples": 600,
    }
    _compare(CompareConfig.read(given=settings), as_json)


def _compare(config: CompareConfig, as_json: bool) -> None:
    from tunesmith.evaluation.compare import compare as run_stage

    comparison = run_stage(config)
    if as_json:
        return print_json(comparison.content)
    out.print(comparison_table(comparison.content))
    for make in (seed_table, use_table, search_table):
        table = make(comparison.content)
        if table is not None:
            out.print(table)
    out.print(comparison.verdict.reason, markup=False)
    out.print(f"report  {comparison.report}", markup=False)


@flags_of(JudgeConfig)
def judge(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Set two models that write against each other: how often is the one preferred?"""
    from tunesmith.judging import judge as run_stage

    found = run_stage(JudgeConfig.read(config, given(settings)))
    if as_json:
        return print_json(found)
    print_lines(duel_lines(found))


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Forgetting:
    """What of forgetting is asked."""

    forgetting: Annotated[
        bool, Parameter(negative="", help="What the run has lost of what its base model could do: texts, facts, ...")
    ] = False
    also_keep: Annotated[
        str | None, Parameter(help="Forgetting: a second data set of yours, scored before and after.")
    ] = None


NOT_ASKED = Forgetting()


def evaluate(
    model: str,
    /,
    *,
    data: str | None = None,
    columns: str = "",
    max_generated: int = 32,
    forgotten: Forgetting = NOT_ASKED,
    as_json: AsJson = False,
) -> None:
    """Score a run, or a decoder as it is, on all rows of labelled data; or see what a run has forgotten.

    Parameters
    ----------
    model: A run folder, or a model by catalogue name, folder or hub name.
    data: Labelled data: a file or a catalogue name.
    max_generated: Generation: answer so many rows for ROUGE-L.
    """
    forgetting, also_keep = forgotten.forgetting, forgotten.also_keep
    if data is None and not forgetting:
        raise InputError("evaluate needs --data with labelled rows, or --forgetting")
    if also_keep is not None and not forgetting:
        raise InputError("also_keep names what should not be forgotten; ask for it with --forgetting")
    found: dict[str, Any] = {}
    if data is not None:
        found["score"] = _score(model, data, columns, max_generated)
    if forgetting:
        from tunesmith.evaluation.forgetting import measure_forgetting
        from tunesmith.runs.run import Run

        found["forgetting"] = measure_forgetting(Run.open(model), also_keep)
    if as_json:
        return print_json(found if forgetting else found["score"])
    if data is not None:
        out.print(f"{model} on {found['score'].num_rows:,} rows of {data}", markup=False)
        print_lines(f"  {name:<16} {interval}" for name, interval in found["score"].metrics.items())
    if forgetting:
        out.print(forgetting_table(found["forgetting"]))


def _score(model: str, data: str, columns: str, max_generated: int) -> Any:
    from tunesmith.evaluation.tasks import evaluate as run_stage
    from tunesmith.evaluation.tasks import open_network

    return run_stage(open_network(model), data, split_mapping(columns), max_generated)


def predict(
    run: str, file: Path, /, *, output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None
) -> None:
    """Predict for every row of a file; writes JSONL with the row and its prediction.

    Parameters
    ----------
    run: A run folder.
    file: CSV, TSV or JSONL with a text (or prompt) column, or plain text with one text per line. A run on pairs wants
        both columns, one on passages question and context, one on words a list of them or a text with blanks between.
    output: Where to write; standard output when not given.
    """
    from tunesmith.evaluation.predict import predict_file

    lines = [json.dumps(row, ensure_ascii=False) for row in predict_file(run, file)]
    if output is None:
        print("\n".join(lines))
    else:
        write_text(output, "\n".join(lines) + "\n")
        out.print(f"{len(lines):,} predictions written to {output}", markup=False)


def chat(
    run: str, /, *, also: str = "", system: str | None = None, temperature: float = 0.0, max_new_tokens: int = 256
) -> None:
    """Talk to a run, or to a decoder as it is, in the terminal. /new starts anew, /quit ends.

    Parameters
    ----------
    run: A run folder, or a model by catalogue name, folder or hub name.
    also: Folders of further runs of the same base, separated by commas; `/use NAMES` says whose adapters answer.
    system: A system prompt.
    temperature: 0 takes the likeliest token each time.
    """
    from tunesmith.evaluation.predict import converse
    from tunesmith.models.generate import Decoding

    converse(run, split_list(also), system, Decoding(max_new_tokens, temperature))  # type: ignore[arg-type]
