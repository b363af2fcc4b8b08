"""Where a run goes, and at which step it begins: anew, where it was interrupted, or where another has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.config import ALIASES, TuneConfig
from tunesmith.errors import InputError
from tunesmith.runs import inputs as run_inputs
from tunesmith.runs.folder import (
    CHECKPOINTS,
    CONFIG,
    INPUTS,
    Content,
    clear,
    command_of,
    how_to_go_on,
    look,
    numbered,
    refuse_locked,
)
from tunesmith.runs.run import Run
from tunesmith.storage import check_seal, check_space, explained, write_text
from tunesmith.terminal import confirm, say
from tunesmith.train.checkpoint import Start, find_checkpoint, find_newest, list_checkpoints, refuse_damage, step_of

Schema = TypeVar("Schema", bound=TuneConfig)
# One of these says how long a training is; a finished run is not extended without a word of it.
LENGTHS = {"num_train_epochs", "max_steps"}


@dataclass(frozen=True, slots=True)
class Place:
    """The output folder, what was in it, and whether to go on with that."""

    folder: Path
    content: Content
    goes_on: bool

    def as_begun(self, config: TuneConfig) -> TuneConfig:
        """The configuration with the precision the run was begun in: `auto` is timed, so it may fall otherwise."""
        if not self.goes_on or config.precision != "auto":
            return config
        precision = run_inputs.read_inputs(self.folder)["precision"]
        return config.model_copy(update={"precision": {"bfloat16": "bf16"}.get(precision, "fp32")})

    def replaced(self, config: TuneConfig) -> Place:
        """The same folder, for a run on other data than the finished one in it."""
        if not config.overwrite:
            raise InputError(
                f"'{self.folder}' is finished, with other rows than '{config.data}' has now. "
                "Give another --output, or --overwrite to replace it"
            )
        return Place(self.folder, self.content, goes_on=False)


def read_config(file: Path | None, given: Mapping[str, Any], schema: type[Schema]) -> Schema:
    """The configuration of a command: what goes on with a run, or extends one, has from its config.yaml what is not
    given here.

    Raises:
        InputError: nothing to go on with, an extension without a length, or as `schema.read`.
    """
    given = {ALIASES.get(key, key): value for key, value in given.items()}
    extended = given.get("extend")
    folder = extended or (given.get("output") if given.get("resume") else None)
    if file is not None or folder is None:
        return schema.read(file, given)
    if extended and not LENGTHS & set(given):
        raise _without_length(extended)
    earlier = Path(folder).expanduser() / CONFIG
    if earlier.is_file():
        own = {"output": None, "extend": None, "max_steps": None} if extended else {}
        return schema.read(earlier, {**own, **given})
    if "model" in given:
        return schema.read(None, given)
    raise InputError(f"'{folder}' holds no run to go on with (no {CONFIG}). To begin one give --model and --data")


def choose_place(config: TuneConfig, method: str) -> Place:
    """The output folder, as given or a free one under runs/.

    An interrupted run is gone on with when asked for, or when a person at the terminal says so.

    Raises:
        InputError: the folder holds something that would be lost, or somebody is at work in it.
    """
    if config.extend is not None and not LENGTHS & config.model_fields_set:
        raise _without_length(config.extend)
    if config.output is None:
        return _choose_free(config, method)
    folder = config.output.expanduser()
    content = look(folder)
    refuse_locked(folder)
    if content == "nothing":
        return Place(folder, content, goes_on=False)
    if config.resume and content == "finished run":
        return Place(folder, content, _is_same(folder, config))
    if config.resume and content == "interrupted run":
        return _interrupted(folder)
    if config.overwrite and content != "files":
        return Place(folder, content, goes_on=False)
    if content == "interrupted run" and confirm(f"{folder} {_how_far(folder)}. Go on with it?"):
        return _interrupted(folder)
    raise InputError(f"output '{folder}' already holds {_article(content)}. {_mend(folder, content)}")


def _choose_free(config: TuneConfig, method: str) -> Place:
    base = Path("runs") / f"{Path(config.model).name}-{Path(config.data).stem}-{method}"
    taken = list(takewhile(Path.exists, numbered(base)))
    newest = taken[-1] if taken else None
    if newest is not None and look(newest) == "interrupted run":
        told = f"{newest} {_how_far(newest)}"
        if config.resume or confirm(f"{told}. Go on with it?"):
            refuse_locked(newest)
            return _interrupted(newest)
        say(f"{told}. {how_to_go_on(newest)}")
    return Place(next(path for path in numbered(base) if not path.exists()), "nothing", goes_on=False)


def _interrupted(folder: Path) -> Place:
    """To go on with; one that was cut off before it had written from what it starts has nothing to go on with."""
    has_begun = (folder / INPUTS).exists() or bool(list_checkpoints(folder / CHECKPOINTS))
    return Place(folder, "interrupted run", goes_on=has_begun)


def _without_length(extended: object) -> InputError:
    return InputError(f"extend: say for how long '{extended}' is to go on, with --num-train-epochs or --max-steps")


def _is_same(folder: Path, config: TuneConfig) -> bool:
    """Whether a finished run is what this configuration asks for; False when it may be replaced.

    Raises:
        InputError: it is another one.
    """
    was = type(config).read(folder / CONFIG).model_dump(exclude=run_inputs.FREE)
    changed = [key for key, value in config.model_dump(exclude=run_inputs.FREE).items() if value != was[key]]
    if changed and not config.overwrite:
        key = changed[0]
        raise InputError(
            f"'{folder}' is finished, with {key} {was[key]}, not {getattr(config, key)}. To train it further: "
            f"tunesmith {command_of(folder)} --extend {folder} --num-train-epochs N --output ANOTHER. To replace it: "
            "--overwrite"
        )
    return not changed


def _how_far(folder: Path) -> str:
    newest = find_newest(folder / CHECKPOINTS)
    return "was interrupted " + ("before its first checkpoint" if newest is None else f"after step {step_of(newest)}")


def _article(content: Content) -> str:
    return {"finished run": "a finished run", "interrupted run": "an interrupted run"}.get(content, content)


def _mend(folder: Path, content: Content) -> str:
    if content == "files":
        return "Give another --output"
    go_on = f"{how_to_go_on(folder)}. Or give" if content == "interrupted run" else "Give"
    return f"{go_on} another --output, or --overwrite to replace it"


def begin(place: Place, config: TuneConfig, inputs: Mapping[str, Any], checkpoint_bytes: int) -> Start | None:
    """Makes the folder ready, under its lock; returns the checkpoint to begin at.

    Raises:
        InputError: the inputs are not those the run was begun with, or the disk is too small.
    """
    folder = place.folder
    if place.goes_on:
        before = run_inputs.read_inputs(folder)
        changes = run_inputs.find_changes(before, inputs)
        if not (changes and config.overwrite):
            run_inputs.refuse_changes(folder, changes, config.allow_change, known=inputs)
            if before["threads"] != inputs["threads"]:
                told = f"{inputs['threads']} threads instead of {before['threads']}"
                say(f"{told}: the last bits of the weights may differ")
            return _go_on(folder, config, inputs, changes)
    # The newest, the best and the one being written; and the model itself.
    check_space(folder, 4 * checkpoint_bytes, "the run")
    start = None if config.extend is None else _end_of(Run.open(config.extend))
    clear(folder)
    with explained("The run", folder):
        _write_config(folder, config)
        run_inputs.write_inputs(folder, inputs, None if start is None else str(start.checkpoint))
    return start


def _go_on(folder: Path, config: TuneConfig, inputs: Mapping[str, Any], changes: Mapping[str, str]) -> Start | None:
    newest = find_newest_intact(folder / CHECKPOINTS)
    step = 0 if newest is None else step_of(newest)
    with explained("The run", folder):
        _write_config(folder, config)
        if changes:
            run_inputs.write_changes(folder, inputs, changes, step)
    say(f"going on with {folder} after step {step}")
    if newest is not None:
        return Start(newest)
    other = run_inputs.find_start(folder)
    return None if other is None else Start(Path(other), extends=True)


def find_newest_intact(checkpoints: Path) -> Path | None:
    """The newest checkpoint that is as it was written; damaged ones are named and passed by.

    Raises:
        InputError: all are damaged.
    """
    found = list_checkpoints(checkpoints)
    for checkpoint in reversed(found):
        damage = check_seal(checkpoint)
        if not damage:
            return checkpoint
        say(f"{damage[0]}: this checkpoint is not used", style="yellow")
    if found:
        raise InputError(f"{checkpoints}: every checkpoint is damaged. Restore one, or start anew with --overwrite")
    return None


def _write_config(folder: Path, config: TuneConfig) -> None:
    """As it can be read again to go on: where it is, and no word of how it came there."""
    clean = {"output": folder, "overwrite": False, "resume": False, "allow_change": ()}
    write_text(folder / CONFIG, config.model_copy(update=clean).to_yaml())


def _end_of(run: Run) -> Start:
    """The checkpoint of a finished run's best evaluation, whose weights are the run's."""
    checkpoints = run.folder / CHECKPOINTS
    best = find_checkpoint(checkpoints, run.outcome["best_step"] or run.outcome["steps"])
    if best is None:
        raise InputError(f"{run.folder}: its checkpoints were removed, so it cannot be extended")
    refuse_damage(best)
    return Start(best, extends=True)
