"""Attention over rows that are packed into one sequence: no padding outside it, no leak between rows.

transformers hands every attention call to the function registered under the model's attention
implementation. Ours takes the packed layout as the keyword `segments`, which transformers passes
through from the model's forward, so no model code is touched and no global state is needed.

Rows are taken in groups of similar length. A group is brought to a common length, attends in one
batched matrix product and goes back to the packed layout; rows of the same length cost no copy for
that. Above `LONGEST_FOR_MATMUL` tokens the score matrix no longer fits the cache and torch's
`scaled_dot_product_attention` is faster, row by row.

Shape letters: T packed tokens, R rows of a group, L longest row of it, H query heads, K key/value
heads, G = H/K queries sharing a key head, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from tunesmith.models.dropout import dropout
from tunesmith.runtime import working_dtype

PACKED = "tunesmith_packed"
LONGEST_FOR_MATMUL = 700
# A group may grow while its shortest row has at least this share of the longest: above it a second
# group costs more in small operations than the padding costs in arithmetic.
SHORTEST_SHARE = 0.7
# Groups of fewer padded tokens than this are not worth splitting, whatever their shape.
SMALL_GROUP = 512


@dataclass(frozen=True, slots=True)
class Group:
    """Adjacent rows that attend in one batched product.

    `to_padded` (R*L,) says which packed token stands at each padded place (a padding place repeats
    token 0, masked), `to_packed` (tokens,) the way back. Both are None when all rows are equally long.
    """

    num_tokens: int
    lengths: tuple[int, ...]
    longest: int
    to_padded: torch.Tensor | None
    to_packed: torch.Tensor | None
    masks: dict[object, torch.Tensor | None] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Segments:
    """How a packed sequence falls into rows; made once per batch, used by every layer."""

    lengths: tuple[int, ...]
    groups: tuple[Group, ...]


def plan_segments(lengths: Sequence[int], device: torch.device) -> Segments:
    """Groups adjacent rows of similar length. Rows sorted by length give the fewest groups."""
    groups, current = [], [lengths[0]]
    for length in lengths[1:]:
        if _fits(current, length):
            current.append(length)
        else:
            groups.append(_make_group(current, device))
            current = [length]
    groups.append(_make_group(current, device))
    return Segments(tuple(lengths), tuple(groups))


def _fits(current: list[int], length: int) -> bool:
    longest, shortest = max(*current, length), min(*current, length)
    if longest > LONGEST_FOR_MATMUL:
        return False
    return shortest >= SHORTEST_SHARE * longest or longest * (len(current) + 1) <= SMALL_GROUP


def _make_group(lengths: list[int], device: torch.device) -> Group:
    longest, num_tokens = max(lengths), sum(lengths)
    if min(lengths) == longest:
        return Group(num_tokens, tuple(lengths), longest, None, None)
    counts = torch.tensor(lengths)
    starts = counts.cumsum(0) - counts
    places = torch.arange(longest)
    valid_RL = places < counts[:, None]
    to_padded = torch.where(valid_RL, starts[:, None] + places, 0).flatten()
    to_packed = valid_RL.flatten().nonzero().flatten()
    return Group(num_tokens, tuple(lengths), longest, to_padded.to(device), to_packed.to(device))


class _Pad(torch.autograd.Function):
    """Packed rows to padded ones. The gradient is the plain way back, not a scatter-add: padding
    places are masked as keys and dropped as queries, so what flows into them is exactly zero."""

    @staticmethod
    def forward(ctx, packed, to_padded, to_packed):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(to_packed)
        return packed.index_select(0, to_padded)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (to_packed,) = ctx.saved_tensors
        return grad.index_select(0, to_packed), None, None


class _Unpad(torch.autograd.Function):
    """Padded rows back to packed ones; the gradient of padding places is zero."""

    @staticmethod
    def forward(ctx, padded, to_packed):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(to_packed)
        ctx.num_places = padded.shape[0]
        return padded.index_select(0, to_packed)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (to_packed,) = ctx.saved_tensors
        padded = grad.new_zeros(ctx.num_places, *grad.shape[1:])
        padded[to_packed] = grad
        return padded, None


def _pad(packed: torch.Tensor, group: Group) -> torch.Tensor:
    padded: torch.Tensor = _Pad.apply(packed, group.to_padded, group.to_packed)  # type: ignore[no-untyped-call]
    return padded


def _unpad(padded: torch.Tensor, group: Group) -> torch.Tensor:
    packed: torch.Tensor = _Unpad.apply(padded, group.to_packed)  # type: ignore[no-untyped-call]
    return packed


def packed_attention(  # noqa: PLR0913 (the signature is the attention interface's)
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention within each packed row. query (1,H,T,D), key and value (1,K,T,D) -> (1,T,H,D).

    `sliding_window` w lets a token see itself and what is fewer than w places away: before it when
    causal, on both sides otherwise, as transformers' flash attention does.
    `softcap` c replaces a score s by c*tanh(s/c) (Gemma 2).

    Raises:
        ValueError: called without `segments`, or for a model whose attention has further terms.
    """
    if segments is None:
        raise ValueError("packed attention needs the packed layout; use unpacked(model) around plain calls")
    for term in ("position_bias", "s_aux"):
        if kwargs.get(term) is not None:
            raise ValueError(f"{type(module).__name__} adds {term} to its scores, which packing does not know")
    rule = _Rule(
        causal=bool(getattr(module, "is_causal", False) if is_causal is None else is_causal),
        window=sliding_window,
        softcap=softcap,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout=dropout if module.training else 0.0,
    )
    sizes = [group.num_tokens for group in segments.groups]
    q_parts, k_parts, v_parts = (x_1HTD[0].transpose(0, 1).split(sizes) for x_1HTD in (query, key, value))
    parts = zip(q_parts, k_parts, v_parts, segments.groups, strict=True)
    return torch.cat([_attend(q, k, v, group, rule) for q, k, v, group in parts]).unsqueeze(0), None


@dataclass(frozen=True, slots=True)
class _Rule:
    """Who sees whom, and how scores become weights."""

    causal: bool
    window: int | None
    softcap: float | None
    scaling: float
    dropout: float


def _attend(q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, group: Group, rule: _Rule) -> torch.Tensor:
    """One group, (tokens,H,D) each -> (tokens,H,D)."""
    num_rows, longest = len(group.lengths), group.longest
    if group.to_padded is not None:
        q_THD, k_TKD, v_TKD = (_pad(x, group) for x in (q_THD, k_TKD, v_TKD))
    q, k, v = (x.reshape(num_rows, longest, *x.shape[1:]) for x in (q_THD, k_TKD, v_TKD))
    attend = _attend_matmul if longest <= LONGEST_FOR_MATMUL or rule.softcap else _attend_long
    out_RLHD = attend(q, k, v, group, rule)
    packed = out_RLHD.reshape(num_rows * longest, *out_RLHD.shape[2:])
    return packed if group.to_packed is None else _unpad(packed, group)


def _attend_matmul(
    q_RLHD: torch.Tensor, k_RLKD: torch.Tensor, v_RLKD: torch.Tensor, group: Group, rule: _Rule
) -> torch.Tensor:
    rows, longest, num_heads, width = q_RLHD.shape
    num_key_heads = k_RLKD.shape[2]
    shared = num_heads // num_key_heads
    # Queries that share a key head become further rows of one product: keys are never repeated.
    q = q_RLHD.reshape(rows, longest, num_key_heads, shared, width).permute(0, 2, 3, 1, 4)
    q = q.reshape(rows * num_key_heads, shared * longest, width)
    k = k_RLKD.permute(0, 2, 3, 1).reshape(rows * num_key_heads, width, longest)
    v = v_RLKD.permute(0, 2, 1, 3).reshape(rows * num_key_heads, longest, width)
    dtype = working_dtype(q)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    mask = _mask(group, rule, q, num_key_heads, shared)
    if rule.dropout:
        out = torch.bmm(dropout(_weights(q, k, mask, rule), rule.dropout), v)
    elif rule.softcap:
        out = torch.bmm(_weights(q, k, mask, rule), v)
    else:
        out = _Attend.apply(q, k, v, mask, rule)  # type: ignore[no-untyped-call]
    out = out.reshape(rows, num_key_heads, shared, longest, width)
    return out.permute(0, 3, 1, 2, 4).reshape(rows, longest, num_heads, width)


def _weights(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, rule: _Rule) -> torch.Tensor:
    if rule.softcap:
        scores = rule.softcap * torch.tanh(torch.bmm(q * rule.scaling, k) / rule.softcap)
        scores = scores if mask is None else scores + mask
    elif mask is None:
        scores = torch.bmm(q * rule.scaling, k)
    else:
        scores = torch.baddbmm(mask, q, k, alpha=rule.scaling)
    # Autocast would make this softmax, and all that follows, float32; computed inside in float32 anyway.
    return torch.softmax(scores, -1, dtype=scores.dtype)


class _Attend(torch.autograd.Function):
    """softmax(s q k + mask) v that keeps q, k and v, and computes the weights, the largest tensor here, again.

    With P the weights and g the gradient of the output: dv = P^T g, dP = g v^T, dS = P (dP - sum(dP P)),
    dq = s dS k^T, dk = s q^T dS.
    """

    @staticmethod
    def forward(ctx, q, k, v, mask, rule):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(q, k, v, mask)
        ctx.rule = rule
        return torch.bmm(_weights(q, k, mask, rule), v)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v, mask = ctx.saved_tensors
        weights = _weights(q, k, mask, ctx.rule)
        grad_v = torch.bmm(weights.transpose(1, 2), grad)
        slope = torch.bmm(grad, v.transpose(1, 2))
        slope = torch.ops.aten._softmax_backward_data(slope, weights, -1, weights.dtype).mul_(ctx.rule.scaling)
        return torch.bmm(slope, k.transpose(1, 2)), torch.bmm(q.transpose(1, 2), slope), grad_v, None, None


def _mask(group: Group, rule: _Rule, like: torch.Tensor, num_key_heads: int, shared: int) -> torch.Tensor | None:
    """What is added to the scores (R*K, G*L, L): 0 where a token is seen, -inf where not, in the
    smallest shape that broadcasts. The same for every layer under one rule, so it is kept."""
    known = (rule.causal, rule.window, like.dtype, num_key_heads, shared)
    if known not in group.masks:
        visible = _visible(group, rule, like.device)
        group.masks[known] = None if visible is None else _additive(visible, like, num_key_heads, shared)
    return group.masks[known]


def _additive(visible: torch.Tensor, like: torch.Tensor, num_key_heads: int, shared: int) -> torch.Tensor:
    rows, queries, longest = visible.shape
    mask = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
    mask.masked_fill_(~visible, float("-inf"))
    heads = num_key_heads if rows > 1 else 1
    repeats = shared if queries > 1 else 1
    spread = mask[:, None, None].expand(rows, heads, repeats, queries, longest)
    return spread.reshape(rows * heads, repeats * queries, longest)


def _visible(group: Group, rule: _Rule, device: torch.device) -> torch.Tensor | None:
    places = torch.arange(group.longest, device=device)
    ahead = places[None, :] - places[:, None]  # (L, L): how far key j lies ahead of query i
    visible = None
    if rule.causal:
        visible = ahead <= 0
        if rule.window is not None:
            visible &= ahead > -rule.window
    elif rule.window is not None:
        visible = ahead.abs() < rule.window
    visible = None if visible is None else visible[None]
    # Rows are padded at their end, so a causal mask hides the padding from real tokens already.
    if group.to_padded is not None and not rule.causal:
        real = (places < torch.tensor(group.lengths, device=device)[:, None])[:, None]
        # A padding query under a window may see no real key: let it see itself, it is dropped later.
        visible = real if visible is None else (visible & real) | (ahead == 0)
    return visible


def _attend_long(
    q_RLHD: torch.Tensor, k_RLKD: torch.Tensor, v_RLKD: torch.Tensor, group: Group, rule: _Rule
) -> torch.Tensor:
    window_matters = rule.window is not None and rule.window < group.longest
    visible = _visible(group, rule, q_RLHD.device) if window_matters else None
    out = F.scaled_dot_product_attention(
        q_RLHD.transpose(1, 2),
        k_RLKD.transpose(1, 2),
        v_RLKD.transpose(1, 2),
        attn_mask=visible,
        dropout_p=rule.dropout,
        is_causal=rule.causal and visible is None,
        scale=rule.scaling,
        enable_gqa=q_RLHD.shape[2] != k_RLKD.shape[2],
    )
    return out.transpose(1, 2)


@contextmanager
def unpacked(model: PreTrainedModel) -> Iterator[None]:
    """Inside it the model takes padded batches and caches, as transformers' own `generate` does."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(PACKED, packed_attention)
