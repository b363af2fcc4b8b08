"""A model that is looked at: of any family, from a run or as it is, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from tunesmith.data.sides import find_sides
from tunesmith.errors import InputError
from tunesmith.evaluation.tasks import open_network
from tunesmith.models.heads import is_encoder
from tunesmith.models.load import (
    Network,
    find_base,
    load_config,
    load_network,
    load_tokenizer,
    move,
    position_offset,
    quietly,
    resolve_model,
)
from tunesmith.models.safety import has_weights
from tunesmith.runs.folder import MANIFEST
from tunesmith.runtime import choose_device

Family = Literal["decoder", "encoder", "encoder-decoder"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with its tokenizer.

    name       as the user gave it
    speaks     it has a head that gives each place a distribution over the vocabulary
    start      of encoder-decoders, the id that the decoder starts with
    longest    most tokens of a text
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    speaks: bool
    longest: int

    @property
    def family(self) -> Family:
        if self.model.config.is_encoder_decoder:
            return "encoder-decoder"
        return "encoder" if is_encoder(self.model.config) else "decoder"

    @property
    def start(self) -> int:
        sides = find_sides(self.tokenizer)
        assert sides is not None
        return sides.start

    @property
    def body(self) -> Any:
        """What the last hidden states come out of: the base model, of encoder-decoders the decoder's."""
        return self.model.get_decoder().base_model if self.family == "encoder-decoder" else self.model.base_model


def open_subject(name: str) -> Subject:
    """A run, or a model by catalogue name, hub name or folder, on the best device and ready to be asked.

    An encoder as it is comes with its head for masked words where its files hold one, else without.

    Raises:
        InputError: unknown, damaged, or tuned by virtual tokens.
    """
    if (Path(name).expanduser() / MANIFEST).is_file():
        return _of_network(open_network(name))
    source = resolve_model(name)
    if is_encoder(load_config(source, name)):
        return _open_encoder(source, name)
    return _of_network(load_network(name, "generation", dtype=torch.float32))


def _of_network(network: Network) -> Subject:
    """What a tuned head judges is no word, so such a model is looked at without it."""
    if network.num_virtual or network.prompt is not None or network.past is not None:
        raise InputError(
            f"'{network.source}' was tuned by virtual tokens, which stand before every text and are no words. "
            "Looking inside is for methods that leave the text as it is, such as lora"
        )
    move(network, choose_device())
    network.model.eval().requires_grad_(False)
    network.model.float()
    speaks = network.task == "generation"
    return Subject(network.source, network.model, network.tokenizer, speaks, network.max_positions)


def _open_encoder(source: str, name: str) -> Subject:
    if find_base(source, name) != source:
        raise InputError(f"'{name}' is an adapter for an encoder. Give the run that it was saved by, or its base")
    if not has_weights(Path(source)):
        raise InputError(f"'{name}': no weights in {source}")
    kwargs: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager", "use_safetensors": True}
    config = load_config(source, name)
    speaks = False
    with quietly():
        if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            model, info = AutoModelForMaskedLM.from_pretrained(source, output_loading_info=True, **kwargs)
            speaks = not info["missing_keys"]
        if not speaks:
            model = AutoModel.from_pretrained(source, **kwargs)
    model.to(choose_device())
    model.eval().requires_grad_(False)
    longest = int(getattr(config, "max_position_embeddings", 0) or 2048) - position_offset(model)
    return Subject(name, model, load_tokenizer(source, name, "classification"), speaks, longest)
