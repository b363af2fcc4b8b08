"""What all commands share: where they print, and the flags that each of them has."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from tunesmith.storage import to_plain
from tunesmith.tables import rows_table, run_lines

# Without a terminal nobody needs lines broken at 80 columns.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)

AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print the result as JSON.")]
ConfigFile = Annotated[Path | None, Parameter(name="--config", help="YAML file with any of these keys.")]


def given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def print_run(run: Any, as_json: bool) -> None:
    """What a training did, and what to do with it."""
    if as_json:
        return print_json({"folder": run.folder, **run.manifest})
    print_lines(run_lines(run.folder, run.manifest))


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        out.print(line, markup=False)


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        return print_json(rows)
    out.print(rows_table(rows))


def print_json(value: Any) -> None:
    print(json.dumps(to_plain(value), ensure_ascii=False, indent=1))
