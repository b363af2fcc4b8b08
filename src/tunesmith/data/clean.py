"""A cleaned copy of data files beside the original, which is never touched."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from tunesmith.data.files import COMPRESSED, kind_of
from tunesmith.data.problems import Problems
from tunesmith.data.readers import delimiter_of
from tunesmith.data.sources import find_files, iterate
from tunesmith.data.store import Stored
from tunesmith.errors import InputError
from tunesmith.records import Examples, RawRow
from tunesmith.storage import writing

TABLES = (".csv", ".tsv")


def write_clean(data: str, examples: Examples, removed: Mapping[int, str], encoding: str | None) -> list[Path]:
    """Writes, beside each file, NAME.clean with the rows that stay and NAME.removed.jsonl with the others and why.

    CSV and TSV stay what they are, everything else becomes JSONL. Values stand as they were read.

    Args:
        removed: row -> why it is left out.

    Raises:
        InputError: the data is no file, or has other rows than those that were read.
    """
    reasons = {str(examples.rows[index].origin): why for index, why in removed.items()}
    known = _places(examples)
    files = find_files(data)
    if not files:
        raise InputError(f"--fix writes a copy of a file, '{data}' is none. Save its rows to one first")
    written = []
    for path in files:
        table = path.with_name(f"{_stem(path)}.clean{kind_of(path) if kind_of(path) in TABLES else '.jsonl'}")
        others = path.with_name(f"{_stem(path)}.removed.jsonl")
        with writing(table) as kept, writing(others) as left:
            write = _row_writer(path, kept, encoding)
            for row in iterate(path, Problems(), encoding):
                place = str(row.origin)
                if place in known and place not in reasons:
                    write(row.fields)
                else:
                    left.write(_removed_line(row, reasons.get(place)))
                known.discard(place)
        written += [table, others]
    if known:
        raise InputError(f"{data} changed while it was looked at: {min(known)} is not there any more. Check it again")
    return written


def _places(examples: Examples) -> set[str]:
    rows = examples.rows
    if isinstance(rows, Stored):
        return {str(rows.origin(index)) for index in range(len(rows))}
    return {str(row.origin) for row in rows}


def _stem(path: Path) -> str:
    name = path.name
    return name[: -len("".join(ending for ending in path.suffixes if ending.lower() in (*COMPRESSED, kind_of(path))))]


def _row_writer(path: Path, file: TextIO, encoding: str | None) -> Callable[[Mapping[str, object]], object]:
    """Writes a row's values as the file at `path` has them; a table with its own delimiter, after its header."""
    if kind_of(path) not in TABLES:
        return lambda fields: file.write(json.dumps(dict(fields), ensure_ascii=False) + "\n")
    header = next(iterate(path, Problems(), encoding)).fields
    table = csv.writer(file, delimiter=delimiter_of(path, encoding), lineterminator="\n")
    table.writerow(header)
    return lambda fields: table.writerow(fields.values())


def _removed_line(row: RawRow, why: str | None) -> str:
    """Rows without a reason are those that could not be read in the first place."""
    place = {"file": row.origin.file, "line": row.origin.line}
    found = {**place, "why": "cannot be used"} if why is None else {**place, "why": why, "row": dict(row.fields)}
    return json.dumps(found, ensure_ascii=False) + "\n"
