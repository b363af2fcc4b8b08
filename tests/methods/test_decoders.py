"""Every method on every family of decoders."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.methods import matrix

from tunesmith.methods.adapters import ADAPTER
from tunesmith.methods.additive import PREFIX, PROMPT
from tunesmith.methods.table import METHODS

pytestmark = matrix.PLAIN_PEFT_WARNS


@pytest.mark.parametrize(("kind", "name"), matrix.cells(matrix.DECODER_KINDS))
def test_a_method_keeps_its_promises(kind: str, name: str, tmp_path: Path) -> None:
    matrix.judge(kind, name, tmp_path)


# What P-tuning saves is what its network has made, and has no gradients of that network.
OF_PEFT = [
    name for name, method in METHODS.items() if method.saving in (ADAPTER, PREFIX, PROMPT) and name != "p-tuning"
]


@pytest.mark.parametrize("name", OF_PEFT)
def test_gradients_are_those_of_plain_peft(name: str, tmp_path: Path) -> None:
    found = list(matrix.gradients("llama", METHODS[name], tmp_path))
    largest = max(float(theirs.abs().max()) for _, _, theirs in found)
    for known, ours, theirs in found:
        assert float((ours - theirs).abs().max()) <= 3e-5 * largest, known
