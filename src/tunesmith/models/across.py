"""Attention from one set of rows to another, row by row, and with a bias by distance: what encoder-decoders need.

A decoder's row reads the encoder's row of the same number (cross-attention). T5 has no positions; its scores get a bias
by how far key and query lie apart (Raffel et al. 2020, arXiv 1910.10683, section 2.1), which is the same for every row.

Shape letters: R rows of a group, Q the longest of its queries, K the longest of its keys, H heads, D width of a head.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tunesmith.models.dropout import dropout
from tunesmith.models.recompute import kept
from tunesmith.models.scores import Rule, additive, from_rows, softmax, softmax_slope, to_rows
from tunesmith.models.segments import Group
from tunesmith.runtime import working_dtype

Pair = tuple[Group, Group]


def attend_across(
    q_THD: torch.Tensor,
    k_SHD: torch.Tensor,
    v_SHD: torch.Tensor,
    pair: Pair,
    rule: Rule,
    bias_HQK: torch.Tensor | None = None,
) -> torch.Tensor:
    """One group: queries (tokens,H,D) of its rows to keys and values of `pair[1]`'s -> (tokens,H,D).

    `bias_HQK` is added to the scores; it may be larger than the rows are long, its first places count.
    """
    queries, keys = pair
    q_RQHD, k_RKHD, v_RKHD = to_rows(q_THD, queries), to_rows(k_SHD, keys), to_rows(v_SHD, keys)
    if bias_HQK is not None:
        bias_HQK = bias_HQK[:, : queries.longest, : keys.longest]
    is_long = queries.is_long or keys.is_long
    how = _attend_long if is_long else _attend_matmul
    return from_rows(how(q_RQHD, k_RKHD, v_RKHD, bias_HQK, pair, rule), queries)


def _attend_matmul(
    q_RQHD: torch.Tensor,
    k_RKHD: torch.Tensor,
    v_RKHD: torch.Tensor,
    bias_HQK: torch.Tensor | None,
    pair: Pair,
    rule: Rule,
) -> torch.Tensor:
    rows, longest, heads, width = q_RQHD.shape
    dtype = working_dtype(q_RQHD)
    # (R*H, Q, D), (R*H, D, K) and (R*H, K, D)
    q = q_RQHD.permute(0, 2, 1, 3).reshape(rows * heads, longest, width).to(dtype)
    k = k_RKHD.permute(0, 2, 3, 1).reshape(rows * heads, width, -1).to(dtype)
    v = v_RKHD.permute(0, 2, 1, 3).reshape(rows * heads, -1, width).to(dtype)
    bias = None if bias_HQK is None else bias_HQK.to(dtype)
    mask = _mask(pair, rule, q)
    if rule.dropout:
        out = torch.bmm(dropout(_weights(q, k, bias, mask, heads, rule.scaling), rule.dropout), v)
    else:
        out = _Attend.apply(q, k, v, bias, mask, heads, rule.scaling)  # type: ignore[no-untyped-call]
    return out.reshape(rows, heads, longest, width).permute(0, 2, 1, 3)


def _weights(
    q: torch.Tensor,
    k: torch.Tensor,
    bias_HQK: torch.Tensor | None,
    mask: torch.Tensor | None,
    heads: int,
    scaling: float,
) -> torch.Tensor:
    scores_RHQK = torch.bmm(q * scaling, k).unflatten(0, (-1, heads))
    if bias_HQK is not None:
        scores_RHQK = scores_RHQK + bias_HQK
    if mask is not None:
        scores_RHQK = scores_RHQK + mask
    return softmax(scores_RHQK).flatten(0, 1)


class _Attend(torch.autograd.Function):
    """softmax(s q k + bias + mask) v that keeps what it is given, and computes the weights again unless they are kept.

    With P the weights and g the gradient of the output: dv = P^T g, dP = g v^T, dS = P (dP - sum(dP P)),
    dq = s dS k^T, dk = s q^T dS, and the bias, which all rows share, gets the sum of dS over rows.
    """

    @staticmethod
    def forward(ctx, q, k, v, bias, mask, heads, scaling):  # type: ignore[no-untyped-def]  # noqa: PLR0913
        weights = _weights(q, k, bias, mask, heads, scaling)
        ctx.save_for_backward(q, k, v, bias, mask, kept(weights))
        ctx.settings = heads, scaling
        return torch.bmm(weights, v)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v, bias, mask, weights = ctx.saved_tensors
        heads, scaling = ctx.settings
        weights = _weights(q, k, bias, mask, heads, scaling) if weights is None else weights
        grad_v = torch.bmm(weights.transpose(1, 2), grad)
        slope = softmax_slope(weights, torch.bmm(grad, v.transpose(1, 2)))
        grad_bias = slope.unflatten(0, (-1, heads)).sum(0) if ctx.needs_input_grad[3] else None
        slope = slope.mul_(scaling)
        grad_q, grad_k = torch.bmm(slope, k.transpose(1, 2)), torch.bmm(q.transpose(1, 2), slope)
        return grad_q, grad_k, grad_v, grad_bias, None, None, None


def _mask(pair: Pair, rule: Rule, like: torch.Tensor) -> torch.Tensor | None:
    """What is added to the scores, (R or 1, 1, Q or 1, K): 0 where a key is seen, -inf where not. The same for every
    layer under one rule, so it is kept."""
    masks, known = pair[0].masks, ("across", rule.causal, like.dtype)
    if known not in masks:
        visible = _visible(pair, rule, like.device)
        masks[known] = None if visible is None else additive(visible, like.dtype)
    return masks[known]


def _visible(pair: Pair, rule: Rule, device: torch.device) -> torch.Tensor | None:
    queries, keys = pair
    places = torch.arange(keys.longest, device=device)
    if rule.causal:  # rows are padded at their end, so this hides the padding too
        return (places[None, :] <= torch.arange(queries.longest, device=device)[:, None])[None, None]
    if keys.to_padded is None:
        return None
    return (places < torch.tensor(keys.lengths, device=device)[:, None])[:, None, None]


def _attend_long(
    q_RQHD: torch.Tensor,
    k_RKHD: torch.Tensor,
    v_RKHD: torch.Tensor,
    bias_HQK: torch.Tensor | None,
    pair: Pair,
    rule: Rule,
) -> torch.Tensor:
    mask = _mask(pair, rule, q_RQHD)
    if bias_HQK is not None:
        bias = bias_HQK.to(q_RQHD.dtype)[None]
        mask = bias if mask is None else bias + mask
    out = F.scaled_dot_product_attention(
        q_RQHD.transpose(1, 2),
        k_RKHD.transpose(1, 2),
        v_RKHD.transpose(1, 2),
        attn_mask=mask,
        dropout_p=rule.dropout,
        scale=rule.scaling,
    )
    return out.transpose(1, 2)
