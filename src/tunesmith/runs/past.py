"""Past runs beside each other: what they did, what came out, and in what they differ.

A run may be old, interrupted, at work or damaged: what cannot be read is left empty, and never an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from tunesmith.errors import InputError, nearest
from tunesmith.runs.folder import CHECKPOINTS, CONFIG, MANIFEST, METRICS, command_of, is_locked, look

State = Literal["finished", "interrupted", "running", "damaged"]
HIDDEN = (CHECKPOINTS, "frozen-states")


@dataclass(frozen=True, slots=True)
class PastRun:
    """One run. `loss` and `metric` are those of its best evaluation so far, None where there was none.

    created   ISO 8601 in UTC; of a run without a manifest, when its configuration was written
    seconds   of training
    size      bytes of all files of the folder
    settings  every key of its configuration
    """

    folder: str
    command: str
    model: str
    data: str
    method: str
    task: str
    state: State
    created: str
    loss: float | None
    metric: str
    value: float | None
    steps: int
    seconds: float | None
    size: int
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)


def find_runs(folders: Sequence[Path]) -> list[PastRun]:
    """Every run in the folders, in the order of their names; those of a comparison each by itself.

    Raises:
        InputError: a folder does not exist, or none of them holds a run.
    """
    found = [read_run(path) for folder in folders for path in _walk(folder.expanduser())]
    if not found:
        raise InputError(f"no runs in {', '.join(map(str, folders))}. Give the folder that tune or compare wrote to")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Folders of runs at any depth. A comparison holds a configuration too, and runs below it."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    is_run = look(folder) in ("finished run", "interrupted run") and not (folder / "methods").is_dir()
    if is_run:
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and path.name not in HIDDEN and not path.name.startswith("."):
            yield from _walk(path)


def read_run(folder: Path) -> PastRun:
    """A run from what lies in its folder."""
    manifest, settings = _read_json(folder / MANIFEST), _read_yaml(folder / CONFIG)
    points = [line for line in _read_lines(folder / METRICS) if "validation_loss" in line]
    best = min((p for p in points if p["validation_loss"] is not None), key=lambda p: p["validation_loss"], default={})
    watched = next((key for key in best if key.startswith("validation_") and key != "validation_loss"), "")
    lines = _read_lines(folder / METRICS)
    outcome = manifest.get("outcome", {})
    return PastRun(
        folder=str(folder),
        command=command_of(folder),
        model=str(settings.get("model", "")),
        data=str(settings.get("data", "")),
        method=str(manifest.get("method") or settings.get("method", "")),
        task=str(manifest.get("task") or settings.get("task") or ""),
        state=_state(folder, manifest, settings),
        created=manifest.get("created") or _written(folder / CONFIG),
        loss=best.get("validation_loss"),
        metric=watched.removeprefix("validation_"),
        value=best.get(watched),
        steps=int(outcome.get("steps") or max((line.get("step", 0) for line in lines), default=0)),
        seconds=outcome.get("train_seconds") or max((line.get("time", 0.0) for line in lines), default=None),
        size=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        settings=settings,
    )


def _state(folder: Path, manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> State:
    if is_locked(folder):
        return "running"
    if not settings or ((folder / MANIFEST).is_file() and "outcome" not in manifest):
        return "damaged"
    return "finished" if manifest else "interrupted"


def choose_runs(runs: Sequence[PastRun], wanted: Mapping[str, str | None]) -> list[PastRun]:
    """Those whose fields contain what is wanted, whatever the case: {"method": "lora", "model": None}."""
    return [
        run
        for run in runs
        if all(text is None or text.casefold() in str(getattr(run, key)).casefold() for key, text in wanted.items())
    ]


SORTED_BY = ("created", "loss", "value", "seconds", "size", "steps", "folder", "model", "data", "method", "state")


def sort_runs(runs: Sequence[PastRun], key: str) -> list[PastRun]:
    """By a field, newest, largest and best first as fits it; what has no value comes last.

    Raises:
        InputError: there is no such field.
    """
    if key not in SORTED_BY:
        raise InputError(f"runs cannot be sorted by '{key}': {nearest(key, SORTED_BY)}")
    falling = key in ("created", "value", "size")
    known = [run for run in runs if getattr(run, key) is not None]
    known.sort(key=lambda run: getattr(run, key), reverse=falling)
    return [*known, *(run for run in runs if getattr(run, key) is None)]


def differing(runs: Sequence[PastRun]) -> dict[str, list[Any]]:
    """The keys of the configurations that are not alike in all runs, each with its values in the runs' order."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    values = {key: [run.settings.get(key) for run in runs] for key in keys if key not in ("output", "resume")}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines that are whole; the last one of a run that was killed may not be."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict)]


def _written(path: Path) -> str:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    except OSError:
        return ""
