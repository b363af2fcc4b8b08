"""Every method on every family of encoders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.methods import matrix

from tunesmith.config import TuneConfig
from tunesmith.methods.table import METHODS
from tunesmith.models.load import Network

pytestmark = matrix.PLAIN_PEFT_WARNS


@pytest.mark.parametrize(("kind", "name"), matrix.cells(matrix.ENCODER_KINDS, every=2))
def test_a_method_keeps_its_promises(kind: str, name: str, tmp_path: Path) -> None:
    matrix.judge(kind, name, tmp_path)


def test_a_broken_promise_is_noticed(tmp_path: Path) -> None:
    """One row for each: an adapter that does not start equal, one that trains more than it says, a wrong file."""
    lora = METHODS["lora"]

    def start_elsewhere(network: Network, config: TuneConfig) -> None:
        lora.apply(network, config)
        for name, parameter in network.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)

    def train_norms_too(network: Network, config: TuneConfig) -> None:
        lora.apply(network, config)
        for name, parameter in network.model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or "LayerNorm" in name)

    def save_half(network: Network, folder: Path) -> None:
        for name, parameter in network.model.named_parameters():
            parameter.data.mul_(0.5 if "lora_B" in name else 1)
        lora.saving.save(network, folder)

    broken = {
        "start": replace(lora, apply=start_elsewhere),
        "more": replace(lora, apply=train_norms_too),
        "file": replace(lora, saving=replace(lora.saving, save=save_half)),
        "rate": replace(lora, rate_of=lambda _: 0.0),
    }
    for fault, row in broken.items():
        (tmp_path / fault).mkdir()
        with pytest.raises(AssertionError):
            matrix.check("bert", row, tmp_path / fault)
