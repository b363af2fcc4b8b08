"""Stage: data + model + method -> run.

A run is a folder: `config.yaml` (complete), `inputs.json`, `metrics.jsonl`, `checkpoints/step-N/`, and at its
root the final model or adapter and the tokenizer, which plain transformers and peft load. `manifest.json` is
written last; a folder without it is not a finished run, but one to go on with.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tunesmith.config import MEMORY_PARTS, DataConfig, TrainingConfig, TuneConfig
from tunesmith.data.parts import load_split, with_replay
from tunesmith.data.signal import Proof, prove, refuse_broken
from tunesmith.data.split import inputs_of, places_of
from tunesmith.data.stream import Renewed
from tunesmith.data.tokenize import tokenize
from tunesmith.data.tokens import TokenRows
from tunesmith.data.windows import use_keys
from tunesmith.errors import InputError
from tunesmith.forecasting import Target, foresee
from tunesmith.methods.apply import default_learning_rate, find_rates, put_under
from tunesmith.methods.keeping import remember
from tunesmith.methods.method import Method
from tunesmith.methods.table import choose_methods, find_method
from tunesmith.models.heads import is_encoder, start_at_frequencies
from tunesmith.models.load import (
    Network,
    count_parameters,
    load_config,
    load_network,
    load_tokenizer,
    move,
    resolve_model,
)
from tunesmith.models.prefix import cached_prefix
from tunesmith.models.seq2seq import longest_side
from tunesmith.records import Split
from tunesmith.runs.folder import CHECKPOINTS, FROZEN, MANIFEST, METRICS, SPLIT, how_to_go_on, locked
from tunesmith.runs.inputs import describe_inputs
from tunesmith.runs.place import Place, begin, choose_place
from tunesmith.runs.run import Run
from tunesmith.runtime import (
    MetricsLog,
    available_memory,
    choose_device,
    choose_precision,
    describe_machine,
    peak_memory,
    seed_everything,
    versions,
)
from tunesmith.signals import listening
from tunesmith.storage import describe_files, explained, write_json, write_text
from tunesmith.terminal import say
from tunesmith.trackers import Trackers, check_trackers
from tunesmith.train.checkpoint import Start, estimate_bytes, find_newest, step_of
from tunesmith.train.clock import Clock
from tunesmith.train.course import Watch
from tunesmith.train.loop import fit, trainable
from tunesmith.train.losses import PLAIN, Penalty
from tunesmith.train.objective import refuse_penalty
from tunesmith.train.plan import Forecast, Rows
from tunesmith.train.preference import Preference
from tunesmith.train.progress import Outcome
from tunesmith.train.step import Plan
from tunesmith.train.terms import make_plan, with_reference
from tunesmith.train.validate import validate, watch

# A training that is about to begin is worth so many seconds of timing operations; earlier ones are remembered.
PATIENCE_BEFORE_TUNING = 1.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A network under a method and the rows it will see, all checked before any compute is spent.

    `course` trains it, and `evaluate` judges it, where that is not by the rows' own losses; `finish` writes what else
    belongs into the run's folder and returns what the manifest is to say of it; `beside` is trained, too.
    """

    network: Network
    method: Method
    split: Split
    train: TokenRows | Renewed
    validation: TokenRows | Renewed
    plan: Plan
    signal: object
    forecast: Forecast | None
    course: Callable[[Watch, Start | None], Outcome] | None = None
    evaluate: Callable[[], Mapping[str, float]] | None = None
    finish: Callable[[Path], Mapping[str, Any]] | None = None
    beside: Sequence[nn.Module] = ()


Prepare = Callable[[TuneConfig, Method, Split, bool], Prepared]
# Training and validation rows, and what is said of the former.
Read = Callable[[TrainingConfig, Split], tuple[TokenRows | Renewed, TokenRows | Renewed, object]]


def tune(
    config: TuneConfig,
    parts: Split | None = None,
    quiet: bool = False,
    brief: bool = False,
    states: Path | None = None,
    how: Prepare | None = None,
) -> Run:
    """Trains and saves a run, or goes on with one that was interrupted.

    Args:
        parts: the data already divided, as `compare` does; else read from `config.data`.
        quiet: nothing is printed.
        brief: only what differs between methods is printed; `compare` tells the rest once.
        states: folder in which states of frozen blocks are kept for other runs; else the run's own, and not kept.
        how: prepares the training where it is another than that of the data's task (`prepare`).

    Raises:
        InputError: wrong model, data, method or output folder; nothing is left on disk then.
        KeyboardInterrupt: asked to stop; a checkpoint was made, and a note says how to go on.
    """
    (method,) = choose_methods((config.method,), config.method_options)
    check_trackers(config.report_to)
    with listening():
        place = choose_place(config, method.name)
        parts = with_replay(config, load_split(config) if parts is None else parts)
        if place.content == "finished run" and place.goes_on:
            finished = Run.open(place.folder)
            if finished.manifest["data"]["fingerprints"] == _fingerprints(parts):
                say(f"{place.folder} is finished already")
                return finished
            place = place.replaced(config)
        planned = not (quiet or brief or place.goes_on)
        prepared = (how or prepare)(place.as_begun(config), method, parts, planned)
        if not quiet:
            _announce(prepared, config, brief)
        with locked(place.folder), _told_how_to_go_on(place.folder):
            outcome = _train(config, place, prepared, quiet, states)
            manifest = _save(place.folder, prepared, config, outcome)
        prepared.network.task = manifest["task"]
        return Run(place.folder, manifest, prepared.network)


@contextmanager
def _told_how_to_go_on(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stopped:
        newest = find_newest(folder / CHECKPOINTS)
        done = "No step was saved yet" if newest is None else f"Step {step_of(newest)} is saved"
        stopped.add_note(f"{done}. {how_to_go_on(folder)}")
        raise


def _train(config: TuneConfig, place: Place, prepared: Prepared, quiet: bool, states: Path | None) -> Outcome:
    folder, started = place.folder, time.monotonic()
    kept = prepared.plan.kept.rows if config.keep_data is not None else ()  # own words follow from the rest
    rows = [*prepared.train, *prepared.validation, *kept]
    inputs = describe_inputs(
        config, prepared.network, prepared.split, rows, prepared.plan.learning_rate, prepared.plan.dtype
    )
    start = begin(place, config, inputs, estimate_bytes(trainable(prepared.network, prepared.beside)))
    log = MetricsLog(folder / METRICS, how_to_go_on(folder))
    trackers = Trackers(config.report_to, folder, config.model_dump(mode="json"))
    log.followers.append(trackers.write)
    try:
        watch = Watch(
            evaluate=prepared.evaluate or partial(_evaluate, prepared),
            log=log,
            checkpoints=folder / CHECKPOINTS,
            label=prepared.method.name,
            quiet=quiet,
            name_row=partial(_name_row, prepared),
            mend=how_to_go_on(folder),
        )
        if prepared.course is not None:
            outcome = prepared.course(watch, start)
        else:
            with cached_prefix(prepared.network, rows, prepared.plan.dtype, quiet, states or folder / FROZEN):
                outcome = fit(prepared.network, prepared.train, prepared.plan, watch, start)
        outcome.seconds = time.monotonic() - started
        shutil.rmtree(folder / FROZEN, ignore_errors=True)
        return outcome
    finally:
        log.close()
        trackers.close()


def _name_row(prepared: Prepared, row: int) -> str:
    if isinstance(prepared.train, Renewed):
        return f"row {row} of the stream"
    return str(prepared.split.train.rows[prepared.train.examples[row]].origin)


def _fingerprints(parts: Split) -> dict[str, str]:
    return {name: getattr(parts, name).fingerprint for name in ("train", "validation", "test")}


def read_rows(config: TrainingConfig, parts: Split) -> tuple[TokenRows, TokenRows, Proof]:
    """Training and validation rows as ids, and the proof of what the former train.

    Raises:
        InputError: rows that are too long, or that teach nothing.
    """
    tokenizer = load_tokenizer(resolve_model(config.model), config.model, parts.train.task)
    use_keys(tokenizer, parts.train.task, config)
    max_length = find_max_length(config)
    train, validation = (
        tokenize(part, tokenizer, max_length, config.too_long, quiet=False) for part in (parts.train, parts.validation)
    )
    proof = prove(train, parts.train, tokenizer)
    refuse_broken(proof)
    return train, validation, proof


def prepare(
    config: TrainingConfig, method: Method, parts: Split, planned: bool = False, read: Read = read_rows
) -> Prepared:
    """Everything up to the first step: model, method, ids, and the proof that something is trained.

    With `planned` also a forecast, made before weights are loaded. `read` makes ids of the rows.

    Raises:
        InputError: wrong model, data or method, or the forecast says that memory will not suffice.
    """
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    task = parts.train.task
    refuse_penalty(task, Penalty(config.label_smoothing_factor, config.z_loss))
    train, validation, signal = read(config, parts)
    planned = planned and method.foreseen and task != "preference"
    forecast = _foresee(config, method, parts, Rows(train, validation), device, dtype) if planned else None
    seed_everything(config.seed)
    network = load_network(config.model, task, parts.train.class_names)
    use_keys(network.tokenizer, task, config)
    if task == "multi-label" and isinstance(train, TokenRows):
        held = np.array([row.target for row in train], dtype=float)
        start_at_frequencies(network.model, network.new_modules, held.mean(0).tolist())
    put_under(network, method, config, dtype, partial(move, device=device))
    if method.inform is not None:
        method.inform(network, config, train, dtype)
    learning_rate = getattr(config, "learning_rate", None) or default_learning_rate(method, network)
    rates = find_rates(network, method, config)
    kept = remember(network, method, config, dtype)
    attend = method.attend and partial(method.attend, network, config)
    plan = replace(make_plan(config, learning_rate, device, dtype), rates=rates, kept=kept, attend=attend)
    if isinstance(plan.terms, Preference) and isinstance(train, TokenRows) and isinstance(validation, TokenRows):
        train, validation = (with_reference(network, rows, plan.terms, dtype) for rows in (train, validation))
    return Prepared(network, method, parts, train, validation, plan, signal, forecast)


def _foresee(
    config: TrainingConfig, method: Method, parts: Split, rows: Rows, device: torch.device, dtype: torch.dtype
) -> Forecast:
    clock = Clock(device, patience=PATIENCE_BEFORE_TUNING)
    plan = make_plan(config, 1.0, device, dtype)
    forecast = foresee(config, method, parts.train, rows, plan, Target(device, clock, available_memory(device)))
    clock.save()
    if not forecast.fits and not getattr(config, "force", False):
        raise InputError(f"{forecast.advice}. --force starts all the same")
    return forecast


def find_max_length(config: DataConfig) -> int:
    """The longest row in tokens: the model's limit, less what virtual tokens take, or what is asked for."""
    limit = longest_row(config.model)
    if isinstance(config, TuneConfig) and find_method(config.method).virtual:
        limit -= config.num_virtual_tokens
    if config.max_length is None:
        return limit
    if config.max_length > limit:
        raise InputError(f"max_length is {config.max_length}, but '{config.model}' takes at most {limit} tokens")
    return config.max_length


def longest_row(model: str) -> int:
    """How many tokens a model takes."""
    model_config = load_config(resolve_model(model), model)
    if model_config.is_encoder_decoder:
        return longest_side(model_config)
    limit = int(getattr(model_config, "max_position_embeddings", 0) or 2048)
    # positions start after the padding index
    return limit - 2 if model_config.model_type in ("roberta", "xlm-roberta", "camembert") else limit


def _evaluate(prepared: Prepared) -> Mapping[str, float]:
    terms = prepared.plan.terms
    # Penalties make a loss that nobody else has; a preference's rule is the loss itself.
    seen_by = terms if isinstance(terms, Preference) else PLAIN
    outputs = validate(prepared.network, prepared.validation, prepared.plan.dtype, seen_by)
    return watch(prepared.network.task, outputs, prepared.validation)


def _announce(prepared: Prepared, config: TuneConfig, brief: bool) -> None:
    trainable, total = count_parameters(prepared.network, prepared.beside)
    method = (
        f"{trainable:,} of {total:,} parameters trained ({trainable / total:.2%}), "
        f"learning rate {prepared.plan.learning_rate:g}"
    )
    if brief:
        return say(f"{prepared.method.name}: {method}")
    machine = describe_machine(prepared.plan.device, prepared.plan.dtype)
    say(f"data     {prepared.split.train.recognised}")
    if prepared.split.checked:
        say(f"check    {prepared.split.checked}")
    if prepared.split.note:
        say(f"split    {prepared.split.note}")
    say(f"signal   {prepared.signal}")
    say(f"method   {prepared.method.name}: {method}")
    parts = [*MEMORY_PARTS, *(["optimizer_in_backward"] if config.optimizer_in_backward else [])]
    say(f"memory   {config.memory}: " + ", ".join(f"{key} {getattr(config, key)}" for key in parts))
    if prepared.forecast is not None:
        say(f"plan     {prepared.forecast}")
    say(f"machine  {machine['device']}, {machine['threads']} threads, {machine['precision']}")


def _save(folder: Path, prepared: Prepared, config: TuneConfig, outcome: Outcome) -> dict[str, Any]:
    with explained("The model", folder, how_to_go_on(folder)):
        return _write_model(folder, prepared, config, outcome)


def _write_model(folder: Path, prepared: Prepared, config: TuneConfig, outcome: Outcome) -> dict[str, Any]:
    """The last files of a run; `manifest.json` is the very last."""
    network = prepared.network
    writes = not is_encoder(network.model.config)
    prepared.method.saving.save(network, folder)
    network.tokenizer.save_pretrained(folder)
    write_text(folder / SPLIT, json.dumps({"note": prepared.split.note, **places_of(prepared.split)}) + "\n")
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card is a form with every field left open
    more = prepared.finish(folder) if prepared.finish is not None else {}
    num_trained, total = count_parameters(network, prepared.beside)
    manifest = {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "parent": {"name": network.source, "folder": network.folder, "fingerprint": network.fingerprint},
        "method": prepared.method.name,
        "task": "generation" if network.task == "preference" or (network.task == "text" and writes) else network.task,
        "class_names": network.class_names,
        "inputs": inputs_of(prepared.split.train.rows[0]),
        "data": {
            "name": config.data,
            "recognised": prepared.split.train.recognised,
            "fingerprints": _fingerprints(prepared.split),
        },
        "learning_rate": prepared.plan.learning_rate,
        "trainable_parameters": num_trained,
        "total_parameters": total,
        "peak_memory": peak_memory(prepared.plan.device),
        "quantization": config.quantization,
        "plan": _plan_as_mapping(prepared.forecast),
        "machine": describe_machine(prepared.plan.device, prepared.plan.dtype),
        "outcome": outcome.to_mapping(),
        **more,
        "versions": versions(),
        "files": describe_files(folder),
    }
    write_json(folder / MANIFEST, manifest)
    return dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))


def _plan_as_mapping(forecast: Forecast | None) -> dict[str, float] | None:
    return None if forecast is None else {"peak_memory": forecast.peak, "seconds": round(forecast.seconds, 2)}
