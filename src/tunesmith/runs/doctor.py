"""The health of a run's folder: what is damaged, and what can be saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.errors import InputError
from tunesmith.runs.folder import CHECKPOINTS, INPUTS, MANIFEST, METRICS, how_to_go_on, is_locked, look, name_owner
from tunesmith.runs.inputs import read_inputs
from tunesmith.runs.run import find_damaged_files, read_manifest
from tunesmith.storage import PARTIAL, check_seal
from tunesmith.train.checkpoint import STATE, list_checkpoints


@dataclass
class Health:
    """What the doctor found. `checkpoints` maps each to what is wrong with it, nothing when it is whole."""

    folder: Path
    content: str
    problems: list[str] = field(default_factory=list)
    checkpoints: dict[str, str] = field(default_factory=dict)
    left_overs: list[str] = field(default_factory=list)
    is_at_work: bool = False
    advice: str = ""

    @property
    def is_whole(self) -> bool:
        return not self.problems and not any(self.checkpoints.values())

    @property
    def newest_intact(self) -> str | None:
        return next((name for name, damage in reversed(self.checkpoints.items()) if not damage), None)


def examine(folder: str | Path) -> list[Health]:
    """One entry for a run; one for each run of a comparison.

    Raises:
        InputError: the folder holds neither.
    """
    path = Path(folder).expanduser()
    runs = [path] if look(path) in ("finished run", "interrupted run") and not (path / "methods").is_dir() else []
    runs = runs or sorted(run.parent for run in path.glob("methods/*/run/config.yaml"))
    if not runs:
        raise InputError(f"{folder}: neither a run nor a comparison with runs in it")
    return [_examine_run(run) for run in runs]


def _examine_run(folder: Path) -> Health:
    health = Health(folder, look(folder))
    health.is_at_work = health.content == "interrupted run" and is_locked(folder)
    if health.is_at_work:
        health.content = f"run at work (in use by {name_owner(folder)})"
    health.checkpoints = {
        path.name: next(iter(check_seal(path)), "") for path in list_checkpoints(folder / CHECKPOINTS)
    }
    health.problems = list(_find_problems(folder, health))
    health.left_overs = [str(path) for path in sorted(folder.rglob(f"*{PARTIAL}"))]
    health.advice = _advise(health)
    return health


def _find_problems(folder: Path, health: Health) -> Iterator[str]:
    if health.content == "finished run":
        yield from _find_damaged_files(folder)
        return
    try:
        read_inputs(folder)
    except InputError as error:
        yield str(error)
    if health.newest_intact is not None:
        yield from _find_lost_lines(folder, folder / CHECKPOINTS / health.newest_intact)


def _find_damaged_files(folder: Path) -> Iterator[str]:
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        yield str(error)
        return
    yield from find_damaged_files(folder, manifest)


def _find_lost_lines(folder: Path, checkpoint: Path) -> Iterator[str]:
    offset = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["log_offset"]
    log = folder / METRICS
    size = log.stat().st_size if log.is_file() else 0
    if size < offset:
        yield f"{log}: {size:,} bytes, {offset:,} when {checkpoint.name} was made; lines are lost"


def _advise(health: Health) -> str:
    if health.is_at_work:
        return "Leave it alone until it has ended"
    if health.content == "finished run":
        return _advise_finished(health)
    if any(INPUTS in problem or METRICS in problem for problem in health.problems):
        return "Restore the files named above, or start anew with --overwrite"
    if health.newest_intact is None and health.checkpoints:
        return "No checkpoint is whole: restore one, or start anew with --overwrite"
    return how_to_go_on(health.folder)


def _advise_finished(health: Health) -> str:
    if health.is_whole:
        return ""
    if not health.problems:
        return "The model is whole; only extending the run needs its checkpoints"
    if health.newest_intact is None:
        return "No checkpoint is whole: restore the files named above, or tune anew"
    return (
        f"{health.newest_intact} is whole: remove {health.folder / MANIFEST}, and the model is made again from it. "
        + how_to_go_on(health.folder)
    )
