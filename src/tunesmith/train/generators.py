"""The random generators a training draws from: Python's, NumPy's, torch's, and each accelerator's."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

States = dict[str, torch.Tensor]


def capture(device: torch.device) -> States:
    """Their states as tensors. Dropout draws from torch's; the others are kept for whoever draws from them."""
    version, words, spare = random.getstate()
    legacy: Any = np.random.get_state()
    _, numpy_words, position, has_gauss, gauss = legacy
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words]),
        "python_spare": torch.tensor([] if spare is None else [spare], dtype=torch.float64),
        "numpy": torch.tensor([*numpy_words.tolist(), position, has_gauss]),
        "numpy_spare": torch.tensor([gauss], dtype=torch.float64),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore(states: States, device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    version, *words = states["python"].tolist()
    random.setstate((version, tuple(words), next(iter(states["python_spare"].tolist()), None)))
    *numpy_words, position, has_gauss = states["numpy"].tolist()
    gauss: Any = states["numpy_spare"].item()
    np.random.set_state(("MT19937", np.array(numpy_words, dtype=np.uint32), position, has_gauss, gauss))
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
