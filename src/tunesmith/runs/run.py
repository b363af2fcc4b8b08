"""A finished run, and the network in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError
from tunesmith.methods.table import METHODS
from tunesmith.models.load import Network, load_network, load_tokenizer
from tunesmith.models.quantized import quantize_base
from tunesmith.models.safety import refuse_foreign
from tunesmith.runs.folder import CHECKPOINTS, MANIFEST, METRICS, RECORDS, how_to_go_on, look
from tunesmith.runtime import choose_device
from tunesmith.storage import find_damage


@dataclass
class Run:
    """A finished run. `network` is there when this process made it, else it is loaded when asked for."""

    folder: Path
    manifest: Mapping[str, Any]
    _network: Network | None = field(default=None, repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """A run from its folder.

        Raises:
            InputError: no such folder, or not a finished run.
        """
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise InputError(f"{folder}: no such run folder")
        if not (path / MANIFEST).is_file():
            more = f". {how_to_go_on(path)}" if look(path) == "interrupted run" else ""
            raise InputError(f"{folder}: not a finished run, it holds no {MANIFEST}{more}")
        return cls(path, read_manifest(path))

    @property
    def network(self) -> Network:
        if self._network is None:
            self._network = load_run(self)
        return self._network

    @property
    def outcome(self) -> Mapping[str, Any]:
        """What the training said: steps, seconds, tokens per second, curve."""
        outcome: Mapping[str, Any] = self.manifest["outcome"]
        return outcome

    @property
    def model_files(self) -> list[str]:
        """Names of the files at the run's root that others load: model or adapter, and tokenizer."""
        return [name for name in self.manifest["files"] if "/" not in name and name not in RECORDS]

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        lines = (self.folder / METRICS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest["files"], manifest["method"], manifest["parent"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / MANIFEST}: damaged, or of no run. Restore it; see tunesmith doctor {folder}"
        ) from error
    return manifest


def find_damaged_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What is wrong with a run's own files. Checkpoints have seals of their own, verified by who goes on from them."""
    own = {name: file for name, file in manifest["files"].items() if not name.startswith(f"{CHECKPOINTS}/")}
    return find_damage(folder, own)


def refuse_damaged(run: Run) -> None:
    damage = find_damaged_files(run.folder, run.manifest)
    if damage:
        raise InputError(f"{damage[0]}. Changed since the run was saved: see tunesmith doctor {run.folder}")


def refuse_strangers(runs: Sequence[Run]) -> None:
    """Raises an InputError for runs that were not made from one base for one task."""
    first = runs[0].manifest
    for run in runs:
        parent = run.manifest["parent"]
        if parent["fingerprint"] != first["parent"]["fingerprint"] or run.manifest["task"] != first["task"]:
            raise InputError(
                f"{run.folder} and {runs[0].folder}: of different base models or tasks ({parent['name']}, "
                f"{run.manifest['task']}; {first['parent']['name']}, {first['task']}). "
                "Only runs of one base can be combined"
            )


def load_run(run: Run) -> Network:
    """The tuned network of a run folder, ready to predict on the best device.

    Raises:
        InputError: the base model is gone or another one, or files do not match the manifest.
    """
    manifest = run.manifest
    refuse_damaged(run)
    saving = METHODS[manifest["method"]].saving
    base = str(run.folder) if saving.restore is None else manifest["parent"]["name"]
    network = load_network(base, manifest["task"], manifest["class_names"])
    if saving.restore is not None:
        refuse_foreign(network, manifest["parent"].get("fingerprint", ""), f"the adapter in {run.folder}")
        saving.restore(network, run.folder)
        if manifest.get("quantization"):  # what was learned was learned beside these very matrices
            quantize_base(network, manifest["quantization"])
        network.tokenizer = load_tokenizer(str(run.folder), str(run.folder), network.task)
    network.source = str(run.folder)
    return make_ready(network)


def make_ready(network: Network) -> Network:
    """To predict on the best device, and not to be trained."""
    device = choose_device()
    network.model.requires_grad_(False)
    network.model.to(device)
    network.model.eval()
    return network
