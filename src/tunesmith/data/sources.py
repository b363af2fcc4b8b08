"""Rows from where they are: files, folders, the catalogue, the hub, or the caller's own objects."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from tunesmith import assets
from tunesmith.data.files import COMPRESSED, kind_of
from tunesmith.data.formats import recognise
from tunesmith.data.problems import Problems
from tunesmith.data.readers import READERS, as_object
from tunesmith.errors import InputError, nearest
from tunesmith.records import Examples, Origin, RawRow, Task
from tunesmith.terminal import count_aloud

READABLE = f"{', '.join(READERS)}, each also with {', '.join(COMPRESSED)}"
NAMES_SHOWN = 20
# In which prompts stand alone.
PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "text", "messages")


def load(
    data: Any,
    task: Task | None = None,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    rejects: Path | None = None,
) -> Examples:
    """Rows from a catalogue name, files, a folder, a hub name, a list of mappings, a DataFrame or a `datasets` object.

    Args:
        data: one of these, or several files separated by commas; names may hold *, ? and [...].
        encoding: of files, when it is not UTF-8.
        rejects: a file for rows that cannot be used, which are then left out and not refused.

    Raises:
        InputError: nothing found under that name, or rows that cannot be used.
    """
    problems = Problems(rejects)
    rows = count_aloud("rows read", _find_rows(data, task, problems, encoding))
    examples = recognise(rows, task, columns, problems)
    note = problems.note()
    if not note:
        return examples
    return replace(examples, recognised=f"{examples.recognised}; {note}")


def load_prompts(
    data: Any,
    task: Task | None = None,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    rejects: Path | None = None,
) -> Examples:
    """Rows as `load` has them, of data that need hold nothing but prompts: rows in a usual column for these, which fit
    no format, are texts."""
    try:
        return load(data, task, columns, encoding, rejects)
    except InputError as problem:
        column = None if task or columns else _prompt_column(data, encoding)
        if column is None:
            raise problem
    return load(data, "text", {"text": column}, encoding, rejects)


def _prompt_column(data: Any, encoding: str | None) -> str | None:
    paths = find_files(str(data)) if isinstance(data, str | Path) else []
    first = next(iter(iterate(paths[0], Problems(), encoding)), None) if paths else None
    return None if first is None else next((name for name in PROMPT_COLUMNS if name in first.fields), None)


def _find_rows(data: Any, task: Task | None, problems: Problems, encoding: str | None) -> Iterator[RawRow]:
    if not isinstance(data, str | Path):
        return _rows_of_object(data, problems)
    name = str(data)
    if assets.is_dataset(name):
        return _catalogue_rows(name, task, problems)
    paths = find_files(name)
    if paths:
        return chain.from_iterable(iterate(path, problems, encoding) for path in paths)
    if name.partition("@")[0].partition(":")[0].count("/") == 1:
        return _hub_rows(name, problems)
    raise InputError(
        f"unknown data '{name}': no such file, and not in the catalogue ({nearest(name, assets.DATASETS)}). "
        "A hub name looks like owner/name"
    )


def _catalogue_rows(name: str, task: Task | None, problems: Problems) -> Iterator[RawRow]:
    known = assets.DATASETS[name].tasks
    if task is not None and task not in known:
        raise InputError(f"'{name}' has no rows for {task}; it has {', '.join(known)}")
    for row in iterate(assets.dataset_file(name, task), problems):
        yield RawRow(row.fields, Origin(name, row.origin.line))


def _rows_of_object(data: Any, problems: Problems) -> Iterator[RawRow]:
    """pandas and `datasets` are told apart by what they can do, so neither is imported for it."""
    if hasattr(data, "to_dict") and hasattr(data, "iloc"):
        _check_columns(list(data.columns))
        data = data.to_dict("records")
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise InputError(
            f"data is {type(data).__name__}; give a name, a file, rows, a DataFrame, or one split of a Dataset"
        )
    for number, fields in enumerate(data, 1):
        place = Origin("<rows>", number)
        if not isinstance(fields, Mapping):
            raise InputError(f"row {number} is {type(fields).__name__}, expected a mapping of column to value")
        try:
            yield RawRow(as_object(dict(fields)), place)
        except ValueError as error:
            problems.add(place, str(error), fields)


def _check_columns(columns: Sequence[Any]) -> None:
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"<rows>: the column '{twice}' stands twice in the DataFrame. Rename one")


def _hub_rows(name: str, problems: Problems) -> Iterator[RawRow]:
    """owner/name, owner/name:config, owner/name@split."""
    import datasets  # slow to import, and most data is a file

    address, _, part = name.partition("@")
    repository, _, config = address.partition(":")
    try:
        found = datasets.load_dataset(repository, config or None, split=part or "train")
    except Exception as error:  # the hub's client raises many kinds, none of which is our fault
        raise InputError(
            f"cannot load '{repository}' from the hub: {str(error).strip().splitlines()[0]}. "
            f"Files ({READABLE}) and catalogue names ({', '.join(assets.DATASETS)}) need no hub"
        ) from error
    for number, row in enumerate(found, 1):
        place = Origin(name, number)
        try:
            yield RawRow(as_object(dict(row)), place)
        except ValueError as error:
            problems.add(place, str(error), row)


def find_files(name: str) -> list[Path]:
    """The files meant by a path, a folder, a pattern, or several of them separated by commas; none for other names.

    Raises:
        InputError: it looks like a file but there is none, or a folder has nothing that can be read.
    """
    path = Path(name).expanduser()
    if "," in name and not path.exists():
        parts = [part.strip() for part in name.split(",") if part.strip()]
        return [path for part in parts for path in find_files(part) or [_missing(Path(part).expanduser())]]
    if path.is_dir():
        return _files_of_folder(path)
    if path.exists() or path.is_symlink():
        return [path]
    if glob.has_magic(name):
        found = [Path(hit) for hit in sorted(glob.glob(str(path), recursive=True)) if Path(hit).is_file()]
        if not found:
            raise InputError(f"{name}: the pattern fits no file. Put it in quotes, and check the folder")
        return found
    if kind_of(path) in READERS or name.startswith((".", "/", "~")):
        return [_missing(path)]
    return []


def _files_of_folder(folder: Path) -> list[Path]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    found = [entry for entry in entries if kind_of(entry) in READERS]
    if not found:
        names = ", ".join(entry.name for entry in entries[:NAMES_SHOWN]) or "nothing"
        raise InputError(f"{folder}: this folder has no file that can be read ({READABLE}), it has {names}")
    kinds = sorted({kind_of(entry) for entry in found})
    if len(kinds) > 1:
        raise InputError(
            f"{folder}: this folder has files of several kinds ({', '.join(kinds)}). "
            f"Give those that are meant: '{folder}/*{kinds[0]}'"
        )
    return found


def _missing(path: Path) -> Path:
    """Raises what to say of a file that is not there; with the neighbour that was probably meant."""
    folder = path.parent
    try:
        entries = list(folder.iterdir()) if folder.is_dir() else []
    except OSError:
        entries = []
    names = sorted(entry.name for entry in entries if kind_of(entry) in READERS)
    if not folder.is_dir():
        raise InputError(f"{path}: no such file, nor its folder {folder}. Check the path")
    beside = nearest(path.name, names[:NAMES_SHOWN]) if names else f"{folder} has no file that can be read"
    raise InputError(f"{path}: no such file: {beside}")


def read_rows(path: str | Path) -> list[RawRow]:
    """All rows of one file, in memory.

    Raises:
        InputError: no such file, an unknown kind, or rows that cannot be read, each by line.
    """
    problems = Problems()
    path = Path(path).expanduser()
    rows = list(iterate(path, problems))
    problems.settle(str(path))
    return rows


def iterate(path: Path, problems: Problems, encoding: str | None = None) -> Iterator[RawRow]:
    """The rows of one file, one after the other; what cannot be read goes to `problems`.

    Raises:
        InputError: no such file, an unknown kind, or nothing in it.
    """
    _check_file(path)
    reader = READERS[kind_of(path)]
    before, count = problems.count, 0
    try:
        for row in reader.read(path, problems, encoding):
            count += 1
            yield row
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not count and problems.count == before:
        raise InputError(f"{path}: {_explain_nothing(path, reader.empty)}")


def _explain_nothing(path: Path, empty: str) -> str:
    size = path.stat().st_size
    if size == 0:
        return "the file is empty (0 bytes). Is it the one that was meant, and was it written to its end?"
    if kind_of(path) in (".parquet", ".arrow"):
        return "no rows. Is it the file that was meant?"
    with path.open("rb") as file:
        is_blank = path.suffix.lower() not in COMPRESSED and not file.read(1_000_000).strip()
    return ("only blank lines" if is_blank else empty) + ". Is it the file that was meant?"


def _check_file(path: Path) -> None:
    try:
        is_file = path.is_file()
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError(f"{path} is a link to {path.readlink()}, which is not there. Mend the link") from None
        _missing(path)
    except OSError as error:
        loop = " (a link that leads to itself?)" if path.is_symlink() else ""
        raise InputError(f"{path}: cannot be read: {error.strerror}{loop}. Give the file itself") from error
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file ({READABLE})")
    if not is_file:
        raise InputError(f"{path} is no ordinary file. Write its rows to one first")
    if kind_of(path) not in READERS:
        raise InputError(f"{path}: unknown kind of file '{path.suffix}'. Readable: {READABLE}")
