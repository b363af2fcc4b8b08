"""The kinds of files: each read as it stands, row by row, every row with its place.

READERS is the table: one row per ending. CSV and JSONL are read here, not by a library: text stays what was
written ("NA", "007", leading blanks), and every problem is named by its physical line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.files import kind_of, open_bytes, read_lines
from tunesmith.data.problems import Problems
from tunesmith.errors import InputError
from tunesmith.records import Origin, RawRow
from tunesmith.storage import each_key_once

# One field may be a whole book; csv's own limit of 128 KiB would refuse it.
LONGEST_FIELD = 2**31 - 1
DELIMITERS = ",;\t|"
ROWS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Reader:
    """`read` yields the rows of one file, in order. `empty` is what a file without rows is said to have."""

    read: Callable[[Path, Problems, str | None], Iterator[RawRow]]
    empty: str = "no rows"


def read_delimited(path: Path, problems: Problems, encoding: str | None, delimiter: str = "") -> Iterator[RawRow]:
    csv.field_size_limit(LONGEST_FIELD)
    lines = _Counted(read_lines(path, problems, encoding))
    first = next(lines, None)
    while first is not None and not first.strip():
        first = next(lines, None)
    if first is None:
        return
    rows = csv.reader(lines.after(first), delimiter=delimiter or _find_delimiter(first), strict=True)
    header: list[str] | None = None
    while True:
        lines.begin_row()
        try:
            fields = next(rows, None)
        except csv.Error as error:
            problems.add(Origin(str(path), lines.start), _explain_csv(error))
            return
        if fields is None:
            return
        place = Origin(str(path), lines.start)
        if not fields:
            continue
        if header is None:
            header = fields
            if fault := _find_header_fault(header):
                problems.add(place, fault, fields)
                return
        elif len(fields) != len(header):
            problems.add(place, _explain_fields(len(fields), len(header)), fields)
        else:
            yield RawRow(dict(zip(header, fields, strict=True)), place)


class _Counted(Iterator[str]):
    """Lines for `csv`, which asks for as many as a row needs; `start` is the line on which the row begins."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self._held: str | None = None
        self._number = 0
        self._is_new = True
        self.start = 0

    def after(self, line: str) -> _Counted:
        """The same lines again from `line`, which was looked at."""
        self._held = line
        return self

    def begin_row(self) -> None:
        self._is_new = True

    def __next__(self) -> str:
        if self._held is not None:
            line, self._held = self._held, None
        else:
            self._number, line = next(self._lines)
        if self._is_new:
            self.start, self._is_new = self._number, False
        return line


def _explain_csv(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "a quote is opened here and never closed. Close it, or double each quote within a text"
    if "new-line character" in str(error):
        return r"lines end with \r alone, as on old Macintoshes. Save the file with usual line ends"
    if "expected after" in str(error):
        return "text goes on after a closing quote. Double each quote within a text, and quote the whole of it"
    return f"not valid CSV: {error}. Quote texts that hold the delimiter or a quote"


def _explain_fields(num_fields: int, num_columns: int) -> str:
    text = f"{num_fields} fields, the header has {num_columns}. "
    if num_fields > num_columns:
        return text + "Put quotes around a text that holds the delimiter"
    return text + "Add the missing ones, empty where there is nothing"


def delimiter_of(path: Path, encoding: str | None) -> str:
    """What stands between the fields of a CSV or TSV file."""
    lines = (line for _, line in read_lines(path, Problems(), encoding))
    return "\t" if kind_of(path) == ".tsv" else _find_delimiter(next(filter(str.strip, lines), ""))


def _find_delimiter(header: str) -> str:
    """The comma, unless the header has none and another usual one."""
    return max(DELIMITERS, key=lambda mark: (header.count(mark) > 0 and mark == ",", header.count(mark)))


def _find_header_fault(header: Sequence[str]) -> str:
    if any("\x00" in name for name in header):
        return "NUL characters in the header. The file may be UTF-16: --encoding utf-16"
    twice = next((name for name in header if header.count(name) > 1), None)
    return "" if twice is None else f"the column '{twice}' stands twice in the header. Rename one"


def read_tabbed(path: Path, problems: Problems, encoding: str | None) -> Iterator[RawRow]:
    return read_delimited(path, problems, encoding, "\t")


def read_json_lines(path: Path, problems: Problems, encoding: str | None) -> Iterator[RawRow]:
    decode = _decoder().decode
    for number, line in read_lines(path, problems, encoding):
        if line.isspace():
            continue
        place = Origin(str(path), number)
        try:
            yield RawRow(as_object(decode(line)), place)
        except (ValueError, RecursionError) as error:
            problems.add(place, _explain_json(error), line.rstrip("\n"))


def read_json(path: Path, problems: Problems, encoding: str | None) -> Iterator[RawRow]:
    """A list of objects; rows are named by the line on which each begins. Or one object with such a list in it."""
    text = "".join(line for _, line in read_lines(path, problems, encoding))
    if not text.strip() or problems.count:
        return
    if text.lstrip().startswith("{"):
        yield from _read_document(text, path, problems)
        return
    decoder = _decoder()
    place = text.find("[") + 1
    if place == 0 or text[: place - 1].strip():
        raise InputError(f"{path}: {_NO_LIST}")
    line, counted = 1, 0
    while True:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        line, counted = line + text.count("\n", counted, place), place
        if place >= len(text):
            problems.add(Origin(str(path), line), "the list is not closed: the file ends before its ]. Is it whole?")
            return
        if text[place] == "]":
            return
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            at = Origin(str(path), error.lineno if isinstance(error, json.JSONDecodeError) else line)
            problems.add(at, _explain_json(error))
            return
        try:
            yield RawRow(as_object(value), Origin(str(path), line))
        except ValueError as error:
            problems.add(Origin(str(path), line), str(error), value)


_NO_LIST = "expected a list of objects; for one object per line use the ending .jsonl"


def _read_document(text: str, path: Path, problems: Problems) -> Iterator[RawRow]:
    """{"data": [...]}, as SQuAD's files are and some exports; rows are named by their number."""
    try:
        document = _decoder().decode(text)
    except (ValueError, RecursionError) as error:
        more = f"; {_NO_LIST}" if "Extra data" in str(error) else ""
        problems.add(Origin(str(path), getattr(error, "lineno", 1)), _explain_json(error) + more)
        return
    lists = [value for value in document.values() if isinstance(value, list) and value]
    if len(lists) != 1:
        raise InputError(f"{path}: an object with {len(lists)} lists in it; {_NO_LIST}")
    (rows,) = lists
    if isinstance(rows[0], dict) and "paragraphs" in rows[0]:
        rows = list(_questions(rows))
    for number, value in enumerate(rows, 1):
        try:
            yield RawRow(as_object(value), Origin(str(path), number))
        except ValueError as error:
            problems.add(Origin(str(path), number), str(error), value)


def _questions(articles: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """SQuAD's articles, of paragraphs, of questions, as flat rows."""
    for article in articles:
        for paragraph in article.get("paragraphs", ()):
            for asked in paragraph.get("qas", ()):
                answers = asked.get("answers", ())
                yield {
                    "context": paragraph.get("context"),
                    "question": asked.get("question"),
                    "answers": {
                        "text": [answer.get("text") for answer in answers],
                        "answer_start": [answer.get("answer_start") for answer in answers],
                    },
                }


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=each_key_once, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number. Write null, or leave the row out")


def _explain_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        advice = ". One object per line, in double quotes; `python -m json.tool` shows where it breaks"
        return f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}{advice}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def as_object(value: object) -> dict[str, object]:
    """A JSON value as a row.

    Raises:
        ValueError: it is no object, or holds what no tokenizer can take.
    """
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(value), f"the value {value!r}")
        raise ValueError(f'{kind}, expected an object like {{"text": ..., "label": ...}}')
    _refuse_surrogates(value)
    return value


def _refuse_surrogates(value: object) -> None:
    r"""Half a character ("\\ud83d" alone) is legal JSON, but no tokenizer can take it."""
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                where = f"at character {error.start + 1} of a text"
                raise ValueError(f"half of a surrogate pair {where}. Write the whole character, or U+FFFD") from error
    elif isinstance(value, dict):
        for item in value.values():
            _refuse_surrogates(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_surrogates(item)


def read_text(path: Path, problems: Problems, encoding: str | None) -> Iterator[RawRow]:
    """One text per line; blank lines are none."""
    for number, line in read_lines(path, problems, encoding):
        text = line.removesuffix("\n").removesuffix("\r")
        if text.strip():
            yield RawRow({"text": text}, Origin(str(path), number))


def read_parquet(path: Path, problems: Problems, encoding: str | None) -> Iterator[RawRow]:
    import pyarrow.parquet as pq

    with _named(path, "Parquet"), open_bytes(path) as handle:
        yield from _rows_of_batches(pq.ParquetFile(handle).iter_batches(ROWS_AT_ONCE), path, problems)


def read_arrow(path: Path, problems: Problems, encoding: str | None) -> Iterator[RawRow]:
    """Arrow's file or stream format; `datasets` writes the latter."""
    import pyarrow as pa

    with _named(path, "Arrow"), open_bytes(path) as handle:
        if handle.read(6) == b"ARROW1":
            handle.seek(0)
            file = pa.ipc.open_file(handle)
            batches: Iterator[Any] = (file.get_batch(index) for index in range(file.num_record_batches))
        else:
            handle.seek(0)
            batches = iter(pa.ipc.open_stream(handle))
        yield from _rows_of_batches(batches, path, problems)


@contextmanager
def _named(path: Path, kind: str) -> Iterator[None]:
    """Arrow's errors as ours, by file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a whole {kind} file ({words[:160]}). Fetch or write it again") from error


def _rows_of_batches(batches: Iterator[Any], path: Path, problems: Problems) -> Iterator[RawRow]:
    number = 0
    for batch in batches:
        for fields in batch.to_pylist():
            number += 1
            place = Origin(str(path), number)
            try:
                yield RawRow(as_object(fields), place)
            except ValueError as error:
                problems.add(place, str(error), fields)


_TABLE = "no rows, only a header"
READERS: Mapping[str, Reader] = {
    ".csv": Reader(read_delimited, _TABLE),
    ".tsv": Reader(read_tabbed, _TABLE),
    ".jsonl": Reader(read_json_lines),
    ".ndjson": Reader(read_json_lines),
    ".json": Reader(read_json),
    ".parquet": Reader(read_parquet),
    ".arrow": Reader(read_arrow),
    ".txt": Reader(read_text),
}
