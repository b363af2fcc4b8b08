"""A cleaned copy of data files beside the original, which is never touched."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tunesmith.data.files import COMPRESSED, kind_of
from tunesmith.data.problems import Problems
from tunesmith.data.sources import find_files, iterate
from tunesmith.data.store import Rows
from tunesmith.errors import InputError
from tunesmith.records import Examples, Origin, RawRow
from tunesmith.storage import write_text

TABLES = {".csv": ",", ".tsv": "\t"}


def write_clean(data: str, examples: Examples, removed: Mapping[int, str], encoding: str | None) -> list[Path]:
    """Writes, beside each file, NAME.clean with the rows that stay and NAME.removed.jsonl with the others and why.

    CSV and TSV stay what they are, everything else becomes JSONL. Values stand as they were read.

    Args:
        removed: row -> why it is left out.

    Raises:
        InputError: the data is no file, or changed since it was read.
    """
    written = []
    reasons = {str(examples.rows[index].origin): why for index, why in removed.items()}
    known = _places(examples)
    files = find_files(data)
    if not files:
        raise InputError(f"--fix writes a copy of a file, '{data}' is none. Save its rows to one first")
    for path in files:
        kept: list[RawRow] = []
        left: list[dict[str, object]] = []
        for row in iterate(path, Problems(), encoding):
            place = str(row.origin)
            if place not in known:
                left.append({"file": row.origin.file, "line": row.origin.line, "why": "cannot be used"})
            elif place in reasons:
                fields = dict(row.fields)
                left.append({"file": row.origin.file, "line": row.origin.line, "why": reasons[place], "row": fields})
            else:
                kept.append(row)
        written += [_write_kept(path, kept), _write_removed(path, left)]
    return written


def _places(examples: Examples) -> set[str]:
    rows = examples.rows
    origins: Iterator[Origin] = (
        (rows.origin(index) for index in range(len(rows))) if isinstance(rows, Rows) else (row.origin for row in rows)
    )
    return {str(origin) for origin in origins}


def _stem(path: Path) -> str:
    name = path.name
    return name[: -len("".join(ending for ending in path.suffixes if ending.lower() in (*COMPRESSED, kind_of(path))))]


def _write_kept(path: Path, rows: Sequence[RawRow]) -> Path:
    kind = kind_of(path)
    if kind in TABLES and rows:
        text = io.StringIO(newline="")
        table = csv.writer(text, delimiter=TABLES[kind], lineterminator="\n")
        table.writerow(list(rows[0].fields))
        table.writerows([list(row.fields.values()) for row in rows])
        target = path.with_name(f"{_stem(path)}.clean{kind}")
        write_text(target, text.getvalue())
        return target
    target = path.with_name(f"{_stem(path)}.clean.jsonl")
    write_text(target, "".join(json.dumps(dict(row.fields), ensure_ascii=False) + "\n" for row in rows))
    return target


def _write_removed(path: Path, left: Sequence[Mapping[str, object]]) -> Path:
    target = path.with_name(f"{_stem(path)}.removed.jsonl")
    write_text(target, "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in left))
    return target
