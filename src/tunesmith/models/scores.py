"""Attention within one group of rows: who sees whom, and softmax(q k) v.

Of long rows the score matrix no longer fits the cache, and torch's `scaled_dot_product_attention` is faster.

Shape letters: R rows of a group, L longest row of it, H query heads, K key/value heads, G = H/K queries sharing a
key head, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F

from tunesmith.models.dropout import dropout
from tunesmith.models.kernels import kernel
from tunesmith.models.recompute import kept
from tunesmith.models.segments import Group, pad, unpad
from tunesmith.runtime import working_dtype


@dataclass(frozen=True, slots=True)
class Rule:
    """Who sees whom, and how scores become weights."""

    causal: bool
    window: int | None
    softcap: float | None
    scaling: float
    dropout: float

    def find_visible(self, ahead: torch.Tensor) -> torch.Tensor | None:
        """Which keys are seen, given how far each lies ahead of its query; None: all."""
        if self.causal:
            visible = ahead <= 0
            return visible if self.window is None else visible & (ahead > -self.window)
        return None if self.window is None else ahead.abs() < self.window


def attend(q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, group: Group, rule: Rule) -> torch.Tensor:
    """One group, (tokens,H,D) each -> (tokens,H,D)."""
    how = _attend_long if group.is_long and not rule.softcap else _attend_matmul
    return by_rows((q_THD, k_TKD, v_TKD), group, partial(how, group=group, rule=rule))


def by_rows(packed: Sequence[torch.Tensor], group: Group, attend: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Calls `attend` with tensors (R,L,...) in place of packed ones (tokens,...); brings its result back."""
    return from_rows(attend(*(to_rows(x, group) for x in packed)), group)


def to_rows(packed: torch.Tensor, group: Group) -> torch.Tensor:
    """(tokens,...) -> (R,L,...)"""
    padded = packed if group.to_padded is None else pad(packed, group)
    return padded.reshape(len(group.lengths), group.longest, *packed.shape[1:])


def from_rows(padded: torch.Tensor, group: Group) -> torch.Tensor:
    """(R,L,...) -> (tokens,...)"""
    out = padded.reshape(len(group.lengths) * group.longest, *padded.shape[2:])
    return out if group.to_packed is None else unpad(out, group)


def _attend_matmul(
    q_RLHD: torch.Tensor, k_RLKD: torch.Tensor, v_RLKD: torch.Tensor, group: Group, rule: Rule
) -> torch.Tensor:
    num_key_heads = k_RLKD.shape[2]
    mask = _mask(group, rule, q_RLHD, num_key_heads, q_RLHD.shape[2] // num_key_heads)
    return weigh(q_RLHD, k_RLKD, v_RLKD, mask, rule)


def weigh(
    q_RLHD: torch.Tensor, k_RSKD: torch.Tensor, v_RSKD: torch.Tensor, mask: torch.Tensor | None, rule: Rule
) -> torch.Tensor:
    """softmax(s q k + mask) v, (R,L,H,D); the mask broadcasts to (R*K, G*L, S)."""
    rows, longest, num_heads, width = q_RLHD.shape
    num_keys, num_key_heads = k_RSKD.shape[1:3]
    shared = num_heads // num_key_heads
    # Queries that share a key head become further rows of one product: keys are never repeated.
    q = q_RLHD.reshape(rows, longest, num_key_heads, shared, width).permute(0, 2, 3, 1, 4)
    q = q.reshape(rows * num_key_heads, shared * longest, width)
    k = k_RSKD.permute(0, 2, 3, 1).reshape(rows * num_key_heads, width, num_keys)
    v = v_RSKD.permute(0, 2, 1, 3).reshape(rows * num_key_heads, num_keys, width)
    dtype = working_dtype(q)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if rule.dropout:
        out = torch.bmm(dropout(_weights(q, k, mask, rule), rule.dropout), v)
    elif rule.softcap:
        out = torch.bmm(_weights(q, k, mask, rule), v)
    else:
        out = _Attend.apply(q, k, v, mask, rule)  # type: ignore[no-untyped-call]
    out = out.reshape(rows, num_key_heads, shared, longest, width)
    return out.permute(0, 3, 1, 2, 4).reshape(rows, longest, num_heads, width)


def _weights(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, rule: Rule) -> torch.Tensor:
    if rule.softcap:
        scores = rule.softcap * torch.tanh(torch.bmm(q * rule.scaling, k) / rule.softcap)
        scores = scores if mask is None else scores + mask
    elif mask is None:
        scores = torch.bmm(q * rule.scaling, k)
    else:
        scores = torch.baddbmm(mask, q, k, alpha=rule.scaling)
    return softmax(scores)


@kernel
def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Over the last dimension, in the type of the scores."""
    # Computed inside in float32 anyway. Without a type autocast would leave it, and all that follows, in that; on a CPU
    # it takes two thirds of the time in it, there and back.
    inside = torch.float32 if scores.device.type == "cpu" else scores.dtype
    return torch.softmax(scores, -1, dtype=inside).to(scores.dtype)


@kernel
def softmax_slope(weights: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """P (g - sum(g P)), the gradient of the scores from that of the weights P."""
    return torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)


class _Attend(torch.autograd.Function):
    """softmax(s q k + mask) v that keeps q, k and v, and computes the weights, the largest tensor here, again unless
    they are kept.

    With P the weights and g the gradient of the output: dv = P^T g, dP = s g v^T, dS = P (dP - sum(dP P)),
    dq = dS k^T, dk = q^T dS.
    """

    @staticmethod
    def forward(ctx, q, k, v, mask, rule):  # type: ignore[no-untyped-def]
        weights = _weights(q, k, mask, rule)
        ctx.save_for_backward(q, k, v, mask, kept(weights))
        ctx.rule = rule
        return torch.bmm(weights, v)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v, mask, weights = ctx.saved_tensors
        weights = _weights(q, k, mask, ctx.rule) if weights is None else weights
        # The small one of the two is turned, not the weights.
        grad_v = torch.bmm(grad.transpose(1, 2), weights).transpose(1, 2)
        # Scaled where it is smallest: dS is linear in v.
        slope = softmax_slope(weights, torch.bmm(grad, (v * ctx.rule.scaling).transpose(1, 2)))
        return torch.bmm(slope, k.transpose(1, 2)), torch.bmm(q.transpose(1, 2), slope), grad_v, None, None


def _mask(group: Group, rule: Rule, like: torch.Tensor, num_key_heads: int, shared: int) -> torch.Tensor | None:
    """What is added to the scores (R*K, G*L, L): 0 where a token is seen, -inf where not, in the
    smallest shape that broadcasts. The same for every layer under one rule, so it is kept."""
    dtype = working_dtype(like)
    known = (rule.causal, rule.window, dtype, num_key_heads, shared)
    if known not in group.masks:
        visible = _visible(group, rule, like.device)
        group.masks[known] = None if visible is None else _for_heads(additive(visible, dtype), num_key_heads, shared)
    return group.masks[known]


def additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where a token is seen, -inf where not."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, float("-inf"))


def _for_heads(mask: torch.Tensor, num_key_heads: int, shared: int) -> torch.Tensor:
    rows, queries, longest = mask.shape
    heads = num_key_heads if rows > 1 else 1
    repeats = shared if queries > 1 else 1
    spread = mask[:, None, None].expand(rows, heads, repeats, queries, longest)
    return spread.reshape(rows * heads, repeats * queries, longest)


def _visible(group: Group, rule: Rule, device: torch.device) -> torch.Tensor | None:
    places = torch.arange(group.longest, device=device)
    ahead = places[None, :] - places[:, None]  # (L, L): how far key j lies ahead of query i
    visible = rule.find_visible(ahead)
    visible = None if visible is None else visible[None]
    # Rows are padded at their end, so a causal mask hides the padding from real tokens already.
    if group.to_padded is not None and not rule.causal:
        real = (places < torch.tensor(group.lengths, device=device)[:, None])[:, None]
        # A padding query under a window may see no real key: let it see itself, it is dropped later.
        visible = real if visible is None else (visible & real) | (ahead == 0)
    return visible


def _attend_long(
    q_RLHD: torch.Tensor, k_RLKD: torch.Tensor, v_RLKD: torch.Tensor, group: Group, rule: Rule
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
