"""Rows from where they are: files, the catalogue, the hub, or the caller's own objects.

CSV and JSONL are read here, not by a library: text stays what was written ("NA", "007", leading
blanks), every problem is named by its physical line, and all of a file's problems come at once.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith import assets
from tunesmith.data.formats import list_problems, recognise
from tunesmith.errors import InputError, nearest
from tunesmith.records import Examples, Origin, RawRow, Task
from tunesmith.storage import each_key_once

READABLE = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
# One field may be a whole book; csv's own limit of 128 KiB would refuse it.
LONGEST_FIELD = 2**31 - 1


def load(data: Any, task: Task | None = None, columns: Mapping[str, str] | None = None) -> Examples:
    """Rows from a catalogue name, a file, a hub name, a list of mappings, a DataFrame or a `datasets` object.

    Raises:
        InputError: nothing found under that name, or rows that cannot be used.
    """
    return recognise(_find_rows(data, task), task, columns)


def _find_rows(data: Any, task: Task | None) -> list[RawRow]:
    if not isinstance(data, str | Path):
        return _rows_of_object(data)
    name = str(data)
    if assets.is_dataset(name):
        return _catalogue_rows(name, task)
    path = Path(name).expanduser()
    if path.exists() or path.suffix.lower() in READABLE or name.startswith((".", "/", "~")):
        return read_rows(path)
    if name.count("/") == 1:
        return _hub_rows(name)
    raise InputError(
        f"unknown data '{name}': no such file, and not in the catalogue ({nearest(name, assets.DATASETS)}). "
        "A hub name looks like owner/name"
    )


def _catalogue_rows(name: str, task: Task | None) -> list[RawRow]:
    known = assets.DATASETS[name].tasks
    if task is not None and task not in known:
        raise InputError(f"'{name}' has no rows for {task}; it has {', '.join(known)}")
    rows = read_rows(assets.dataset_file(name, task))
    return [RawRow(row.fields, Origin(name, row.origin.line)) for row in rows]


def _rows_of_object(data: Any) -> list[RawRow]:
    """pandas and `datasets` are told apart by what they can do, so neither is imported for it."""
    if hasattr(data, "to_dict") and hasattr(data, "iloc"):
        data = data.to_dict("records")
    if not isinstance(data, Iterable):
        raise InputError(f"data is {type(data).__name__}; give a name, a file, rows, a DataFrame or a Dataset")
    rows = []
    for number, fields in enumerate(data, 1):
        if not isinstance(fields, Mapping):
            raise InputError(f"row {number} is {type(fields).__name__}, expected a mapping of column to value")
        rows.append(RawRow(dict(fields), Origin("<rows>", number)))
    return rows


def _hub_rows(name: str) -> list[RawRow]:
    """owner/name, owner/name:config, owner/name@split."""
    import datasets  # slow to import, and most data is a file

    address, _, part = name.partition("@")
    repository, _, config = address.partition(":")
    try:
        found = datasets.load_dataset(repository, config or None, split=part or "train")
    except Exception as error:  # the hub's client raises many kinds, none of which is our fault
        raise InputError(
            f"cannot load '{repository}' from the hub: {str(error).strip().splitlines()[0]}. "
            f"Files ({', '.join(READABLE)}) and catalogue names ({', '.join(assets.DATASETS)}) need no hub"
        ) from error
    return [RawRow(dict(row), Origin(name, number)) for number, row in enumerate(found, 1)]


def read_rows(path: str | Path) -> list[RawRow]:
    """All rows of a CSV, TSV, JSONL or JSON file.

    Raises:
        InputError: no such file, an unknown kind, or rows that cannot be read, each by line.
    """
    path = Path(path).expanduser()
    _check_file(path)
    text = _decode(path)
    kind = path.suffix.lower()
    if not text.strip():
        size = path.stat().st_size
        raise InputError(f"{path}: the file is empty ({size:,} bytes)" if size == 0 else f"{path}: only blank lines")
    reader = _READERS[kind]
    problems: list[str] = []
    rows = list(reader(text, path, problems))
    if problems:
        raise InputError(list_problems(problems, str(path)))
    if not rows:
        raise InputError(f"{path}: no rows" + (", only a header" if kind in (".csv", ".tsv") else ""))
    return rows


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file ({', '.join(READABLE)})")
    if not path.is_file():
        folder = path.parent
        entries = folder.iterdir() if folder.is_dir() else []
        names = [entry.name for entry in entries if entry.is_file() and entry.suffix.lower() in READABLE]
        beside = f": {nearest(path.name, sorted(names)[:20])}" if names else ""
        raise InputError(f"{path}: no such file{beside}")
    if path.suffix.lower() not in READABLE:
        raise InputError(f"{path}: unknown kind of file '{path.suffix}'. Readable: {', '.join(READABLE)}")


def _decode(path: Path) -> str:
    """UTF-8, with or without a byte-order mark; anything else is named by line and byte."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        guess = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "cp1252"
        raise InputError(
            f"{path}:{line}: not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start:,}. It may be {guess}; "
            f"convert it with: iconv -f {guess} -t utf-8 {path.name} > utf8-{path.name}"
        ) from error


def _read_delimited(text: str, path: Path, problems: list[str]) -> Iterator[RawRow]:
    csv.field_size_limit(LONGEST_FIELD)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _find_delimiter(text)
    # newline="": line ends inside quotes belong to the text and stay as they are.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            problems.append(f"{path}:{start}: {_explain_csv(error)}")
            return
        if fields is None:
            return
        if not fields:
            continue
        if header is None:
            header = fields
            _check_header(header, path, start)
        elif len(fields) != len(header):
            problems.append(f"{path}:{start}: {len(fields)} fields, the header has {len(header)}")
        else:
            yield RawRow(dict(zip(header, fields, strict=True)), Origin(str(path), start))


def _explain_csv(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "a quote is opened here and never closed"
    return f"not valid CSV: {error}"


def _find_delimiter(text: str) -> str:
    """The comma, unless the header has none and another usual one."""
    header = text.split("\n", 1)[0]
    return max(",;\t|", key=lambda mark: (header.count(mark) > 0 and mark == ",", header.count(mark)))


def _check_header(header: Sequence[str], path: Path, line: int) -> None:
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}:{line}: the column '{twice}' stands twice in the header. Rename one")


def _read_json_lines(text: str, path: Path, problems: list[str]) -> Iterator[RawRow]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield RawRow(_as_object(_parse_json(line)), Origin(str(path), number))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")


def _read_json(text: str, path: Path, problems: list[str]) -> Iterator[RawRow]:
    """A list of objects; rows are named by the line on which each begins."""
    decoder = json.JSONDecoder(object_pairs_hook=each_key_once, parse_constant=_refuse_constant)
    place = text.find("[") + 1
    if place == 0 or text[: place - 1].strip():
        raise InputError(f"{path}: expected a list of objects; for one object per line use the ending .jsonl")
    while True:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        if place >= len(text) or text[place] == "]":
            return
        line = text.count("\n", 0, place) + 1
        try:
            value, place = decoder.raw_decode(text, place)
            row = _as_object(value)
        except ValueError as error:
            problems.append(f"{path}:{line}: {_explain_json(error)}")
            return
        yield RawRow(row, Origin(str(path), line))


def _parse_json(line: str) -> object:
    try:
        return json.loads(line, object_pairs_hook=each_key_once, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ValueError(_explain_json(error)) from error


def _explain_json(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg} at column {error.colno}"
    return str(error)


def _as_object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(value), f"the value {value!r}")
        raise ValueError(f'{kind}, expected an object like {{"text": ..., "label": ...}}')
    _refuse_surrogates(value)
    return value


def _refuse_surrogates(value: object) -> None:
    r"""Half a character ("\\ud83d" alone) is legal JSON, but no tokenizer can take it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"half of a surrogate pair at character {error.start + 1} of a text") from error
    elif isinstance(value, dict):
        for item in value.values():
            _refuse_surrogates(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_surrogates(item)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


_READERS = {
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
}
