"""Commands that list what there is to choose from, or verify what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tunesmith import assets
from tunesmith.commands.console import AsJson, out, print_json, print_rows
from tunesmith.storage import to_plain
from tunesmith.tables import differing_table, doctor_lines, methods_markdown, methods_table, runs_table


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


def models(*, as_json: AsJson = False) -> None:
    """List the catalogue's models. Folders and hub names work wherever these do."""
    print_rows(assets.listing("models"), as_json)


def datasets(*, as_json: AsJson = False) -> None:
    """List the catalogue's data sets. Files and hub names work wherever these do."""
    print_rows(assets.listing("datasets"), as_json)


def runs(
    *folders: Path,
    method: str | None = None,
    model: str | None = None,
    data: str | None = None,
    state: str | None = None,
    sort: str = "created",
    as_json: AsJson = False,
) -> None:
    """List past runs; several run folders are set beside each other, with the keys in which they differ.

    Parameters
    ----------
    folders: Folders with runs in them, or run folders; runs/ when none is given.
    method: Only runs whose method contains this.
    model: Only runs whose model contains this.
    data: Only runs whose data contains this.
    state: Only finished, interrupted, running or damaged runs.
    sort: created, loss, value, seconds, size, steps, folder, model, data, method or state.
    """
    from tunesmith.runs.past import choose_runs, differing, find_runs, sort_runs

    found = find_runs(folders or (Path("runs"),))
    chosen = sort_runs(choose_runs(found, {"method": method, "model": model, "data": data, "state": state}), sort)
    beside = len(folders) > 1
    if as_json:
        return print_json({"runs": chosen, "differing": differing(chosen)} if beside else chosen)
    if not chosen:
        return out.print(f"none of {len(found):,} runs fits", markup=False)
    out.print(runs_table(chosen))
    if beside:
        out.print(differing_table([run.folder for run in chosen], differing(chosen)))
