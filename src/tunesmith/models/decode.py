"""One batch of answers in the making: prompts go through the network once and packed, then a token of each row a step.

Shape letters: R rows (answers at work), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.data.pack import pack, token_batches
from tunesmith.models.cache import Cache, attending_to_cache
from tunesmith.models.load import Network, position_offset
from tunesmith.models.packed import packed_inputs
from tunesmith.records import PackedBatch, TokenizedExample
from tunesmith.runtime import autocast

KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def can_decode(model: PreTrainedModel) -> bool:
    """Whether a decoder's blocks are such that the cache serves them: each holds one causal attention, which takes
    its function from transformers' interface, with keys and values of its own and no further terms.

    Others (state-space and hybrid models, attention sinks, layers that share keys, encoder-decoders) are
    answered by transformers' own `generate`.
    """
    config = model.config
    attentions = [module for module in model.modules() if hasattr(module, "is_causal") and hasattr(module, "layer_idx")]
    return (
        model._supports_attention_backend
        and not model._is_stateful
        and not config.is_encoder_decoder
        and set(getattr(config, "layer_types", None) or KNOWN_LAYERS) <= KNOWN_LAYERS
        and not getattr(config, "num_kv_shared_layers", 0)
        and sorted(module.layer_idx for module in attentions) == list(range(config.num_hidden_layers))
        and all(_is_plain(module) for module in attentions)
    )


def _is_plain(attention: nn.Module) -> bool:
    """Causal, without sinks; keys as wide as values (others are laid out in ways of their own)."""
    key_width, value_width = getattr(attention, "qk_head_dim", None), getattr(attention, "v_head_dim", None)
    return bool(attention.is_causal) and not hasattr(attention, "sinks") and key_width == value_width


class Decoder:
    """The network and the cache of one batch. `owners` names the prompt of each row.

    The model must be in evaluation mode: with dropout the log-probabilities would be another model's.
    """

    def __init__(
        self,
        network: Network,
        prompts: Sequence[Sequence[int]],
        owners: Sequence[int],
        most_new: int,
        dtype: torch.dtype,
    ) -> None:
        assert not network.model.training
        self._network, self._dtype = network, dtype
        rows = [TokenizedExample(tuple(ids), (False,) * len(ids), None, 0, index) for index, ids in enumerate(prompts)]
        self._passes = [
            pack([rows[index] for index in chosen], network.num_virtual, share=True)
            for chosen in token_batches(rows, share=True)
        ]
        # The cache holds prompts in the order in which they are packed; rows stay in the order given.
        order = [index for batch in self._passes for index in batch.rows]
        number = {index: number for number, index in enumerate(order)}
        self._owners = [number[owner] for owner in owners]
        lengths = [network.num_virtual + len(prompts[index]) for index in order]
        self._cache = Cache(lengths, self._owners, most_new, network.model.device)

    def begin(self) -> torch.Tensor:
        """(R, V) logits of each row's first token."""
        parts = []
        for batch in self._passes:
            judged = _judged_at_ends(batch).to(self._network.model.device)
            with self._cache.filling(judged), self._at_work():
                inputs = packed_inputs(self._network, judged)
                parts.append(self._call(logits_to_keep=judged.predict_from, **inputs))
        return torch.cat(parts)[self._owners]

    def step(self, tokens_R: torch.Tensor) -> torch.Tensor:
        """(R, V) logits of the tokens that follow."""
        position_ids = self._cache.positions_R + position_offset(self._network.model)
        with self._at_work():
            logits_RV = self._call(input_ids=tokens_R[None], position_ids=position_ids[None], use_cache=False)
        self._cache.next_token()
        return logits_RV

    def keep_rows(self, order: Sequence[int]) -> None:
        """Row i becomes what row order[i] was; the others leave."""
        with torch.inference_mode():
            self._cache.keep_rows(order)

    def _call(self, **inputs: object) -> torch.Tensor:
        # Not through `network.prefix`: blocks that are passed over leave no keys and values.
        logits: torch.Tensor = self._network.model(cache=self._cache, **inputs).logits
        return logits[0]

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """For one pass only: between two of them others may use the model."""
        model = self._network.model
        with torch.inference_mode(), attending_to_cache(model), autocast(model.device, self._dtype):
            yield


def _judged_at_ends(batch: PackedBatch) -> PackedBatch:
    """The batch, judged at the last place of each row."""
    ends = torch.tensor(batch.lengths).cumsum(0) - 1
    return replace(batch, predict_from=ends[[chain[-1] for chain in batch.chains]])
