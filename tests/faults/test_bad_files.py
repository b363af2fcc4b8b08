"""Files that cannot be used are refused with file, line and mend; nothing is half-written, nobody sees a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.faults.bad_files import CASES, GOOD, OTHER, Case, rows

from tunesmith import cli
from tunesmith.data import sources
from tunesmith.data.problems import SHOWN_PROBLEMS


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 100
    assert len({one.title for one in CASES}) == len(CASES)


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.title)
def test_a_bad_file_is_refused(
    one: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one.make(tmp_path / one.name.partition(",")[0])
    before = sorted(path.name for path in tmp_path.rglob("*"))
    code = cli.run(["data", "check", f"./{one.name}", *one.options])
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    message = said.err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    if "encoding: unknown" not in message and "columns: unknown" not in message:  # of the command, not of a file
        assert Path(one.name.split(",")[-1]).name.split("*")[0] in message
    if one.line is not None:
        assert f"{one.name}:{one.line}:" in message
    for part in (*one.parts, one.mend):
        assert part in message
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_bad_rows_are_skipped_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the reader and those of the format, each with its place and what stood there."""
    monkeypatch.chdir(tmp_path)
    text = rows(GOOD) + "{\n" + rows(OTHER, {"text": "", "label": "c"}, {"text": "d", "label": "a"})
    (tmp_path / "d.jsonl").write_text(text)
    examples = sources.load("d.jsonl", rejects=tmp_path / "out.jsonl")
    assert [row.origin.line for row in examples.rows] == [1, 3, 5]
    assert examples.class_names == ("a", "b")
    assert examples.recognised.endswith(f"2 bad rows skipped, see {tmp_path / 'out.jsonl'}")
    rejected = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(one["line"], one["row"]) for one in rejected] == [(2, "{"), (4, {"text": "", "label": "c"})]
    assert "not valid JSON" in rejected[0]["problem"]
    assert "'text' is empty" in rejected[1]["problem"]


def test_a_command_skips_bad_rows_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text("{\n" * (SHOWN_PROBLEMS + 5) + rows(GOOD, OTHER))
    assert cli.run(["data", "check", "d.jsonl", "--bad-rows", "skip", "--json"]) == 0
    assert "25 bad rows skipped, see d.rejects.jsonl" in json.loads(capsys.readouterr().out)["card"]["recognised"]
    assert len((tmp_path / "d.rejects.jsonl").read_text().splitlines()) == 25
