"""Run under faulty_io.so: saves a checkpoint again and again, each time with another file operation failing.

Prints one JSON line: how many operations a save has, and what went wrong with the promise, if anything.
"""

from __future__ import annotations

import ctypes
import errno
import json
import shutil
import sys
from pathlib import Path

import torch
from torch import nn

from tunesmith.errors import InputError
from tunesmith.storage import check_seal
from tunesmith.train.checkpoint import State, list_checkpoints, load_checkpoint, save_checkpoint

ONCE, FROM_NOW_ON, HALF, HALF_THEN_FULL = range(4)
FAULTS = {
    "ENOSPC": (errno.ENOSPC, FROM_NOW_ON, "No space left on device"),
    "EIO": (errno.EIO, ONCE, "Input/output error"),
    "EACCES": (errno.EACCES, ONCE, "Permission denied"),
    "short write": (0, HALF, ""),
    "short write, then ENOSPC": (errno.ENOSPC, HALF_THEN_FULL, "No space left on device"),
}


def make_state(step: int) -> State:
    torch.manual_seed(step)
    weight = nn.Parameter(torch.randn(64, 64))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    state = State([("weight", weight)], optimizer, torch.device("cpu"))
    state.progress.outcome.steps = step
    return state


def newest_loads(folder: Path, known: dict[int, torch.Tensor]) -> str:
    """What is wrong with the newest checkpoint; nothing when it is whole and one of those that were saved."""
    newest = list_checkpoints(folder)[-1]
    if check_seal(newest):
        return f"{newest.name}: {check_seal(newest)}"
    state = make_state(0)
    load_checkpoint(newest, state)
    right = torch.equal(state.parameters[0][1], known[state.step])
    return "" if right else f"{newest.name}: other weights than were saved"


def try_all(library: ctypes.CDLL, place: Path, name: str) -> tuple[int, list[str]]:
    code, mode, reason = FAULTS[name]
    before, folder = place / "before", place / "checkpoints"
    states = {step: make_state(step) for step in (1, 2)}
    known = {step: state.parameters[0][1].detach().clone() for step, state in states.items()}
    wrong: list[str] = []
    number = 0
    while True:
        number += 1
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        message = ""
        library.fault_arm(str(folder).encode(), number, code, mode)
        try:
            save_checkpoint(folder, states[2], "Go on so.")
        except InputError as error:
            message = str(error)
        except BaseException as error:
            wrong.append(f"{name} {number}: {type(error).__name__}: {error}")
        num_seen, num_hit = library.fault_seen(), library.fault_hit()
        library.fault_arm(b"", 0, 0, 0)
        if num_seen < number:
            return number - 1, wrong
        trouble = newest_loads(folder, known)
        if trouble:
            wrong.append(f"{name} {number}: {trouble}")
        if message and not (reason and reason in message and str(folder) in message and "Go on so." in message):
            wrong.append(f"{name} {number}: unclear: {message}")
        if mode == HALF and num_hit and message:
            wrong.append(f"{name} {number}: a short write is no error: {message}")


def main() -> None:
    library, place = ctypes.CDLL(sys.argv[1]), Path(sys.argv[2])
    library.fault_seen.restype = library.fault_hit.restype = ctypes.c_long
    library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    save_checkpoint(place / "before", make_state(1))
    for name in FAULTS:
        num_operations, wrong = try_all(library, place, name)
        print(json.dumps({"fault": name, "operations": num_operations, "wrong": wrong}))


main()
