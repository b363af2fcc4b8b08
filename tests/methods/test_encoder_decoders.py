"""Every method on every family of encoder-decoders."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.methods import matrix

pytestmark = matrix.PLAIN_PEFT_WARNS


@pytest.mark.parametrize(("kind", "name"), matrix.cells(matrix.ENCODER_DECODER_KINDS, every=2))
def test_a_method_keeps_its_promises(kind: str, name: str, tmp_path: Path) -> None:
    matrix.judge(kind, name, tmp_path)
