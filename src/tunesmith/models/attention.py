"""Attention over rows that are packed into one sequence: no padding outside it, no leak between rows.

transformers hands every attention call to the function registered under the model's attention
implementation. Ours takes the packed layout as the keyword `segments`, which transformers passes
through from the model's forward, so no model code is touched and no global state is needed.

Shape letters: T packed tokens, H query heads, K key/value heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from tunesmith.models.across import attend_across
from tunesmith.models.scores import Rule, attend
from tunesmith.models.segments import Crossing, Segments, Shared
from tunesmith.models.shared import attend_shared
from tunesmith.models.virtual import Past

PACKED = "tunesmith_packed"


def packed_attention(  # noqa: PLR0913 (the signature is the attention interface's)
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Segments | Crossing | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    past: Past | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention within each packed row. query (1,H,T,D), key and value (1,K,T,D) -> (1,T,H,D).

    `sliding_window` w lets a token see itself and what is fewer than w places away: before it when
    causal, on both sides otherwise, as transformers' flash attention does.
    `softcap` c replaces a score s by c*tanh(s/c) (Gemma 2). `position_bias` (1,H,L,L) is what is added to the scores of
    the longest row, and of others as far as they go; of a cross-attention it is passed over.
    `past` has keys and values of virtual tokens.

    Raises:
        ValueError: called without `segments`, or for a model whose attention has further terms.
    """
    if segments is None:
        raise ValueError("packed attention needs the packed layout; use unpacked(model) around plain calls")
    if s_aux is not None:
        raise ValueError(f"{type(module).__name__} adds s_aux to its scores, which packing does not know")
    if past is not None:
        key, value = past.put(int(module.layer_idx), key, value)  # type: ignore[arg-type]
    rule = Rule(
        causal=bool(getattr(module, "is_causal", False) if is_causal is None else is_causal),
        window=sliding_window,
        softcap=softcap,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout=dropout if module.training else 0.0,
    )
    q_THD, k_TKD, v_TKD = (x_1HTD[0].transpose(0, 1) for x_1HTD in (query, key, value))
    if isinstance(segments, Crossing):
        if not rule.causal:
            return _attend_crossing(q_THD, k_TKD, v_TKD, segments, rule).unsqueeze(0), None
        segments = segments.own
    if position_bias is not None and position_bias.shape[-2:] != (segments.longest, segments.longest):
        raise ValueError(f"{type(module).__name__} adds to its scores a position_bias that packing does not know")
    sizes = [part.num_tokens for part in segments.parts]
    outs = []
    for q, k, v, part in zip(*(x.split(sizes) for x in (q_THD, k_TKD, v_TKD)), segments.parts, strict=True):
        if isinstance(part, Shared):
            outs.append(attend_shared(q, k, v, part, rule))
        elif position_bias is not None:
            outs.append(attend_across(q, k, v, (part, part), rule, position_bias[0]))
        else:
            outs.append(attend(q, k, v, part, rule))
    return torch.cat(outs).unsqueeze(0), None


def _attend_crossing(
    q_THD: torch.Tensor, k_SHD: torch.Tensor, v_SHD: torch.Tensor, crossing: Crossing, rule: Rule
) -> torch.Tensor:
    """Each row of a decoder to the encoder's row of the same number."""
    qs = q_THD.split([queries.num_tokens for queries, _ in crossing.pairs])
    ks, vs = (x.split([keys.num_tokens for _, keys in crossing.pairs]) for x in (k_SHD, v_SHD))
    return torch.cat(
        [attend_across(q, k, v, pair, rule) for q, k, v, pair in zip(qs, ks, vs, crossing.pairs, strict=True)]
    )


@contextmanager
def unpacked(model: PreTrainedModel) -> Iterator[None]:
    """Inside it the model takes padded batches and caches, as transformers' own `generate` does."""
    before = model.config._attn_implementation
    # Models whose scores have a cap do without PyTorch's fused attention.
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(PACKED, packed_attention)
