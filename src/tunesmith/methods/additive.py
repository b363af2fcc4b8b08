"""Additive tuning: new parameters beside the model's own, which stay frozen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, PromptTuningInit
from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as IA3_FEED,
)
from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_TARGETS,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.activations import ACT2FN

from tunesmith.config import TrainingConfig
from tunesmith.errors import InputError
from tunesmith.methods.adapters import adapter, common_keys
from tunesmith.methods.method import Method, Saving, save_pretrained
from tunesmith.models.attention import unpacked
from tunesmith.models.layers import find_layers, find_sublayers, freeze_body, linear_names
from tunesmith.models.load import Network
from tunesmith.models.safety import check_folder, refuse_foreign
from tunesmith.models.virtual import as_past
from tunesmith.models.weights import read_json, refuse_broken
from tunesmith.models.wrap import read, wrap
from tunesmith.storage import write_json

BOTTLENECK_WEIGHTS = "bottleneck.safetensors"
BOTTLENECK_CONFIG = "bottleneck.json"
PARALLEL_SCALE = 4.0  # He et al. 2022, section 4.6


class Bottleneck(nn.Module):
    """s W_up f(W_down x): a narrow layer. W_up starts at zero, so the model starts as it was.

    Shapes: W_down (size, D), W_up (D, size), D the hidden width.
    """

    def __init__(self, width: int, size: int, activation: str, scale: float = 1.0) -> None:
        super().__init__()
        self.down = nn.Linear(width, size)
        self.up = nn.Linear(size, width)
        self.activation = ACT2FN[activation]
        self.scale = scale
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        update = self.up(self.activation(self.down(x.to(self.down.weight.dtype))))
        return (update if self.scale == 1 else self.scale * update).to(x.dtype)


def _after_block(layer: Any, make: Callable[[], Bottleneck]) -> None:
    """h + B(h) on what a block gives: the residual stream itself."""
    layer.bottleneck = make()
    layer.register_forward_hook(lambda layer, _, output: _add_to(output, layer.bottleneck))


def _add_to(output: Any, bottleneck: Bottleneck) -> Any:
    """Blocks return the hidden states, alone or first in a tuple."""
    if isinstance(output, tuple):
        return (output[0] + bottleneck(output[0]), *output[1:])
    return output + bottleneck(output)


def _after_sublayers(layer: Any, make: Callable[[], Bottleneck]) -> None:
    """y + B(y) on what attention and feed-forward layer add to the residual stream (Houlsby et al. 2019, figure 2)."""
    parts = find_sublayers(layer)
    layer.bottleneck_attention, layer.bottleneck_feed = make(), make()
    parts.attention_out.register_forward_hook(lambda _, x, y: y + layer.bottleneck_attention(y))
    parts.feed_out.register_forward_hook(lambda _, x, y: y + layer.bottleneck_feed(y))


def _beside_feed_forward(layer: Any, make: Callable[[], Bottleneck]) -> None:
    """FFN(x) + s B(x) (He et al. 2022, arXiv 2110.04366, table 1: scaled parallel adapter)."""
    parts = find_sublayers(layer)
    layer.bottleneck_parallel = make()
    layer.bottleneck_parallel.scale = PARALLEL_SCALE
    seen: list[torch.Tensor] = []
    parts.feed_in.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    parts.feed_out.register_forward_hook(lambda _, x, y: y + layer.bottleneck_parallel(seen.pop()))


PLACES: dict[str, Callable[[Any, Callable[[], Bottleneck]], None]] = {
    "bottleneck": _after_block,
    "houlsby": _after_sublayers,
    "parallel": _beside_feed_forward,
}


def add_bottlenecks(network: Network, config: TrainingConfig, place: str = "bottleneck") -> None:
    freeze_body(network)
    _insert(network, place, config.bottleneck_size)


def save_bottlenecks(network: Network, folder: Path) -> None:
    """The adapters and the head: what differs from the base model."""
    trained = {name: p.detach().cpu() for name, p in network.model.named_parameters() if p.requires_grad}
    save_file({name: tensor.contiguous() for name, tensor in trained.items()}, folder / BOTTLENECK_WEIGHTS)
    first = next(module for module in network.model.modules() if isinstance(module, Bottleneck))
    config = {
        "place": network.model.bottleneck_place,
        "bottleneck_size": first.down.out_features,
        "base_model": network.source,
        "base_fingerprint": network.fingerprint,
    }
    write_json(folder / BOTTLENECK_CONFIG, config)


def restore_bottlenecks(network: Network, folder: Path) -> None:
    """Puts saved adapters and head into a freshly loaded base model.

    Raises:
        InputError: the folder is damaged, or the adapters were made for another base model.
    """
    check_folder(folder, str(folder))
    said = read_json(folder / BOTTLENECK_CONFIG)
    refuse_foreign(network, said.get("base_fingerprint", ""), str(folder))
    weights = load_file(folder / BOTTLENECK_WEIGHTS)
    refuse_broken(weights.items(), str(folder / BOTTLENECK_WEIGHTS))
    sizes = [w.shape[0] for name, w in weights.items() if name.endswith(".down.weight") and "bottleneck" in name]
    place = said.get("place", "bottleneck")
    if place not in PLACES:
        raise InputError(f"{folder / BOTTLENECK_CONFIG}: place is {place!r}, known are {', '.join(PLACES)}")
    freeze_body(network)
    _insert(network, place, sizes[0] if sizes else 1)
    places = {(name, p.shape) for name, p in network.model.named_parameters() if p.requires_grad}
    strange = sorted(places ^ {(name, tensor.shape) for name, tensor in weights.items()})
    if strange:
        raise InputError(f"{folder / BOTTLENECK_WEIGHTS}: adapters for another model, they differ in {strange[0][0]}")
    network.model.load_state_dict(weights, strict=False)


def _insert(network: Network, place: str, size: int) -> None:
    model = network.model
    activation = getattr(model.config, "hidden_act", None) or getattr(model.config, "activation_function", "gelu")
    for layer in find_layers(model):
        PLACES[place](layer, lambda: Bottleneck(model.config.hidden_size, size, str(activation)))
    model.bottleneck_place = place


# Names of the layers that make keys, values and the feed-forward layer's output, beside those that PEFT knows.
IA3_NAMES = (("k_proj", "v_proj", "down_proj"), ("k_proj", "v_proj", "fc2"), ("k_lin", "v_lin", "lin2"))


def find_ia3_targets(network: Network, config: TrainingConfig) -> dict[str, Any]:
    """Keys, values and the feed-forward layer's output, whose input is scaled (Liu et al. 2022, arXiv 2205.05638)."""
    kind, present = network.model.config.model_type, linear_names(network.model)
    by_name = next((names for names in IA3_NAMES if set(names) <= set(present)), ())
    targets = config.target_modules or IA3_TARGETS.get(kind, by_name)
    if not targets:
        raise InputError(
            f"ia3: which linear layers of '{network.source}' ({kind}) make keys, values and the feed-forward layer's "
            f"output is not known. Name them with --target-modules; it has {', '.join(present)}"
        )
    feed = {*IA3_FEED.get(kind, by_name[-1:])}
    return {"target_modules": list(targets), "feedforward_modules": [name for name in targets if name in feed]}


def add_prompt(network: Network, config: TrainingConfig) -> None:
    """Virtual tokens before every row (Lester et al. 2021, arXiv 2104.08691), PEFT's parameters and
    files. They start as embeddings of words drawn from the vocabulary: random vectors learn poorly."""
    drawn = PromptTuningInit.SAMPLE_VOCAB
    peft_config = PromptTuningConfig(**_virtual(network, config), prompt_tuning_init=drawn)
    adopt_prompt(network, wrap(network.model, peft_config))


def add_encoded_prompt(network: Network, config: TrainingConfig) -> None:
    """P-tuning: virtual tokens that a small network makes from trained ones (Liu et al. 2021, arXiv 2103.10385)."""
    adopt_prompt(network, wrap(network.model, PromptEncoderConfig(**_virtual(network, config))))


def add_prefix(network: Network, config: TrainingConfig) -> None:
    """Prefix tuning: keys and values before every row, in every layer (Li & Liang 2021, arXiv 2101.00190). They start
    as those of words drawn from the vocabulary (the same, section 7.4): random ones drown what the row says.

    Raises:
        InputError: a model that is no decoder.
    """
    model = network.model
    if not network.is_decoder:
        raise InputError(
            f"prefix puts keys and values before those of a decoder, and '{network.source}' is none. "
            "Take prompt or lora"
        )
    wrapped = wrap(model, PrefixTuningConfig(**_virtual(network, config)))
    words = torch.randint(model.config.vocab_size, (config.num_virtual_tokens,), device=model.device)
    weight = wrapped.prompt_encoder[wrapped.active_adapter].embedding.weight
    weight.data.copy_(_past_of_words(model, words))
    adopt_prefix(network, wrapped)


@torch.no_grad()
def _past_of_words(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """(P, L 2 K W), as PEFT keeps it: the keys and values that a decoder has for a row of P words."""
    cache = DynamicCache()  # without the model's settings it keeps all that a sliding window would drop
    with unpacked(model):
        model(input_ids=ids[None], past_key_values=cache, use_cache=True)
    every = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])
    return every.permute(3, 0, 1, 2, 4).flatten(1)


def adopt_prefix(network: Network, wrapped: Any) -> None:
    """Lets attention find the keys and values of a PEFT prefix."""
    name = wrapped.active_adapter
    encoder, said = wrapped.prompt_encoder[name], wrapped.peft_config[name]
    network.wrapper = wrapped
    network.num_virtual = said.num_virtual_tokens
    network.past = lambda: as_past(encoder.embedding.weight, said.num_layers, said.num_attention_heads)


def restore_prefix(network: Network, folder: Path) -> None:
    adopt_prefix(network, read(network.model, folder))


def _virtual(network: Network, config: TrainingConfig) -> dict[str, Any]:
    """Sizes are given, because PEFT does not find those of every family."""
    model = network.model.config
    return common_keys(network) | {
        "num_virtual_tokens": config.num_virtual_tokens,
        "token_dim": getattr(model, "hidden_size", None),
        "num_layers": getattr(model, "num_hidden_layers", None),
        "num_attention_heads": getattr(model, "num_attention_heads", None),
    }


def adopt_prompt(network: Network, wrapped: Any) -> None:
    """Lets the packed pass read the virtual tokens of a PEFT prompt model."""
    name = wrapped.active_adapter
    encoder, said = wrapped.prompt_encoder[name], wrapped.peft_config[name]
    network.wrapper = wrapped
    network.num_virtual = said.num_virtual_tokens
    network.prompt = lambda: encoder.embedding.weight
    if said.peft_type == "P_TUNING" and not said.inference_mode:  # what is saved is what the small network gave
        network.prompt = lambda: encoder(torch.arange(network.num_virtual, device=encoder.embedding.weight.device))


def restore_prompt(network: Network, folder: Path) -> None:
    adopt_prompt(network, read(network.model, folder))


PROMPT = Saving("PEFT adapter", save_pretrained, restore_prompt)
PREFIX = Saving("PEFT adapter", save_pretrained, restore_prefix)
BOTTLENECK = Saving("own files", save_bottlenecks, restore_bottlenecks)

ROWS = (
    Method(
        "bottleneck",
        "additive",
        "a narrow adapter after each block",
        "Pfeiffer et al. 2021, arXiv 2005.00247",
        (7.5e-4, 1e-3),
        add_bottlenecks,
        BOTTLENECK,
    ),
    Method(
        "houlsby",
        "additive",
        "narrow adapters after attention and feed-forward layer",
        "Houlsby et al. 2019, arXiv 1902.00751",
        (7.5e-4, 1e-3),
        partial(add_bottlenecks, place="houlsby"),
        BOTTLENECK,
    ),
    Method(
        "parallel",
        "additive",
        "a narrow adapter beside each feed-forward layer",
        "He et al. 2022, arXiv 2110.04366",
        (7.5e-4, 1e-3),
        partial(add_bottlenecks, place="parallel"),
        BOTTLENECK,
    ),
    Method(
        "prompt",
        "additive",
        "virtual tokens before each row",
        "Lester et al. 2021, arXiv 2104.08691",
        (1e-2, 1e-2),
        add_prompt,
        PROMPT,
        by_width=False,
        starts_equal=False,
        virtual=True,
    ),
    Method(
        "p-tuning",
        "additive",
        "virtual tokens made by a small network",
        "Liu et al. 2021, arXiv 2103.10385",
        (1e-3, 1e-3),
        add_encoded_prompt,
        PROMPT,
        by_width=False,
        starts_equal=False,
        virtual=True,
    ),
    Method(
        "prefix",
        "additive",
        "keys and values before each row, in every layer",
        "Li & Liang 2021, arXiv 2101.00190",
        (5e-3, 1.5e-2),
        add_prefix,
        PREFIX,
        by_width=False,
        starts_equal=False,
        virtual=True,
    ),
    adapter(
        "additive",
        "ia3",
        "scales for keys, values and feed-forward layers",
        "Liu et al. 2022, arXiv 2205.05638",
        IA3Config,
        (5e-3, 5e-3),
        by_width=False,
        choose=find_ia3_targets,
        transposed=True,
    ),
)
