"""Stage: data + model + method -> run.

A run is a folder: `config.yaml` (complete), `metrics.jsonl`, `checkpoints/step-N/`, and at its root the
final model or adapter and the tokenizer, which plain transformers and peft load. `manifest.json` is
written last; a folder without it is not a finished run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tunesmith.config import DataConfig, TrainingConfig, TuneConfig
from tunesmith.data import sources
from tunesmith.data.split import split, split_given, take
from tunesmith.data.tokenize import Signal, measure, tokenize
from tunesmith.errors import InputError
from tunesmith.methods.table import METHODS, Method, default_learning_rate, find_method
from tunesmith.models.embedding import use_row_gradients
from tunesmith.models.load import (
    Network,
    count_parameters,
    load_config,
    load_network,
    load_tokenizer,
    resolve_model,
    settle_precision,
)
from tunesmith.models.prefix import cached_prefix
from tunesmith.records import Examples, Split, TokenizedExample
from tunesmith.runtime import (
    MetricsLog,
    choose_device,
    choose_precision,
    describe_machine,
    peak_memory,
    seed_everything,
    versions,
)
from tunesmith.storage import sha256_of, write_json, write_text
from tunesmith.terminal import say
from tunesmith.train.loop import Outcome, Plan, Watch, fit
from tunesmith.train.validate import RowOutputs, validate

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"


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
            raise InputError(f"{folder}: not a finished run, it holds no {MANIFEST}")
        return cls(path, json.loads((path / MANIFEST).read_text(encoding="utf-8")))

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

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        lines = (self.folder / METRICS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A network under a method and the rows it will see, all checked before any compute is spent."""

    network: Network
    method: Method
    split: Split
    train: list[TokenizedExample]
    validation: list[TokenizedExample]
    plan: Plan
    signal: Signal


def load_split(config: DataConfig) -> Split:
    """The data of a configuration, recognised, divided and cut to size."""
    return split_examples(sources.load(config.data, config.task, config.columns), config)


def split_examples(examples: Examples, config: DataConfig) -> Split:
    """Examples divided and cut to size as the configuration says."""
    if config.eval_data is not None:
        test = sources.load(config.eval_data, examples.task, config.columns)
        parts = split_given(examples, test, config.seed)
    else:
        parts = split(examples, config.seed)
    taken = [
        take(parts.train, config.max_train_samples, config.seed),
        take(parts.validation, config.max_validation_samples, config.seed),
        take(parts.test, config.max_test_samples, config.seed),
    ]
    used = ", ".join(
        f"{name} {len(part.rows):,}" for name, part in zip(("train", "validation", "test"), taken, strict=True)
    )
    cut = taken != [parts.train, parts.validation, parts.test]
    return Split(taken[0], taken[1], taken[2], f"{parts.note}; used: {used}" if cut else parts.note)


def tune(config: TuneConfig, parts: Split | None = None, quiet: bool = False, brief: bool = False) -> Run:
    """Trains and saves a run.

    Args:
        parts: the data already divided, as `compare` does; else read from `config.data`.
        quiet: nothing is printed.
        brief: only what differs between methods is printed; `compare` tells the rest once.

    Raises:
        InputError: wrong model, data, method or output folder; nothing is left on disk then.
    """
    method = find_method(config.method)
    folder = choose_folder(config, method.name)
    parts = load_split(config) if parts is None else parts
    prepared = prepare(config, method, parts)
    if not quiet:
        _announce(prepared, brief)
    _make_empty(folder)
    write_text(folder / CONFIG, config.to_yaml())
    log = MetricsLog(folder / METRICS)
    try:
        watch = Watch(_validator(prepared), log, folder / "checkpoints", method.name, quiet)
        rows = [*prepared.train, *prepared.validation]
        with cached_prefix(prepared.network, rows, prepared.plan.dtype, quiet):
            outcome = fit(prepared.network, prepared.train, prepared.plan, watch)
    finally:
        log.close()
    manifest = _save(folder, prepared, config, outcome)
    return Run(folder, manifest, prepared.network)


def prepare(config: TrainingConfig, method: Method, parts: Split) -> Prepared:
    """Everything up to the first step: model, method, ids, and the proof that something is trained."""
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    task = parts.train.task
    max_length = find_max_length(config)
    tokenizer = load_tokenizer(resolve_model(config.model), config.model, task)
    train, validation = (tokenize(part, tokenizer, max_length) for part in (parts.train, parts.validation))
    signal = measure(train)
    _check_signal(signal, parts.train, train)
    seed_everything(config.seed)
    network = load_network(config.model, task, parts.train.class_names)
    method.apply(network, config)
    settle_precision(network, dtype)
    network.model.to(device)
    if network.wrapper is not None:
        network.wrapper.to(device)
    use_row_gradients(network.model)
    learning_rate = getattr(config, "learning_rate", None) or default_learning_rate(method, network)
    return Prepared(network, method, parts, train, validation, make_plan(config, learning_rate, device, dtype), signal)


def find_max_length(config: DataConfig) -> int:
    """The longest row in tokens: the model's limit, less what virtual tokens take, or what is asked for."""
    model_config = load_config(resolve_model(config.model), config.model)
    limit = int(getattr(model_config, "max_position_embeddings", 0) or 2048)
    if model_config.model_type in ("roberta", "xlm-roberta", "camembert"):
        limit -= 2  # positions start after the padding index
    if isinstance(config, TuneConfig) and config.method == "prompt":
        limit -= config.num_virtual_tokens
    if config.max_length is None:
        return limit
    if config.max_length > limit:
        raise InputError(f"max_length is {config.max_length}, but '{config.model}' takes at most {limit} tokens")
    return config.max_length


def make_plan(config: TrainingConfig, learning_rate: float, device: torch.device, dtype: torch.dtype) -> Plan:
    return Plan(
        learning_rate=learning_rate,
        num_epochs=config.num_train_epochs,
        batch_size=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        warmup_ratio=config.warmup_ratio,
        schedule=config.lr_scheduler_type,
        eval_steps=config.eval_steps,
        patience=config.early_stopping_patience,
        max_steps=config.max_steps,
        seed=config.seed,
        device=device,
        dtype=dtype,
    )


def _check_signal(signal: Signal, examples: Examples, rows: list[TokenizedExample]) -> None:
    """A row that teaches nothing is a mistake in the data or the template, never a choice."""
    if examples.task != "generation":
        return
    idle = [str(examples.rows[row.row].origin) for row in rows if not row.num_trained]
    if idle:
        shown = ", ".join(idle[:20])
        raise InputError(f"{len(idle):,} of {signal.num_rows:,} rows have no token to train: {shown}")


def _validator(prepared: Prepared) -> Callable[[], Mapping[str, float]]:
    def run() -> Mapping[str, float]:
        outputs = validate(prepared.network, prepared.validation, prepared.plan.dtype)
        scores = {"validation_loss": outputs.mean_loss}
        if prepared.network.task == "classification":
            scores["validation_accuracy"] = _accuracy(outputs, prepared.validation)
        return scores

    return run


def _accuracy(outputs: RowOutputs, rows: list[TokenizedExample]) -> float:
    return float((outputs.logits.argmax(1) == [row.target for row in rows]).mean())


def _announce(prepared: Prepared, brief: bool) -> None:
    trainable, total = count_parameters(prepared.network)
    method = (
        f"{trainable:,} of {total:,} parameters trained ({trainable / total:.2%}), "
        f"learning rate {prepared.plan.learning_rate:g}"
    )
    if brief:
        return say(f"{prepared.method.name}: {method}")
    machine = describe_machine(prepared.plan.device, prepared.plan.dtype)
    say(f"data     {prepared.split.train.recognised}")
    if prepared.split.note:
        say(f"split    {prepared.split.note}")
    say(f"signal   {prepared.signal}")
    say(f"method   {prepared.method.name}: {method}")
    say(f"machine  {machine['device']}, {machine['threads']} threads, {machine['precision']}")


def choose_folder(config: TuneConfig, method: str) -> Path:
    """The output folder: as given, or a free one under runs/.

    Raises:
        InputError: the folder holds something that would be lost.
    """
    if config.output is None:
        base = Path("runs") / f"{Path(config.model).name}-{Path(config.data).stem}-{method}"
        return next(path for path in _numbered(base) if not path.exists())
    folder = config.output.expanduser()
    if folder.is_file():
        raise InputError(f"output '{folder}' is a file; give a folder")
    is_run = (folder / CONFIG).is_file()
    if folder.is_dir() and any(folder.iterdir()) and not (is_run and config.overwrite):
        what = "a finished run" if (folder / MANIFEST).is_file() else "an interrupted run" if is_run else "files"
        mend = "Give another --output, or --overwrite to replace it" if is_run else "Give another --output"
        raise InputError(f"output '{folder}' already holds {what}. {mend}")
    return folder


def _numbered(base: Path) -> Any:
    yield base
    number = 2
    while True:
        yield base.with_name(f"{base.name}-{number}")
        number += 1


def _make_empty(folder: Path) -> None:
    """Only what an earlier run left is removed."""
    if (folder / CONFIG).is_file():
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output '{folder}' cannot be made: {error.strerror}") from error


def _save(folder: Path, prepared: Prepared, config: TuneConfig, outcome: Outcome) -> dict[str, Any]:
    network = prepared.network
    prepared.method.saving.save(network, folder)
    network.tokenizer.save_pretrained(folder)
    readme = folder / "README.md"
    readme.unlink(missing_ok=True)  # PEFT's model card is a form with every field left open
    trainable, total = count_parameters(network)
    manifest = {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "parent": {"name": network.source, "folder": network.folder},
        "method": prepared.method.name,
        "task": network.task,
        "class_names": network.class_names,
        "data": {
            "name": config.data,
            "recognised": prepared.split.train.recognised,
            "fingerprints": {
                part: getattr(prepared.split, part).fingerprint for part in ("train", "validation", "test")
            },
        },
        "learning_rate": prepared.plan.learning_rate,
        "trainable_parameters": trainable,
        "total_parameters": total,
        "peak_memory": peak_memory(prepared.plan.device),
        "machine": describe_machine(prepared.plan.device, prepared.plan.dtype),
        "outcome": _outcome_as_mapping(outcome),
        "versions": versions(),
        "sha256": {
            str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()
        },
    }
    write_json(folder / MANIFEST, manifest)
    return dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))


def _outcome_as_mapping(outcome: Outcome) -> dict[str, Any]:
    return {
        "steps": outcome.steps,
        "epochs": round(outcome.epochs, 3),
        "train_seconds": round(outcome.train_seconds, 2),
        "tokens": outcome.num_tokens,
        "tokens_per_second": round(outcome.tokens_per_second, 1),
        "best_step": outcome.best_step,
        "stopped_early": outcome.stopped_early,
        "curve": outcome.curve,
    }


def load_run(run: Run) -> Network:
    """The tuned network of a run folder, ready to predict on the best device.

    Raises:
        InputError: the base model is gone, or files do not match the manifest.
    """
    manifest = run.manifest
    for name, expected in manifest["sha256"].items():
        path = run.folder / name
        if not path.is_file() or sha256_of(path) != expected:
            raise InputError(f"{path}: changed or missing since the run was saved. Restore it, or tune anew")
    saving = METHODS[manifest["method"]].saving
    base = str(run.folder) if saving.restore is None else manifest["parent"]["name"]
    network = load_network(base, manifest["task"], manifest["class_names"])
    if saving.restore is not None:
        saving.restore(network, run.folder)
        network.tokenizer = load_tokenizer(str(run.folder), str(run.folder), network.task)
    network.source = str(run.folder)
    device = choose_device()
    network.model.requires_grad_(False)
    network.model.to(device)
    network.model.eval()
    return network
