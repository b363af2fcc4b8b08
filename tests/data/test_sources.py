"""Files to rows: nothing changed, every problem named by its line."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data import sources
from tunesmith.data.readers import READERS, Reader
from tunesmith.errors import InputError
from tunesmith.records import RawRow

# Everything a text may hold; half characters cannot be written as UTF-8.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TRICKY = ["NA", "null", "None", "007", " leading", "trailing ", "a,b", 'say "x"', "two\nlines", "two\r\nlines", "é🙂"]
ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def written_csv(path: Path, rows: list[tuple[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("text", "label"), *rows])
    return path


def fields(path: Path) -> list[tuple[Any, ...]]:
    return [tuple(row.fields.values()) for row in sources.read_rows(path)]


@ONE_FOLDER
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
def test_csv_keeps_every_character(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    assert fields(written_csv(tmp_path / "d.csv", rows)) == rows


@ONE_FOLDER
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
def test_jsonl_and_json_keep_every_character(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    objects = [{"text": text, "label": label} for text, label in rows]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in objects)
    (tmp_path / "d.jsonl").write_text(lines, encoding="utf-8", newline="")
    (tmp_path / "d.json").write_text(json.dumps(objects, indent=1), encoding="utf-8", newline="")
    assert fields(tmp_path / "d.jsonl") == fields(tmp_path / "d.json") == rows


def test_a_reader_that_changes_a_character_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = READERS[".csv"].read

    def stripping(*given: Any) -> Any:
        for row in original(*given):
            yield RawRow({key: str(value).strip() for key, value in row.fields.items()}, row.origin)

    monkeypatch.setitem(READERS, ".csv", Reader(stripping))
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        test_csv_keeps_every_character(tmp_path=tmp_path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_found(tmp_path: Path, delimiter: str) -> None:
    rows = [(text, "x") for text in TRICKY]
    assert fields(written_csv(tmp_path / "d.csv", rows, delimiter)) == rows


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes(b"\xef\xbb\xbftext,label\r\na,b\r\n")
    assert sources.read_rows(tmp_path / "d.csv")[0].fields == {"text": "a", "label": "b"}


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('text,label\n"two\nlines",a\n\nlast,b\n')
    assert [row.origin.line for row in sources.read_rows(tmp_path / "d.csv")] == [2, 5]
    (tmp_path / "d.jsonl").write_text('\n{"text": "a"}\n\n{"text": "b"}\n')
    assert [row.origin.line for row in sources.read_rows(tmp_path / "d.jsonl")] == [2, 4]
    (tmp_path / "d.json").write_text('[\n {"text": "a"},\n {"text":\n  "b"}\n]')
    assert [row.origin.line for row in sources.read_rows(tmp_path / "d.json")] == [2, 3]


def test_a_field_may_be_a_book(tmp_path: Path) -> None:
    long = "word " * 100_000
    assert fields(written_csv(tmp_path / "d.csv", [(long, "x")])) == [(long, "x")]


BAD: list[tuple[str, bytes, str]] = [
    ("d.csv", b"", "d.csv: the file is empty (0 bytes)"),
    ("d.csv", b" \n\n", "d.csv: only blank lines"),
    ("d.csv", b"text,label\n", "d.csv: no rows, only a header"),
    ("d.csv", b"text,text\na,b\n", "d.csv:1: the column 'text' stands twice in the header. Rename one"),
    ("d.csv", b"text,label\na,b,c\n", "d.csv:2: 3 fields, the header has 2"),
    ("d.csv", b"text,label\na,b\nc\n", "d.csv:3: 1 fields, the header has 2"),
    ("d.csv", b'text,label\na,b\n"c,d\ne,f\n', "d.csv:3: a quote is opened here and never closed"),
    ("d.csv", b"text,label\nca\xe9,b\n", "d.csv:2: not UTF-8: byte 0xe9 at offset 13. It may be cp1252"),
    ("d.csv", "t\u00e8".encode("utf-16-le"), "d.csv:1: not UTF-8: byte 0xe8 at offset 2. It may be utf-16"),
    ("d.jsonl", b'{"text": "a"}\n{"text": }\n', "d.jsonl:2: not valid JSON: Expecting value at column 10"),
    ("d.jsonl", b'["a", "b"]\n', "d.jsonl:1: a list, expected an object"),
    ("d.jsonl", b'"a"\n', "d.jsonl:1: a string, expected an object"),
    ("d.jsonl", b'{"a": 1, "a": 2}\n', "d.jsonl:1: the key 'a' stands twice"),
    ("d.jsonl", b'{"a": NaN}\n', "d.jsonl:1: NaN is not a JSON number"),
    ("d.jsonl", b'{"a": "x\\ud83d"}\n', "d.jsonl:1: half of a surrogate pair at character 2 of a text"),
    ("d.json", b'{"a": 1}', "d.json: an object with 0 lists in it; expected a list of objects"),
    ("d.json", b'[{"a": 1},\n{"a" 2}]', "d.json:2: not valid JSON: Expecting ':' delimiter"),
    ("d.xlsx", b"x", "d.xlsx: unknown kind of file '.xlsx'. Readable: .csv"),
]


@pytest.mark.parametrize(("name", "raw", "message"), BAD, ids=[f"{n}-{m[:40]}" for n, _, m in BAD])
def test_bad_files(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(InputError) as caught:
        sources.read_rows(tmp_path / name)
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(message)


def test_all_problems_of_a_file_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("\n".join(["{}", "[]"] * 30))
    with pytest.raises(InputError) as caught:
        sources.read_rows(tmp_path / "d.jsonl")
    assert "30 problems" in str(caught.value)
    assert str(caught.value).count("expected an object") == 20


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("text,label\na,b\n")
    with pytest.raises(InputError, match=r"review\.csv: no such file: did you mean 'reviews\.csv'"):
        sources.load(tmp_path / "review.csv")
    assert len(sources.load(tmp_path, "text").rows) == 1, "a folder is its files"


def test_unknown_names_list_the_catalogue() -> None:
    with pytest.raises(InputError, match=r"unknown data 'vader-movie'.*did you mean 'vader-movies'"):
        sources.load("vader-movie")
    with pytest.raises(InputError, match="cannot load 'nobody/nothing' from the hub"):
        sources.load("nobody/nothing")
    with pytest.raises(InputError, match="row 2 is str, expected a mapping"):
        sources.load([{"text": "a", "label": "b"}, "text"])
    with pytest.raises(InputError, match="data is int; give a name"):
        sources.load(7)


def test_the_callers_own_objects_give_the_rows_a_file_gives(tmp_path: Path) -> None:
    import datasets
    import pandas as pd

    rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(TRICKY)]
    path = written_csv(tmp_path / "d.csv", [(row["text"], row["label"]) for row in rows])
    expected = sources.load(path)
    for data in (rows, pd.DataFrame(rows), datasets.Dataset.from_list(rows), str(path)):
        found = sources.load(data)
        assert found.fingerprint == expected.fingerprint
        assert found.class_names == ("a", "b")


ROWS = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate([*TRICKY, "nul\x00", "\ufeff mark"])]


def _packed(path: Path, raw: bytes) -> Path:
    import pyarrow as pa

    codec = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}[path.suffix]
    with pa.OSFile(str(path), "wb") as sink, pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(raw)
    return path


def _as_parquet(path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def _as_arrow(path: Path) -> Path:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(path.parent / "saved")
    return next((path.parent / "saved").glob("*.arrow"))


@pytest.mark.parametrize(
    "name", ["d.jsonl.gz", "d.jsonl.zst", "d.ndjson.bz2", "d.parquet", "d.arrow", "d.json", "utf16"]
)
def test_every_kind_of_file_has_the_same_rows(name: str, tmp_path: Path) -> None:
    """Written by other libraries: pyarrow, datasets, json."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    path = tmp_path / name
    if name == "d.parquet":
        path = _as_parquet(path)
    elif name == "d.arrow":
        path = _as_arrow(path)
    elif name == "d.json":
        path.write_text(json.dumps({"version": 1, "data": ROWS}))
    elif name == "utf16":
        path = tmp_path / "d.jsonl"
        path.write_text(lines, encoding="utf-16", newline="")
    else:
        path = _packed(path, lines.encode())
    assert [row.fields for row in sources.read_rows(path)] == ROWS


def test_an_encoding_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes("text,label\ncafé,a\nthé,b\n".encode("cp1252"))
    examples = sources.load(tmp_path / "d.csv", encoding="cp1252")
    assert [str(row.origin.line) for row in examples.rows] == ["2", "3"]
    assert "café" in [getattr(row, "text", "") for row in examples.rows]


def test_files_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for number in (1, 2, 3):
        written_csv(tmp_path / "in" / f"part-{number}.csv", [(f"t{number}", "ab"[number % 2])])
    for name in ("in", "in/*.csv", "in/part-1.csv, in/part-2.csv,in/part-3.csv", "in/part-[123].csv"):
        examples = sources.load(name)
        assert [Path(row.origin.file).name for row in examples.rows] == [f"part-{n}.csv" for n in (1, 2, 3)], name


def test_squads_own_files_are_read(tmp_path: Path) -> None:
    asked = {"question": "Colour?", "id": "1", "answers": [{"text": "red", "answer_start": 6}]}
    article = {"title": "x", "paragraphs": [{"context": "It is red.", "qas": [asked, asked]}]}
    (tmp_path / "d.json").write_text(json.dumps({"version": "1.1", "data": [article]}))
    assert len(sources.load(tmp_path / "d.json").rows) == 2


def test_rows_in_a_file_are_rows_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows whether they lie in memory or not, read in any order, also between writes."""
    from tunesmith.data import store

    held = sources.load(ROWS)
    monkeypatch.setattr(store, "HELD_IN_MEMORY", 50)
    moved = sources.load(ROWS)
    assert moved.rows[3] == held.rows[3]
    assert list(moved.rows) == list(held.rows)
    assert moved.rows[-1] == held.rows[-1]
    assert moved.fingerprint == held.fingerprint
    assert pickle.loads(pickle.dumps(moved)).rows[2] == held.rows[2]
    assert isinstance(moved.rows, store.Rows)
    moved.rows.append(held.rows[0])
    assert moved.rows[len(ROWS)] == held.rows[0]
