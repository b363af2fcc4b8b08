"""A comparison of real processes on a tiny model: what fails is kept apart, what is done is not redone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.parity.tiny import make_model, make_tokenizer

import tunesmith
from tunesmith.config_compare import CompareConfig
from tunesmith.errors import InputError
from tunesmith.evaluation.compare import Comparison, compare
from tunesmith.evaluation.metrics import paired_difference
from tunesmith.evaluation.predictions import Predictions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-bert")
    made = make_model("bert", "classification")
    made.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes told apart by their words, so that every learner can learn them."""
    rng = random.Random(0)
    lines = []
    for index in range(160):
        words = range(5, 45) if index % 2 else range(40, 90)
        text = " ".join(f"w{rng.choice(words)}" for _ in range(rng.randrange(3, 9)))
        lines.append(json.dumps({"text": f"{text} w{5 + index % 80}", "label": "odd" if index % 2 else "even"}))
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def settings(model: Path, data: Path, folder: Path, **more: object) -> CompareConfig:
    given = {"model": str(model), "data": str(data), "output": folder, "precision": "fp32", "num_train_epochs": 1}
    return CompareConfig.read(given=given | {"methods": ("bitfit", "lora"), "baselines": ("majority", "tf-idf")} | more)


@pytest.fixture(scope="module")
def finished(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """One comparison in which a method cannot work: the model has two classes but no rank of -1."""
    folder = tmp_path_factory.mktemp("compare") / "out"
    return compare(settings(model, data, folder, methods=("bitfit", "last-layers", "lora"), num_last_layers=99))


def test_every_system_is_there_and_judged(finished: Comparison) -> None:
    assert [system.name for system in finished.systems] == ["majority", "tf-idf", "bitfit", "last-layers", "lora"]
    done = [system for system in finished.systems if not system.error]
    assert all("accuracy" in system.metrics and system.peak_memory > 10**7 for system in done)
    assert all(system.trainable_parameters > 0 for system in done if system.kind == "method")


def test_a_method_that_fails_does_not_lose_the_others(finished: Comparison) -> None:
    failed = {system.name: system.error for system in finished.systems if system.error}
    assert list(failed) == ["last-layers"]
    assert "num_last_layers is 99" in failed["last-layers"]
    assert "num_last_layers is 99" in finished.report.read_text(encoding="utf-8")


def test_rows_confusions_and_versions_are_those_of_the_saved_predictions(finished: Comparison) -> None:
    lora = json.loads((finished.folder / "methods" / "lora" / "predictions.json").read_text())
    counts = finished.content["confusions"]["lora"]
    assert sum(map(sum, counts)) == len(lora["targets"])
    right = sum(one == other for one, other in zip(lora["targets"], lora["outputs"], strict=True))
    assert counts[0][0] + counts[1][1] == right
    beside = finished.content["beside"]
    assert beside["names"][1:] == ["tf-idf"]
    assert all(row["right"] != [True, True] for row in beside["rows"])
    assert finished.content["versions"]["torch"]
    assert (finished.folder / "report.md").is_file()
    assert "lora" in json.loads((finished.folder / "results.json").read_text())["results"]


def test_differences_are_those_of_the_saved_predictions(finished: Comparison) -> None:
    tfidf, lora = (
        Predictions.from_mapping(json.loads((finished.folder / place / "predictions.json").read_text()))
        for place in ("baselines/tf-idf", "methods/lora")
    )
    assert tfidf.targets.tolist() == lora.targets.tolist()
    by_name = {system.name: system for system in finished.systems}
    assert by_name["lora"].difference == paired_difference(lora, tfidf, "accuracy", seed=0)


def test_the_verdict_is_the_best_of_the_table(finished: Comparison) -> None:
    values = {system.name: system.metrics["accuracy"].value for system in finished.systems if not system.error}
    assert values[finished.verdict.best] == max(values.values())
    assert finished.verdict.recommended in values
    assert finished.verdict.best in finished.verdict.reason


def test_frame_and_notebook_table(finished: Comparison) -> None:
    frame = finished.to_pandas()
    assert list(frame["system"]) == [system.name for system in finished.systems]
    assert frame.set_index("system").loc["tf-idf", "accuracy"] == finished.systems[1].metrics["accuracy"].value
    assert "<table" in finished._repr_html_()


def test_what_is_finished_is_not_run_twice(
    finished: Comparison, model: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("system.json")}
    config = settings(model, data, finished.folder, methods=("bitfit", "lora"), num_last_layers=99)
    again = compare(config)
    kept = [path for path, before in times.items() if path.stat().st_mtime_ns == before]
    assert len(kept) == len(times)
    assert capfd.readouterr().err.count("not run again") == 4
    assert [system.metrics for system in again.systems] == [
        system.metrics for system in finished.systems if not system.error
    ]


def test_another_setting_runs_again(finished: Comparison, model: Path, data: Path, tmp_path: Path) -> None:
    first = compare(settings(model, data, tmp_path / "out", methods=("bitfit",), baselines=("majority",)))
    stamp = (first.folder / "methods/bitfit/system.json").stat().st_mtime_ns
    compare(settings(model, data, tmp_path / "out", methods=("bitfit",), baselines=("majority",), seed=1))
    assert (first.folder / "methods/bitfit/system.json").stat().st_mtime_ns > stamp


STOPPING = [
    # To the first method as the kernel does it when memory runs out; then to the comparison, politely or not.
    pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    pytest.param(getattr(signal, "SIGKILL", 9), marks=pytest.mark.soak),
]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", STOPPING)
def test_a_killed_method_does_not_stop_the_others_and_a_stopped_comparison_goes_on(
    number: int, model: Path, data: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tunesmith.cli", "compare", "--model", str(model), "--data", str(data)]
    command += ["--methods", "full,bitfit", "--baselines", "majority", "--output", str(tmp_path / "out")]
    command += ["--num-train-epochs", "400", "--max-steps", "30", "--save-steps", "5", "--precision", "fp32"]
    command += ["--early-stopping-patience", "400"]
    environment = os.environ | {"PYTHONPATH": str(Path(tunesmith.__file__).parents[1])}
    full, bitfit = (tmp_path / "out/methods" / name / "run" for name in ("full", "bitfit"))
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, **pipes) as process:
        kill_at_work(full, signal.SIGKILL)
        kill_at_work(bitfit, 0)
        process.send_signal(number)
        told = process.communicate(timeout=60)[1]
        assert "[2/3] full: failed: its process was ended by signal 9" in told
        assert "Traceback" not in told
        if number == signal.SIGTERM:
            assert process.returncode == 143
            assert told.splitlines()[-1].startswith("stopped by SIGTERM. The same command goes on")
    wait_until(lambda: not find_writers(bitfit / "metrics.jsonl"))  # also when its parent was killed
    again = subprocess.run(command, check=False, timeout=120, **pipes)  # type: ignore[call-overload]
    assert again.returncode == 0, again.stderr
    assert "majority: finished before, not run again" in again.stderr
    for run in (full, bitfit):
        assert f"going on with {run} after step " in again.stderr
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, 31))


def kill_at_work(run: Path, number: int) -> None:
    """A signal to the process that trains a run, once it has a checkpoint."""
    wait_until(lambda: list(run.glob("checkpoints/step-*")))
    os.kill(find_writers(run / "metrics.jsonl")[0], number)


def wait_until(condition, seconds: float = 180) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


def find_writers(path: Path) -> list[int]:
    """The processes that have a file open."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                if any(link.resolve() == path.resolve() for link in (folder / "fd").iterdir()):
                    found.append(int(folder.name))
    return found


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"methods": ("loora",)}, "unknown method 'loora': did you mean 'lora'?"),
        ({"baselines": ("tfidf",)}, "unknown baseline 'tfidf': did you mean 'tf-idf'?"),
        ({"baselines": ("zero-shot",)}, "needs a decoder, the model is an encoder"),
        ({"max_length": 100_000}, "takes at most 64 tokens"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(
    model: Path, data: Path, tmp_path: Path, more: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        compare(settings(model, data, tmp_path / "out", **more))
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_left_alone(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files that are no comparison"):
        compare(settings(model, data, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_damaged_results_are_made_again(
    finished: Comparison, model: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    config = settings(model, data, folder, methods=("bitfit", "lora"), num_last_layers=99)
    for name in ("majority", "tf-idf"):
        file = folder / "baselines" / name / ("predictions.json" if name == "majority" else "system.json")
        file.write_text(file.read_text()[:-30])
    again = compare(config)
    told = capfd.readouterr().err
    assert "majority: its files in" in told
    assert "tf-idf: its files in" in told
    assert told.count("not run again") == 2
    assert [system.metrics for system in again.systems] == [s.metrics for s in finished.systems if not s.error]
