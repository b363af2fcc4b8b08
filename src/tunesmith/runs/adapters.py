"""Runs that share a base model, held in memory as one: which of their adapters are at work is a matter of a word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunesmith.errors import InputError, nearest
from tunesmith.models.load import Network, load_network, load_tokenizer
from tunesmith.models.lowrank import fuse
from tunesmith.models.quantized import quantize_base
from tunesmith.models.safety import ADAPTER_CONFIG, CHANGES, refuse_foreign
from tunesmith.models.weights import read_json
from tunesmith.models.wrap import read, read_further, switch
from tunesmith.runs.run import Run, make_ready, refuse_damaged, refuse_strangers


@dataclass(frozen=True, slots=True)
class _Own:
    """What a run has for itself: its adapter, by the name that PEFT knows it by, and what else differs between runs."""

    adapter: str
    tokenizer: PreTrainedTokenizerBase
    class_names: tuple[str, ...]


class Adapters:
    """Several runs as one model; `network` is that model, and says what the adapters at work say.

    The first is at work to begin with. To switch copies nothing, and the base is in memory once.
    """

    def __init__(self, runs: Mapping[str, Run]) -> None:
        """Raises an InputError for runs that cannot share a model: of other bases or tasks, or with other files."""
        _refuse_unfit(runs)
        first = next(iter(runs.values()))
        parent, task = first.manifest["parent"], first.manifest["task"]
        network = load_network(parent["name"], task, first.manifest["class_names"])
        refuse_foreign(network, parent["fingerprint"], f"the adapter in {first.folder}")
        self._own: dict[str, _Own] = {}
        for number, (name, run) in enumerate(runs.items()):
            adapter = f"run_{number}"
            if number == 0:
                network.wrapper = read(network.model, run.folder, adapter)
            else:
                read_further(network.wrapper, run.folder, adapter)
            tokenizer = load_tokenizer(str(run.folder), str(run.folder), task)
            self._own[name] = _Own(adapter, tokenizer, tuple(run.manifest["class_names"]))
        fuse(network.root)
        if first.manifest["quantization"]:
            quantize_base(network, first.manifest["quantization"])
        self.network: Network = make_ready(network)
        self.use(next(iter(runs)))

    @property
    def names(self) -> list[str]:
        return list(self._own)

    def use(self, *names: str) -> None:
        """Sets to work the adapters of these runs, whose changes add up; none: the base as it is.

        Raises:
            InputError: an unknown name, or heads that cannot work together, or be absent.
        """
        for name in names:
            if name not in self._own:
                raise InputError(f"unknown adapter '{name}': {nearest(name, self._own)}")
        if len(names) != 1 and self.network.head_modules:
            raise InputError(
                f"each run has a head of its own for {self.network.task}: use one of {', '.join(self._own)}"
            )
        own = [self._own[name] for name in names]
        switch(self.network.wrapper, [each.adapter for each in own])
        if own:
            self.network.tokenizer, self.network.class_names = own[0].tokenizer, own[0].class_names
        self.network.source = " + ".join(names) or "the base"
        self.in_use: tuple[str, ...] = names

    @contextmanager
    def using(self, *names: str) -> Iterator[Network]:
        """For a while only: `with adapters.using("short") as network`."""
        before = self.in_use
        self.use(*names)
        try:
            yield self.network
        finally:
            self.use(*before)


def load_adapters(folders: Sequence[str | Path] | Mapping[str, str | Path]) -> Adapters:
    """The runs in these folders as one model, called as the folders are, or as the mapping says.

    Raises:
        InputError: no runs, one name for two, or runs that cannot share a model.
    """
    named = folders.items() if isinstance(folders, Mapping) else [(Path(each).name, each) for each in folders]
    runs: dict[str, Run] = {}
    for name, folder in named:
        if name in runs:
            raise InputError(f"two runs are called '{name}': {runs[name].folder} and {folder}. Give {{name: folder}}")
        runs[name] = Run.open(folder)
    if not runs:
        raise InputError("no runs given: name at least one run folder")
    return Adapters(runs)


def _refuse_unfit(runs: Mapping[str, Run]) -> None:
    first = next(iter(runs.values()))
    refuse_strangers(list(runs.values()))
    for run in runs.values():
        refuse_damaged(run)
        if (kind := _kind(run)) not in CHANGES:
            raise InputError(
                f"{run.folder}: {run.manifest['method']} is no adapter of PEFT's that changes layers, and only such "
                "share a model at run time. Load it by itself, or put runs together with tunesmith export --combine"
            )
        for what, own, others in (
            ("kind of adapter", kind, _kind(first)),
            ("quantization", run.manifest["quantization"], first.manifest["quantization"]),
            ("number of classes", len(run.manifest["class_names"]), len(first.manifest["class_names"])),
        ):
            if own != others:
                raise InputError(
                    f"{run.folder} and {first.folder} differ in their {what} ({own}, {others}), so one model cannot "
                    "hold both. Load them apart"
                )


def _kind(run: Run) -> Any:
    """What PEFT calls the adapter; None where the run's files are another's."""
    file = run.folder / ADAPTER_CONFIG
    return read_json(file).get("peft_type") if file.is_file() else None
