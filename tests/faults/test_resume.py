"""Going on, and being refused: changed inputs, two at one folder, numbers that are none, too little memory or disk."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.survival import digest, make_base, make_rows

from tunesmith.cli import run as run_command
from tunesmith.config import TuneConfig
from tunesmith.errors import InputError
from tunesmith.runs import place as places
from tunesmith.runs.doctor import examine
from tunesmith.runs.folder import is_locked, locked, name_owner
from tunesmith.runs.run import Run
from tunesmith.train import adamw, loop, step
from tunesmith.train.checkpoint import list_checkpoints
from tunesmith.train.step import NonFiniteError
from tunesmith.tuning import tune


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from two, and lose much where something else takes one of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    make_base("bert", "classification", folder / "bert")
    make_rows("classification", folder / "rows.jsonl")
    return folder


def settings(place: Path, output: Path, **more: Any) -> TuneConfig:
    """Four optimizer steps an epoch, dropout on."""
    given = {"model": str(place / "bert"), "data": str(place / "rows.jsonl"), "method": "full", "output": output}
    fixed = {"per_device_train_batch_size": 12, "num_train_epochs": 3, "precision": "fp32", "device": "cpu"}
    return TuneConfig.read(given=given | fixed | {"early_stopping_patience": 100} | more)


def after(number: int, what: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Something happens in place of the gradient of step `number`, once."""
    accumulate, calls = step.accumulate, iter(range(1, 10**9))

    def broken(*given: Any) -> Any:
        if next(calls) == number:
            what()
        return accumulate(*given)

    monkeypatch.setattr(loop, "accumulate", broken)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture
def interrupted(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped in its seventh step."""
    with monkeypatch.context() as patch:
        after(7, interrupt, patch)
        with pytest.raises(KeyboardInterrupt) as stopped:
            tune(settings(place, tmp_path / "run"), quiet=True)
    assert stopped.value.__notes__ == [
        f"Step 6 is saved. Go on with: tunesmith tune --resume --output {tmp_path / 'run'}"
    ]
    return tmp_path / "run"


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, str]:
    return digest(tune(settings(place, place / "whole"), quiet=True).folder)


def test_it_goes_on_by_its_folder_alone(interrupted: Path, whole: dict[str, str]) -> None:
    assert run_command(["tune", "--resume", "--output", str(interrupted)]) == 0
    assert digest(interrupted) == whole


def test_a_notebook_goes_on_too(place: Path, interrupted: Path, whole: dict[str, str]) -> None:
    tune(settings(place, interrupted, resume=True), quiet=True)
    assert digest(interrupted) == whole


@pytest.mark.parametrize(
    ("memory", "more"), [("balanced", {}), ("low", {}), ("low", {"precision": "bf16", "weights_dtype": "bfloat16"})]
)
def test_in_little_memory_it_goes_on_too(
    memory: str, more: dict[str, str], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States of eight bits come back as they were, and so does rounding at random; blocks that run twice may run once
    from here on."""
    monkeypatch.setattr(adamw, "SMALLEST_QUANTIZED", 64)
    expected = digest(tune(settings(place, tmp_path / "whole", memory="low", **more), quiet=True).folder)
    with monkeypatch.context() as patch:
        after(7, interrupt, patch)
        with pytest.raises(KeyboardInterrupt):
            tune(settings(place, tmp_path / "run", memory="low", **more), quiet=True)
    tune(settings(place, tmp_path / "run", resume=True, memory=memory, optim="adamw_8bit", **more), quiet=True)
    assert digest(tmp_path / "run") == expected


def test_it_asks_where_there_is_somebody_to_ask(
    place: Path, interrupted: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(places, "confirm", lambda question: asked.append(question) or True)
    tune(settings(place, interrupted), quiet=True)
    assert asked == [f"{interrupted} was interrupted after step 6. Go on with it?"]
    assert digest(interrupted) == whole


def test_with_nobody_to_ask_it_says_how(place: Path, interrupted: Path) -> None:
    with pytest.raises(InputError, match=r"already holds an interrupted run\. Go on with: tunesmith tune --resume"):
        tune(settings(place, interrupted), quiet=True)


def test_resume_begins_where_nothing_is(place: Path, tmp_path: Path, whole: dict[str, str]) -> None:
    """So that one command serves a scheduler that starts it again and again."""
    config = settings(place, tmp_path / "run", resume=True)
    tune(config, quiet=True)
    stamp = (tmp_path / "run/manifest.json").stat().st_mtime_ns
    assert digest(tune(config, quiet=True).folder) == whole
    assert (tmp_path / "run/manifest.json").stat().st_mtime_ns == stamp


def test_what_was_cut_off_before_it_began_begins(place: Path, tmp_path: Path) -> None:
    """Killed between its first two files. One that has trained is not begun anew for want of a file."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(settings(place, run).to_yaml(), encoding="utf-8")
    tune(settings(place, run, resume=True, max_steps=4), quiet=True)
    (run / "manifest.json").unlink()
    (run / "inputs.json").unlink()
    with pytest.raises(InputError, match=r"inputs\.json: missing or damaged"):
        tune(settings(place, run, resume=True), quiet=True)


def test_resuming_nothing_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["tune", "--resume", "--output", str(tmp_path / "none")]) == 2
    assert (
        "holds no run to go on with (no config.yaml). To begin one give --model and --data" in capsys.readouterr().err
    )


def _other_row(place: Path) -> dict[str, Any]:
    text = (place / "rows.jsonl").read_text().replace("w7", "w9")
    (place / "other.jsonl").write_text(text)
    return {"data": str(place / "other.jsonl")}


def _other_weights(place: Path) -> dict[str, Any]:
    torch.manual_seed(5)
    return {"model": str(make_base("bert", "classification", place / "other", seed=5))}


def _other_tokens(place: Path) -> dict[str, Any]:
    shutil.copytree(place / "bert", place / "other-tokens", dirs_exist_ok=True)
    file = place / "other-tokens/tokenizer.json"
    file.write_text(file.read_text().replace('"w7"', '"w7777"'))
    return {"model": str(place / "other-tokens")}


CHANGES = {
    "learning_rate": lambda place: {"learning_rate": 1e-4},
    "num_train_epochs": lambda place: {"num_train_epochs": 5},
    "per_device_train_batch_size": lambda place: {"per_device_train_batch_size": 4},
    "data": _other_row,
    "model": _other_weights,
    "tokenizer": _other_tokens,
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_input_is_refused_by_name_unless_allowed(key: str, place: Path, interrupted: Path) -> None:
    changed = CHANGES[key](place)
    before = digest_of_all(interrupted)
    with pytest.raises(InputError, match=f"\n  {key}: ") as refused:
        tune(settings(place, interrupted, resume=True, **changed), quiet=True)
    allowed = str(refused.value).rpartition("--allow-change ")[2]
    assert key in allowed.split(",")
    assert digest_of_all(interrupted) == before
    run = tune(settings(place, interrupted, resume=True, allow_change=allowed, **changed), quiet=True)
    noted = json.loads((run.folder / "inputs.json").read_text())["changes"]
    assert [(change["step"], set(change["before"])) for change in noted] == [(6, set(allowed.split(",")))]


def digest_of_all(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", ".owner.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_another_version_is_refused(place: Path, interrupted: Path) -> None:
    file = interrupted / "inputs.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"inputs": json.loads(file.read_text())["inputs"] | {"torch": "1.0"}})
    )
    with pytest.raises(InputError, match=r"torch: 1\.0 before, .* now"):
        tune(settings(place, interrupted, resume=True), quiet=True)


def test_a_misspelt_permission_names_the_nearest(place: Path, interrupted: Path) -> None:
    with pytest.raises(InputError, match="allow_change: a run has no 'learnin_rate': did you mean 'learning_rate'"):
        tune(settings(place, interrupted, resume=True, allow_change="learnin_rate"), quiet=True)


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "no manifest", "missing file"])
def test_a_damaged_checkpoint_is_passed_by(
    damage: str, place: Path, interrupted: Path, whole: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """The older one leads to the same bits."""
    older, newest = list_checkpoints(interrupted / "checkpoints")
    file = newest / "optimizer.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw if damage == "flipped bit" else raw[:-9] if damage == "truncated" else file.read_bytes())
    if damage in ("no manifest", "missing file"):
        (newest / ("manifest.json" if damage == "no manifest" else "generators.safetensors")).unlink()
    (health,) = examine(interrupted)
    assert not health.is_whole
    assert health.newest_intact == older.name
    assert digest(tune(settings(place, interrupted, resume=True), quiet=True).folder) == whole
    assert f"{newest}" in capfd.readouterr().err
    assert examine(interrupted)[0].is_whole


def test_a_shortened_log_is_refused(place: Path, interrupted: Path) -> None:
    log = interrupted / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:100])
    assert "lines are lost" in examine(interrupted)[0].problems[0]
    with pytest.raises(InputError, match="lines are lost"):
        tune(settings(place, interrupted, resume=True), quiet=True)


def test_the_doctor_says_what_can_be_saved(
    place: Path, tmp_path: Path, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tune(settings(place, tmp_path / "run"), quiet=True).folder
    assert run_command(["doctor", str(run)]) == 0
    with (run / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"model\.safetensors: .* bytes, .* were written.* see tunesmith doctor"):
        _ = Run.open(run).network
    capsys.readouterr()
    assert run_command(["doctor", str(run)]) == 2
    told = capsys.readouterr().out
    assert "step-12 is whole: remove" in told
    (run / "manifest.json").unlink()
    assert run_command(["tune", "--resume", "--output", str(run)]) == 0
    assert digest(run) == whole


def test_a_finished_run_is_extended_only_explicitly(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tune(settings(place, tmp_path / "run", learning_rate=0.005), quiet=True)
    with pytest.raises(InputError, match=r"is finished, with num_train_epochs 3\.0, not 5\.0\. To train it further"):
        tune(settings(place, run.folder, learning_rate=0.005, num_train_epochs=5, resume=True), quiet=True)
    extend = ["tune", "--extend", str(run.folder), "--output", str(tmp_path / "more")]
    assert run_command(extend) == 2
    assert "say for how long" in capsys.readouterr().err
    with pytest.raises(InputError, match="extend: say for how long"):
        tune(TuneConfig.read(given={"model": "m", "data": "d", "extend": run.folder}), quiet=True)
    assert run_command([*extend, "--max-steps", "4"]) == 0
    more = Run.open(tmp_path / "more")
    best = run.outcome["best_step"]
    first = {point["step"]: point["validation_loss"] for point in run.outcome["curve"]}[best]
    assert more.outcome["curve"][0]["validation_loss"] == first
    assert more.outcome["steps"] == 4
    extended = json.loads((more.folder / "inputs.json").read_text())["start"]
    assert extended == str(run.folder / "checkpoints" / f"step-{best}")
    state = json.loads((more.folder / "checkpoints/step-4/state.json").read_text())
    assert state["epoch"] == best // 4 + 1, "data goes on with the next epoch"


def test_two_runs_at_one_folder(place: Path, tmp_path: Path) -> None:
    script = "import sys,time; from pathlib import Path; from tunesmith.runs.folder import locked\n"
    script += "with locked(Path(sys.argv[1])): print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        with pytest.raises(InputError, match=f"is in use by process {holder.pid} on .*, since 20"):
            tune(settings(place, tmp_path), quiet=True)
        holder.kill()
    assert (tmp_path / ".owner.json").exists(), "a killed owner leaves its name, and no lock"
    tune(settings(place, tmp_path, max_steps=1), quiet=True)


def test_a_loss_that_is_no_number_leaves_something_to_look_at(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulate = step.accumulate

    def poisoned(network: Any, window: Any, *rest: Any) -> Any:
        if any(11 in batch.rows for batch in window):
            raise NonFiniteError(rest[2] + 1, step.Step(math.nan, math.nan), [3, 11])
        return accumulate(network, window, *rest)

    monkeypatch.setattr(loop, "accumulate", poisoned)
    with pytest.raises(NonFiniteError, match=r"rows\.jsonl:\d+, .*rows\.jsonl:\d+.*--on-nonfinite skip") as stopped:
        tune(settings(place, tmp_path / "run"), quiet=True)
    report = json.loads((tmp_path / "run/nonfinite.json").read_text())
    assert (report["step"], report["loss"], [row["row"] for row in report["rows"]]) == (
        stopped.value.step,
        "nan",
        [3, 11],
    )
    saved = [path.name for path in list_checkpoints(tmp_path / "run/checkpoints")]
    assert saved == ([f"step-{stopped.value.step - 1}"] if stopped.value.step > 1 else [])
    run = tune(settings(place, tmp_path / "run", resume=True, on_nonfinite="skip"), quiet=True)
    assert run.outcome["skipped_steps"] == 3, "once an epoch"
    skipped = [line for line in run.metrics() if "loss" in line and line["loss"] is None]
    assert len(skipped) == 3


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_batch_that_is_too_large_runs_in_two_parts(
    error: Exception, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    base = make_base("bert", "classification", tmp_path / "still", dropout=0.0)
    backward, largest = step.backward, []

    def tight(network: Any, batch: Any, *rest: Any) -> Any:
        if len(batch.rows) > 6:
            raise error
        largest.append(len(batch.rows))
        return backward(network, batch, *rest)

    expected = tune(settings(place, tmp_path / "roomy", model=str(base)), quiet=True)
    monkeypatch.setattr(step, "backward", tight)
    found = tune(settings(place, tmp_path / "tight", model=str(base)), quiet=True)
    assert "step 1: out of memory; from here on each batch runs in two parts" in capfd.readouterr().err
    assert max(largest) == 6
    losses = [[line["loss"] for line in run.metrics() if "loss" in line] for run in (expected, found)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_too_little_memory_names_the_flags_that_help(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step, "backward", never)
    with pytest.raises(InputError, match="--per-device-train-batch-size 3 --gradient-accumulation-steps 4"):
        tune(settings(place, tmp_path / "run"), quiet=True)


def test_a_small_disk_is_seen_before_the_first_step(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"the run needs .* MB, the disk of .* has 1\.0 kB free"):
        tune(settings(place, tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run/config.yaml").exists()


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(place: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"could not be written to .* Permission denied"):
        tune(settings(place, tmp_path / "run"), quiet=True)


def test_the_lock_is_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "run"):
            assert is_locked(tmp_path / "run")
            assert name_owner(tmp_path / "run").startswith(f"process {os.getpid()} on ")
        assert not is_locked(tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
