"""Past runs beside each other, whatever state their folders are in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tunesmith import cli
from tunesmith.runs.folder import locked
from tunesmith.runs.past import differing, find_runs, read_run, sort_runs

KEPT = Path(__file__).parent / "faults" / "kept" / "format-1"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A finished run, an interrupted one and, below a comparison, one by another method."""
    for name in ("finished", "interrupted"):
        shutil.copytree(KEPT / name, tmp_path / name)
    below = tmp_path / "compared" / "methods" / "bitfit" / "run"
    shutil.copytree(KEPT / "finished", below)
    (tmp_path / "compared" / "config.yaml").write_text("model: base\n")
    for name in ("config.yaml", "manifest.json"):
        text = (below / name).read_text()
        text = text.replace("method: lora", "method: bitfit").replace('"method": "lora"', '"method": "bitfit"')
        (below / name).write_text(text.replace("num_train_epochs: 2.0", "num_train_epochs: 5.0"))
    return tmp_path


def test_a_run_is_what_its_files_say(place: Path) -> None:
    run, manifest = read_run(place / "finished"), json.loads((place / "finished" / "manifest.json").read_text())
    assert (run.state, run.method, run.model, run.data, run.command) == (
        *("finished", "lora", "base", "rows.jsonl", "tune"),
    )
    assert run.loss == min(point["validation_loss"] for point in manifest["outcome"]["curve"])
    assert (run.metric, run.steps, run.seconds) == ("accuracy", 6, 3.6)
    assert run.size == sum(path.stat().st_size for path in (place / "finished").rglob("*") if path.is_file())


def test_runs_are_found_at_any_depth_and_told_apart_by_state(place: Path) -> None:
    names = {Path(run.folder).relative_to(place).as_posix(): run.state for run in find_runs([place])}
    assert names == {"compared/methods/bitfit/run": "finished", "finished": "finished", "interrupted": "interrupted"}
    with locked(place / "interrupted"):
        assert read_run(place / "interrupted").state == "running"
    (place / "finished" / "manifest.json").write_text("{")
    assert read_run(place / "finished").state == "damaged"
    (place / "interrupted" / "config.yaml").write_text(": : :")
    (place / "interrupted" / "metrics.jsonl").write_text('{"step": 3, "time": 1.5}\n{"step": 4, "ti')
    broken = read_run(place / "interrupted")
    assert (broken.state, broken.steps, broken.seconds, broken.loss) == ("damaged", 3, 1.5, None)


def test_runs_differ_in_the_keys_that_differ(place: Path) -> None:
    runs = find_runs([place / "finished", place / "compared"])
    assert differing(runs) == {"method": ["lora", "bitfit"], "num_train_epochs": [2.0, 5.0]}
    assert [run.method for run in sort_runs(runs, "method")] == ["bitfit", "lora"]


def test_the_command_lists_filters_and_refuses(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["runs", str(place), "--method", "BIT"]) == 0
    shown = capsys.readouterr().out
    assert "bitfit" in shown
    assert "lora" not in shown
    assert cli.run(["runs", str(place / "finished"), str(place / "compared"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["runs"]) == 2
    assert found["differing"]["num_train_epochs"] is not None
    assert cli.run(["runs", str(place), "--sort", "los"]) == 2
    assert "cannot be sorted by 'los'" in capsys.readouterr().err
    assert cli.run(["runs", str(place / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (place / "empty").mkdir()
    assert cli.run(["runs", str(place / "empty")]) == 2
    assert "no runs in" in capsys.readouterr().err
