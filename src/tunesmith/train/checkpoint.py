"""Trained weights on disk: `checkpoints/step-N/`, complete or absent, safetensors and JSON only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tunesmith.storage import write_json

WEIGHTS = "weights.safetensors"
Named = Sequence[tuple[str, nn.Parameter]]


def save_checkpoint(folder: Path, step: int, parameters: Named, loss: float) -> Path:
    """Writes the trained weights beside their place, then renames; older checkpoints go afterwards."""
    final = folder / f"step-{step}"
    partial = folder / f".step-{step}.{os.getpid()}.partial"
    partial.mkdir(parents=True)
    save_file({name: p.detach().cpu().contiguous() for name, p in parameters}, partial / WEIGHTS)
    write_json(partial / "state.json", {"step": step, "validation_loss": loss})
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    for other in folder.iterdir():
        if other != final:
            shutil.rmtree(other)
    return final


def load_checkpoint(checkpoint: Path, parameters: Named) -> None:
    weights = load_file(checkpoint / WEIGHTS)
    with torch.no_grad():
        for name, parameter in parameters:
            parameter.copy_(weights[name])
