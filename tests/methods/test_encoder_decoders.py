"""Every method on every family of encoder-decoders."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft.tuners.tuners_utils import BaseTunerLayer
from tests.methods import matrix
from tests.parity.tiny import make_network

from tunesmith.methods.table import METHODS
from tunesmith.models.layers import find_layers

pytestmark = matrix.PLAIN_PEFT_WARNS


@pytest.mark.parametrize(("kind", "name"), matrix.cells(matrix.ENCODER_DECODER_KINDS, every=3))
def test_a_method_keeps_its_promises(kind: str, name: str, tmp_path: Path) -> None:
    matrix.judge(kind, name, tmp_path)


@pytest.mark.parametrize(
    ("kind", "above", "beside"),
    [("t5", "decoder.final_layer_norm", "encoder.final_layer_norm"), ("bart", "", "model.decoder.layernorm_embedding")],
)
def test_the_last_layers_are_the_decoder_s(kind: str, above: str, beside: str) -> None:
    """With the norm that follows them; one of the embeddings is none of theirs."""
    network = matrix.put_under(kind, METHODS["last-layers"])
    trained = {name for name, parameter in network.model.named_parameters() if parameter.requires_grad}
    (last,) = (name for name, block in network.model.named_modules() if block is find_layers(network.model)[-1])
    others = {name for name in trained if not name.startswith(f"{last}.")}
    assert others == ({f"{above}.weight"} if above else set())
    assert not any(name.startswith(beside) for name in trained)


@pytest.mark.parametrize("name", ["lora", "vera"])
def test_adapters_stay_inside_the_blocks(name: str, tmp_path: Path) -> None:
    """BERT's pooler has a layer called as those of its blocks are, and in two joined ones nobody asks it. VeRA's
    settings cannot leave a layer out."""
    network = make_network("bert2bert", "generation", tmp_path)
    METHODS[name].apply(network, matrix.small(METHODS[name]))
    wrapped = {path for path, module in network.model.named_modules() if isinstance(module, BaseTunerLayer)}
    assert {path for path in wrapped if "pooler" in path} == set()
    assert len(wrapped) == 3 * 6 + 3 * 10
