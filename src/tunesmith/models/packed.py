"""The forward pass over a packed batch: logits only where something is judged.

Shape letters: T packed tokens, S rows, N judged places, D width, V vocabulary, C classes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from tunesmith.models.heads import TASK_HEADS, find_head, pool
from tunesmith.models.load import Network, position_offset
from tunesmith.models.segments import Crossing, Segments, plan_crossing, plan_segments
from tunesmith.models.seq2seq import at_places, family_of
from tunesmith.models.virtual import Past, put_prompt, virtual_places
from tunesmith.records import PackedBatch, PackedSource


def packed_logits(network: Network, batch: PackedBatch) -> torch.Tensor:
    """(N, V) next-token logits at `batch.predict_from` for generation, (N, C) of the places themselves for token
    classification and, with C = 2 for begin and end, extractive question answering, else (S, C) for the rows."""
    if batch.source is not None:
        return two_sided_logits(network.model, packed_hidden(network, batch)[batch.predict_from])
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
    """(T, D): the last hidden states, after the final norm; those of the decoder where there is an encoder too."""
    if batch.source is not None:
        return _two_sided_hidden(network.model, batch, batch.source)
    with _above_prefix(network, batch):
        hidden_1TD: torch.Tensor = network.body(**packed_inputs(network, batch)).last_hidden_state
    return hidden_1TD[0]


def packed_embeddings(network: Network, batch: PackedBatch) -> torch.Tensor:
    """(S, D): the mean of each row's last hidden states, the usual sentence embedding."""
    return pool(packed_hidden(network, batch), batch, "mean")


def _two_sided_hidden(model: Any, batch: PackedBatch, source: PackedSource) -> torch.Tensor:
    """The encoder over all sources, then the decoder over all targets, each row of which reads its own source."""
    encoder, decoder = model.get_encoder(), model.get_decoder().base_model
    device = source.input_ids.device
    of_source = plan_segments(source.lengths, [-1] * len(source.lengths), device)
    states_1ZD = _run_stack(encoder, source.input_ids, source.position_ids, of_source)
    if hasattr(model, "enc_to_dec_proj"):  # two joined models of different width
        states_1ZD = model.enc_to_dec_proj(states_1ZD)
    crossing = plan_crossing(batch.lengths, source.lengths, device)
    more = {"encoder_hidden_states": states_1ZD, "use_cache": False}
    return _run_stack(decoder, batch.input_ids, batch.position_ids, crossing, **more)[0]


def _run_stack(
    stack: Any, ids_T: torch.Tensor, places_T: torch.Tensor, segments: Segments | Crossing, **more: Any
) -> torch.Tensor:
    """(1, T, D)"""
    if hasattr(stack, "embeddings"):  # BERT's kind takes positions
        more["position_ids"] = (places_T + position_offset(stack))[None]
        more["token_type_ids"] = torch.zeros_like(ids_T)[None]
    with at_places(stack, places_T):
        states: torch.Tensor = stack(input_ids=ids_T[None], segments=segments, **more).last_hidden_state
    return states


def two_sided_logits(model: Any, states_ND: torch.Tensor) -> torch.Tensor:
    """(N, V) where the output layer is no plain product: something was put around it."""
    family, head = family_of(model), model.get_output_embeddings()
    logits_NV: torch.Tensor = head(family.enter(model, states_ND))
    bias = family.bias(model)
    return logits_NV if bias is None or getattr(head, "bias", None) is not None else logits_NV + bias


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
    if network.past is not None:
        inputs["past"] = Past(virtual_places(batch), network.past())
    if network.prompt is None:
        return inputs | {"input_ids": batch.input_ids[None]}
    embeddings_TD = network.body.get_input_embeddings()(batch.input_ids)
    return inputs | {"inputs_embeds": put_prompt(embeddings_TD, network.prompt(), batch)[None]}
