"""The forward pass over a packed batch: logits only where something is judged.

Shape letters: T packed tokens, S rows, N judged places, P virtual tokens, D width, V vocabulary,
C classes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from tunesmith.models.heads import TASK_HEADS, find_head, pool
from tunesmith.models.load import Network, position_offset
from tunesmith.models.segments import plan_segments
from tunesmith.records import PackedBatch


def packed_logits(network: Network, batch: PackedBatch) -> torch.Tensor:
    """(N, V) next-token logits at `batch.predict_from` for generation, (N, C) of the places themselves for token
    classification, else (S, C) for the rows."""
    if network.task not in TASK_HEADS:
        with _above_prefix(network, batch):
            logits: torch.Tensor = network.model(
                **packed_inputs(network, batch), logits_to_keep=batch.predict_from
            ).logits
        return logits[0]
    head = find_head(network.model, network.task)
    hidden_TD = packed_hidden(network, batch)
    return head.logits(network.model, pool(hidden_TD, batch, head.pooling(network.model)))


def packed_hidden(network: Network, batch: PackedBatch) -> torch.Tensor:
    """(T, D): the last hidden states, after the final norm."""
    with _above_prefix(network, batch):
        hidden_1TD: torch.Tensor = network.body(**packed_inputs(network, batch)).last_hidden_state
    return hidden_1TD[0]


def packed_embeddings(network: Network, batch: PackedBatch) -> torch.Tensor:
    """(S, D): the mean of each row's last hidden states, the usual sentence embedding."""
    return pool(packed_hidden(network, batch), batch, "mean")


def _above_prefix(network: Network, batch: PackedBatch) -> AbstractContextManager[None]:
    return nullcontext() if network.prefix is None else network.prefix.serving(batch)


def packed_inputs(network: Network, batch: PackedBatch) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "position_ids": (batch.position_ids + position_offset(network.model))[None],
        "segments": plan_segments(batch.lengths, batch.parents, batch.input_ids.device),
    }
    if network.is_decoder:
        inputs["use_cache"] = False
    elif num_types := getattr(network.model.config, "type_vocab_size", 0):
        # Encoders keep a ready-made row of these, as long as one row may be; a pack is longer.
        types = None if num_types < 2 else batch.token_types
        inputs["token_type_ids"] = (torch.zeros_like(batch.input_ids) if types is None else types)[None]
    if network.prompt is None:
        return inputs | {"input_ids": batch.input_ids[None]}
    return inputs | {"inputs_embeds": _with_prompt(network, batch)[None]}


def _with_prompt(network: Network, batch: PackedBatch) -> torch.Tensor:
    """Embeddings (T, D) with the P virtual tokens at the head of every row, or of the beginning it shares."""
    embeddings_TD = network.body.get_input_embeddings()(batch.input_ids)
    prompt_PD = network.prompt().to(embeddings_TD.dtype)
    starts = torch.tensor(batch.lengths).cumsum(0) - torch.tensor(batch.lengths)
    heads = starts[torch.tensor(batch.parents) < 0]
    places = (heads[:, None] + torch.arange(batch.num_virtual)).flatten().to(embeddings_TD.device)
    return embeddings_TD.index_copy(0, places, prompt_PD.repeat(len(heads), 1))
