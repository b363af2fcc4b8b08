"""The command line: one command per stage. Parses, calls, prints; no logic.

Exit codes: 0 good, 1 our fault, 2 the user's input is wrong; 129, 130 and 143 stopped by SIGHUP, SIGINT and SIGTERM.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

# Must be set before torch and tokenizers are imported: no warning about forks, no hub chatter.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from tunesmith import assets
from tunesmith.config import (
    CheckConfig,
    CompareConfig,
    ExportConfig,
    PlanConfig,
    TokensConfig,
    TuneConfig,
    split_mapping,
)
from tunesmith.config_align import AlignConfig, JudgeConfig, RewardConfig
from tunesmith.errors import InputError
from tunesmith.feedback_cli import app as feedback
from tunesmith.flags import by_our_names, flags_of
from tunesmith.signals import Stopped, listening
from tunesmith.storage import to_plain, write_text
from tunesmith.tables import (
    comparison_table,
    doctor_lines,
    duel_lines,
    methods_markdown,
    methods_table,
    plan_table,
    proof_lines,
    report_lines,
    rows_table,
    run_lines,
    token_lines,
)

# Without a terminal nobody needs lines broken at 80 columns.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
app = App(
    name="tunesmith",
    console=out,
    help="Specialise a pretrained language model on your own data, and see, measured, whether it was worth it.",
    version_flags=["--version"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # we say what is saved, and by which signal
)

AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print the result as JSON.")]
ConfigFile = Annotated[Path | None, Parameter(name="--config", help="YAML file with any of these keys.")]


def given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


@app.command
@flags_of(TuneConfig)
def tune(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Tune a model on data by one method, and save the run."""
    from tunesmith.runs.place import read_config
    from tunesmith.tuning import tune as run_stage

    print_run(run_stage(read_config(config, given(settings), TuneConfig)), as_json)


@app.command
@flags_of(RewardConfig)
def reward(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Train a reward model on rankings, and say how far it agrees with them on other prompts."""
    from tunesmith.rewarding import train_reward
    from tunesmith.runs.place import read_config

    print_run(train_reward(read_config(config, given(settings), RewardConfig)), as_json)


@app.command
@flags_of(AlignConfig)
def align(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Train a model to write what people prefer: from their choices, or by trial with a reward."""
    from tunesmith.aligning import align as run_stage
    from tunesmith.runs.place import read_config

    print_run(run_stage(read_config(config, given(settings), AlignConfig)), as_json)


@app.command
@flags_of(JudgeConfig)
def judge(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Set two models that write against each other: how often is the one preferred?"""
    from tunesmith.judging import judge as run_stage

    found = run_stage(JudgeConfig.read(config, given(settings)))
    if as_json:
        return print_json(found)
    print_lines(duel_lines(found))


def print_run(run: Any, as_json: bool) -> None:
    """What a training did, and what to do with it."""
    if as_json:
        return print_json({"folder": run.folder, **run.manifest})
    print_lines(run_lines(run.folder, run.manifest))


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        out.print(line, markup=False)


@app.command
@flags_of(PlanConfig)
def plan(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Predict memory, time, arithmetic and disk of a tuning, by method, before it runs."""
    from tunesmith.planning import plan as run_stage

    forecasts = run_stage(PlanConfig.read(config, given(settings)))
    if as_json:
        return print_json([forecast.to_plain() for forecast in forecasts])
    out.print(plan_table(forecasts))
    for forecast in forecasts:
        if forecast.advice:
            out.print(f"{forecast.method}: {forecast.advice}", markup=False, soft_wrap=True)
    out.print(forecasts[0].basis, markup=False, soft_wrap=True)


@app.command
@flags_of(ExportConfig)
def export(*runs: Path, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Make a run into a model that other programs load: merged into its base, in part, or with other runs."""
    from tunesmith.export import export as run_stage

    where = {"runs": runs} if runs else {}
    found = run_stage(ExportConfig.read(config, {**where, **given(settings)}))
    if as_json:
        return print_json(found)
    gap = [] if found.gap is None else [f"logits differ from the run's by at most {found.gap:.1e} of the largest"]
    print_lines([f"{found.form} model  {found.folder}", *gap])


data = App(name="data", help="Look at data before anything is trained on it.")
app.command(data)
app.command(feedback)


@data.command(name="check")
@flags_of(CheckConfig)
def data_check(source: str, /, *, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> int:
    """Look for faults: duplicates, leaks, wrong labels, damage, secrets. The exit code is 2 when there are errors."""
    from tunesmith.checking import check_data

    checked = check_data(CheckConfig.read(config, {"data": source, **given(settings)}))
    if as_json:
        print_json({**checked.report.to_plain(), "written": checked.written})
    else:
        for line in report_lines(checked.report):
            out.print(line, soft_wrap=True)
        print_lines(f"written  {path}" for path in checked.written)
    return 2 if checked.report.count("error") else 0


@data.command(name="tokens")
@flags_of(TokensConfig)
def data_tokens(source: str, /, *, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Show the very tokens that would be trained: trained, context only, special, cut."""
    from tunesmith.checking import show_tokens
    from tunesmith.data.view import write_view

    settled = TokensConfig.read(config, {"data": source, **given(settings)})
    shown = show_tokens(settled)
    if settled.output is not None:
        write_view(settled.output, settled.model, settled.data, shown.proof, shown.rows)
    if as_json:
        return print_json({"proof": shown.proof, "rows": shown.rows})
    for row in shown.rows:
        for line in token_lines(row, settled.ids, out.is_terminal and out.color_system is not None):
            out.print(line, soft_wrap=True)
        out.print()
    out.print("\n".join(proof_lines(shown.proof)), markup=False, soft_wrap=True)
    print_lines([] if settled.output is None else [f"written  {settled.output}"])


@app.command
@flags_of(CompareConfig)
def compare(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Compare methods and baselines on one split: a table, a page, a recommendation."""
    _compare(CompareConfig.read(config, given(settings)), as_json)


@app.command
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
    out.print(comparison.verdict.reason, markup=False)
    out.print(f"report  {comparison.report}", markup=False)


@app.command
def evaluate(
    model: str,
    /,
    *,
    data: str,
    columns: str = "",
    max_generated: int = 32,
    as_json: AsJson = False,
) -> None:
    """Score a run, or a decoder as it is, on all rows of labelled data.

    Parameters
    ----------
    model: A run folder, or a model by catalogue name, folder or hub name.
    data: Labelled data: a file or a catalogue name.
    max_generated: Generation: answer so many rows for ROUGE-L.
    """
    from tunesmith.evaluation.tasks import evaluate as run_stage
    from tunesmith.evaluation.tasks import open_network

    score = run_stage(open_network(model), data, split_mapping(columns), max_generated)
    if as_json:
        return print_json(score)
    out.print(f"{model} on {score.num_rows:,} rows of {data}", markup=False)
    print_lines(f"  {name:<16} {interval}" for name, interval in score.metrics.items())


@app.command
def predict(
    run: str, file: Path, /, *, output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None
) -> None:
    """Predict for every row of a file; writes JSONL with the row and its prediction.

    Parameters
    ----------
    run: A run folder.
    file: CSV, TSV or JSONL with a text (or prompt) column, or plain text with one text per line. A run on pairs wants
        both columns, one on words a list of them or a text with blanks between.
    output: Where to write; standard output when not given.
    """
    from tunesmith.evaluation.predict import predict_file

    lines = [json.dumps(row, ensure_ascii=False) for row in predict_file(run, file)]
    if output is None:
        print("\n".join(lines))
    else:
        write_text(output, "\n".join(lines) + "\n")
        out.print(f"{len(lines):,} predictions written to {output}", markup=False)


@app.command
def chat(run: str, /, *, system: str | None = None, temperature: float = 0.0, max_new_tokens: int = 256) -> None:
    """Talk to a run, or to a decoder as it is, in the terminal. /new starts anew, /quit ends.

    Parameters
    ----------
    run: A run folder, or a model by catalogue name, folder or hub name.
    system: A system prompt.
    temperature: 0 takes the likeliest token each time.
    """
    from tunesmith.evaluation.predict import converse

    converse(run, system, temperature, max_new_tokens)


@app.command
def doctor(folder: Path, /, *, as_json: AsJson = False) -> int:
    """Verify every file of a run, or of the runs of a comparison, and say what can be saved.

    The exit code is 2 when something is damaged.

    Parameters
    ----------
    folder: A run folder, finished or interrupted, or a comparison.
    """
    from tunesmith.runs.doctor import examine

    found = examine(folder)
    if as_json:
        print_json([{**to_plain(health), "is_whole": health.is_whole} for health in found])
    for line, style in () if as_json else doctor_lines(found):
        out.print(line, markup=False, style=style)
    return 0 if all(health.is_whole for health in found) else 2


@app.command
def methods(
    *,
    model: str | None = None,
    markdown: Annotated[bool, Parameter(negative="", help="Print a Markdown table.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the ways to adjust the weights.

    Parameters
    ----------
    model: Say also how many parameters each would train of this model.
    """
    from tunesmith.survey import survey

    rows = survey(model)
    if as_json:
        return print_json(rows)
    if markdown:
        return print(methods_markdown(rows))
    out.print(methods_table(rows))


@app.command
def models(*, as_json: AsJson = False) -> None:
    """List the catalogue's models. Folders and hub names work wherever these do."""
    print_rows(assets.listing("models"), as_json)


@app.command
def datasets(*, as_json: AsJson = False) -> None:
    """List the catalogue's data sets. Files and hub names work wherever these do."""
    print_rows(assets.listing("datasets"), as_json)


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        return print_json(rows)
    out.print(rows_table(rows))


def print_json(value: Any) -> None:
    print(json.dumps(to_plain(value), ensure_ascii=False, indent=1))


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: runs a command and ends the process with its exit code."""
    with listening():
        code = run(sys.argv[1:] if arguments is None else arguments)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code."""
    try:
        code = app(by_our_names(arguments), exit_on_error=False, print_error=False)
    except (InputError, CycloptsError) as error:
        return _complain(str(error).strip() or type(error).__name__)
    except KeyboardInterrupt as stopped:
        return _say_stopped(stopped)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return code if isinstance(code, int) else 0


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _say_stopped(stopped: KeyboardInterrupt) -> int:
    """One line: what stopped it, what is saved, how to go on."""
    by = f"stopped by {stopped}" if isinstance(stopped, Stopped) else "stopped"
    with suppress(OSError):  # after SIGHUP there may be no terminal to write to
        print(". ".join([by, *getattr(stopped, "__notes__", [])]), file=sys.stderr, flush=True)
    return stopped.exit_code if isinstance(stopped, Stopped) else 130


if __name__ == "__main__":
    main()
