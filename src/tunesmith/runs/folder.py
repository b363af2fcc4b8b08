"""The folder of a run: its names, what it holds, and who is at work in it.

config.yaml      every key with its value
inputs.json      what decides the course of the training: data, model, versions, ...
split.json       which rows trained, validated and tested: lines by file
metrics.jsonl    one line per step and evaluation
checkpoints/     step-N/, to go on from
manifest.json    written last; a folder without it is not a finished run
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from tunesmith.errors import InputError
from tunesmith.storage import explained, write_json

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
INPUTS = "inputs.json"
METRICS = "metrics.jsonl"
SPLIT = "split.json"
CHECKPOINTS = "checkpoints"
FROZEN = "frozen-states"
# Of learning by trial: its curves, and what said how much an answer is worth.
PAGE, VALUE = "report.html", "value.safetensors"
RECORDS = (MANIFEST, CONFIG, INPUTS, METRICS, SPLIT, PAGE, VALUE)
LOCK, OWNER = ".lock", ".owner.json"

Content = Literal["nothing", "files", "interrupted run", "finished run"]


def look(folder: Path) -> Content:
    """What a folder holds, as one would say it: "already holds a finished run".

    Raises:
        InputError: it is a file.
    """
    if folder.is_file():
        raise InputError(f"output '{folder}' is a file; give a folder")
    if (folder / MANIFEST).is_file() and (folder / CONFIG).is_file():
        return "finished run"
    if (folder / CONFIG).is_file():
        return "interrupted run"
    others = [path for path in folder.iterdir() if path.name not in (LOCK, OWNER)] if folder.is_dir() else []
    return "files" if others else "nothing"


# A key of its configuration tells a command's runs from those of `tune`.
COMMANDS = {"algorithm": "align", "ties": "reward", "held_out": "pretrain"}


def how_to_go_on(folder: Path) -> str:
    """The line that ends every message about a run that was cut off."""
    return f"Go on with: tunesmith {command_of(folder)} --resume --output {folder}"


def command_of(folder: Path) -> str:
    """The command that made a run; `tune` where nothing says so."""
    path = folder / CONFIG
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((name for key, name in COMMANDS.items() if any(line.startswith(f"{key}:") for line in lines)), "tune")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder if need be and keeps others out of it.

    The lock is the system's, so it ends with the process, whatever ends that.

    Raises:
        InputError: somebody is at work there (says who), or the folder cannot be made or written to.
    """
    with explained("The run", folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _take(folder)
    if lock is None:
        raise InputError(_in_use(folder))
    try:
        with explained("The run", folder):
            write_json(folder / OWNER, _describe_self())
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _take(folder: Path) -> FileLock | None:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def is_locked(folder: Path) -> bool:
    """Whether somebody is at work in a folder; nothing in it is changed."""
    if not (folder / LOCK).is_file() or not os.access(folder / LOCK, os.W_OK):
        return False
    lock = _take(folder)
    if lock is not None:
        lock.release()
    return lock is None


def refuse_locked(folder: Path) -> None:
    """Raises an InputError when somebody is at work in a folder."""
    if is_locked(folder):
        raise InputError(_in_use(folder))


def _describe_self() -> dict[str, object]:
    return {"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat(timespec="seconds")}


def name_owner(folder: Path) -> str:
    """Who holds the lock of a folder, in words."""
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"


def _in_use(folder: Path) -> str:
    return f"output '{folder}' is in use by {name_owner(folder)}. Wait for it, end it, or give another --output"


def clear(folder: Path) -> None:
    """Removes what an earlier run left; the lock stays."""
    for path in folder.iterdir():
        if path.name in (LOCK, OWNER):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def numbered(base: Path) -> Iterator[Path]:
    """base, base-2, base-3, ..."""
    yield base
    number = 2
    while True:
        yield base.with_name(f"{base.name}-{number}")
        number += 1
