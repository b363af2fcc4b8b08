"""Files and folders that are either whole or absent, and what can be put into them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

from tunesmith.errors import InputError
from tunesmith.terminal import describe_bytes

SEAL = "manifest.json"
PARTIAL = ".partial"


def to_plain(value: Any) -> Any:
    """Records, paths and NaN as JSON can hold them (NaN becomes null)."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, value: Any) -> None:
    """Written beside its place, flushed to the disk, then renamed: never half a file."""
    write_text(path, json.dumps(to_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    with writing(path) as file:
        file.write(text)


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """A file in UTF-8 that gets its name when all is written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes names in a folder outlive a power cut. Windows has no such call, nor needs it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` of json: readers differ in which of two equal keys counts, so neither is taken."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key '{key}' stands twice")
        found[key] = value
    return found


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def appearing(final: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `final` in one rename, or nothing. `final` must not exist."""
    partial = final.with_name(f".{final.name}.{os.getpid()}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(final.parent)


@contextmanager
def sealed(final: Path) -> Iterator[Path]:
    """As `appearing`; before the folder gets its name, every file is flushed to the disk and a seal with the size and
    sha256 of each is written last."""
    with appearing(final) as partial:
        yield partial
        write_json(partial / SEAL, {"format": 1, "files": describe_files(partial)})


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and sha256 of every file in a folder, by name; each is flushed to the disk.

    Hidden files and folders are ours to work with and stand in no description.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            _sync_file(path)
            found[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    return found


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def find_damage(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with described files, one sentence each; empty when all are as they were."""
    found = []
    for name, expected in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            found.append(f"{path}: missing")
        elif size != expected["bytes"]:
            found.append(f"{path}: {size:,} bytes, {expected['bytes']:,} were written")
        elif sha256_of(path) != expected["sha256"]:
            found.append(f"{path}: its sha256 is not the one it was written with")
    return found


def check_seal(folder: Path) -> list[str]:
    """What is wrong with a sealed folder, one sentence each."""
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return find_damage(folder, seal["files"])
    except FileNotFoundError:
        return [f"{folder / SEAL}: missing"]
    except (ValueError, KeyError, TypeError):
        return [f"{folder / SEAL}: not what was written"]


@contextmanager
def explained(what: str, folder: Path, mend: str = "") -> Iterator[None]:
    """Turns a disk that refuses into an InputError: what was written, where, why, and the free space.

    `mend` says how to go on once the disk is well again.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise InputError(
            f"{what} could not be written to {folder}: {reason}{_space(folder)}. {mend}".rstrip()
        ) from error


def _space(folder: Path) -> str:
    free = find_free_space(folder)
    return "" if free is None else f" ({describe_bytes(free)} free there)"


def find_free_space(folder: Path) -> int | None:
    """Bytes free where a folder is, or will be; None where the system does not tell."""
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raises an InputError when the disk of `folder` has less than `needed` bytes free."""
    free = find_free_space(folder)
    if free is not None and free < needed:
        raise InputError(
            f"{what} needs {describe_bytes(needed)}, the disk of {folder} has {describe_bytes(free)} free. Free some, "
            "or give an --output on another disk"
        )
