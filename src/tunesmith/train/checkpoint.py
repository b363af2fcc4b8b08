"""A training on disk: `checkpoints/step-N/`, complete or absent, safetensors and JSON only.

A checkpoint holds everything the next step depends on, so that a training that goes on from it is the
training that was never interrupted, to the bit:

    weights.safetensors     what is trained, by name
    optimizer.safetensors   the optimizer's moments and step counts, as NAME/KEY
    generators.safetensors  the states of all random generators
    state.json              position in the data, schedule (a function of the step), best evaluation, log
    manifest.json           size and sha256 of each file, written last

The newest checkpoint and that of the best evaluation are kept. Others go only when a newer one is safely on
the disk.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tunesmith.errors import InputError
from tunesmith.storage import PARTIAL, check_seal, check_space, explained, sealed, write_json
from tunesmith.train import generators
from tunesmith.train.progress import Progress

WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
GENERATORS, STATE = "generators.safetensors", "state.json"
NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")
Named = Sequence[tuple[str, nn.Parameter]]


@dataclass
class State:
    """A training in memory."""

    parameters: Named
    optimizer: torch.optim.Optimizer
    device: torch.device
    progress: Progress = field(default_factory=Progress)

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.progress.outcome.steps


@dataclass(frozen=True, slots=True)
class Start:
    """Where a training begins: at a checkpoint of its own, or with `extends` at one of another run, whose weights,
    optimizer and generators it takes over; steps, schedule and evaluations then count anew, and data goes on
    with the next epoch."""

    checkpoint: Path
    extends: bool = False


def save_checkpoint(folder: Path, state: State, mend: str = "") -> Path:
    """Writes a checkpoint, then lets older ones go; returns its folder.

    Raises:
        InputError: the disk is full or refuses; the older checkpoints are as they were.
    """
    final = _free_name(folder, state.step)
    check_space(folder, estimate_bytes(state.parameters), f"the checkpoint of step {state.step}")
    with explained(f"The checkpoint of step {state.step}", folder, mend):
        with sealed(final) as partial:
            save_file({name: _plain(p) for name, p in state.parameters}, partial / WEIGHTS)
            save_file(_optimizer_tensors(state), partial / OPTIMIZER)
            save_file(generators.capture(state.device), partial / GENERATORS)
            write_json(partial / STATE, state.progress)
        _rotate(folder, {final, find_checkpoint(folder, state.progress.outcome.best_step)})
    return final


def load_start(start: Start, state: State) -> None:
    """Puts a training to where it begins.

    Raises:
        InputError: as `load_checkpoint`.
    """
    load_checkpoint(start.checkpoint, state)
    if start.extends:
        state.progress = Progress(epoch=state.progress.epoch + (state.progress.window > 0))


def load_checkpoint(checkpoint: Path, state: State) -> None:
    """Puts a training back to where the checkpoint was made.

    Raises:
        InputError: the checkpoint is damaged, or was made by a training of other parameters.
    """
    refuse_damage(checkpoint)
    load_weights(checkpoint, state.parameters)
    load_optimizer(checkpoint, state)
    load_progress(checkpoint, state)
    generators.restore(load_file(checkpoint / GENERATORS), state.device)


def load_weights(checkpoint: Path, parameters: Named) -> None:
    weights = load_file(checkpoint / WEIGHTS)
    trained = {name: tuple(parameter.shape) for name, parameter in parameters}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if trained != found:
        name = min(set(trained.items()) ^ set(found.items()))[0]
        raise InputError(
            f"{checkpoint / WEIGHTS}: its weights are not those that are trained here: '{name}' has shape "
            f"{found.get(name, 'none')} there and {trained.get(name, 'none')} here"
        )
    with torch.no_grad():
        for name, parameter in parameters:
            parameter.copy_(weights[name])


def load_optimizer(checkpoint: Path, state: State) -> None:
    named = dict(state.parameters)
    state.optimizer.state.clear()
    for key, tensor in load_file(checkpoint / OPTIMIZER).items():
        name, _, kind = key.rpartition("/")
        state.optimizer.state[named[name]][kind] = tensor.to(state.device, copy=True)


def load_progress(checkpoint: Path, state: State) -> None:
    state.progress.restore(json.loads((checkpoint / STATE).read_text(encoding="utf-8")))


def refuse_damage(checkpoint: Path) -> None:
    damage = check_seal(checkpoint)
    if damage:
        raise InputError(f"{damage[0]}. The checkpoint {checkpoint} is damaged and not used")


def estimate_bytes(parameters: Named) -> int:
    """Size of a checkpoint: the weights, and two moments of AdamW for each in float32."""
    return sum(p.numel() * (p.element_size() + 8) for _, p in parameters) + 2**20


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints by the order in which they were made."""
    found = [(match, path) for path in _children(folder) if (match := NAME.fullmatch(path.name))]
    return [path for match, path in sorted(found, key=lambda item: (int(item[0][1]), int(item[0][2] or 0)))]


def find_newest(folder: Path) -> Path | None:
    return next(reversed(list_checkpoints(folder)), None)


def find_checkpoint(folder: Path, step: int) -> Path | None:
    """The last checkpoint made at a step."""
    return next((path for path in reversed(list_checkpoints(folder)) if step_of(path) == step), None)


def step_of(checkpoint: Path) -> int:
    match = NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _free_name(folder: Path, step: int) -> Path:
    """step-N; step-N.2 when a checkpoint of that step exists: it is not touched before the new one is whole."""
    newest = find_checkpoint(folder, step)
    if newest is None:
        return folder / f"step-{step}"
    match = NAME.fullmatch(newest.name)
    assert match is not None
    return folder / f"step-{step}.{int(match[2] or 1) + 1}"


def _rotate(folder: Path, kept: set[Path | None]) -> None:
    """Renamed before it is removed: what has the name of a checkpoint is whole."""
    for path in _children(folder):
        if path not in kept and path.name.endswith(PARTIAL):
            shutil.rmtree(path, ignore_errors=True)
        elif path not in kept and NAME.fullmatch(path.name):
            doomed = path.with_name(f".{path.name}{PARTIAL}")
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()


def _optimizer_tensors(state: State) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": _plain(value)
        for name, parameter in state.parameters
        for key, value in state.optimizer.state.get(parameter, {}).items()
    }
