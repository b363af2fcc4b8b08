"""Attention of rows that share a beginning: its keys and values stand once, and every row's own queries see them.

What the beginning itself says is computed once. For each row that goes on from it the scores are those to the
beginning, one product for all rows together, beside those to its own tokens; one softmax runs over both
(the arithmetic of shared-prefix attention, Juravsky et al. 2024, arXiv 2402.05099, with gradients).

Shape letters: R rows of a branch, L longest of their own parts, P tokens of the beginning, H query heads, K key/value
heads, G = H/K queries sharing a key head, D width of a head.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional as F

from tunesmith.models.dropout import dropout
from tunesmith.models.scores import Rule, additive, attend, by_rows
from tunesmith.models.segments import Group, Shared
from tunesmith.runtime import working_dtype


def attend_shared(
    q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, shared: Shared, rule: Rule
) -> torch.Tensor:
    """A beginning and what goes on from it, (tokens,H,D) each -> (tokens,H,D).

    Raises:
        ValueError: the attention looks ahead, so that what follows would change the beginning.
    """
    if not rule.causal:
        raise ValueError("rows can share a beginning only under causal attention")
    sizes = [shared.beginning.num_tokens, *(branch.num_tokens for branch in shared.branches)]
    qs, ks, vs = (x.split(sizes) for x in (q_THD, k_TKD, v_TKD))
    outs = [attend(qs[0], ks[0], vs[0], shared.beginning, rule)]
    for q, k, v, branch in zip(qs[1:], ks[1:], vs[1:], shared.branches, strict=True):
        how = _attend_long if branch.is_long and not rule.softcap else _attend_matmul
        outs.append(by_rows((q, k, v), branch, partial(how, beginning=(ks[0], vs[0]), branch=branch, rule=rule)))
    return torch.cat(outs)


def _attend_matmul(
    q_RLHD: torch.Tensor,
    k_RLKD: torch.Tensor,
    v_RLKD: torch.Tensor,
    beginning: tuple[torch.Tensor, torch.Tensor],
    branch: Group,
    rule: Rule,
) -> torch.Tensor:
    rows, longest, num_heads, width = q_RLHD.shape
    num_key_heads = k_RLKD.shape[2]
    sharing = num_heads // num_key_heads
    dtype = working_dtype(q_RLHD)
    # Key heads outermost: all rows' queries of a head lie together before the beginning's keys of that head.
    q = q_RLHD.reshape(rows, longest, num_key_heads, sharing, width).permute(2, 0, 3, 1, 4)
    q = q.reshape(num_key_heads * rows, sharing * longest, width).to(dtype)
    k = k_RLKD.permute(2, 0, 3, 1).reshape(num_key_heads * rows, width, longest).to(dtype)
    v = v_RLKD.permute(2, 0, 1, 3).reshape(num_key_heads * rows, longest, width).to(dtype)
    k_KDP = beginning[0].permute(1, 2, 0).to(dtype)
    v_KPD = beginning[1].permute(1, 0, 2).to(dtype)
    mask = _mask(branch, len(beginning[0]), rule, q, sharing)
    if rule.dropout or rule.softcap:
        weights = _weights(q, k_KDP, k, mask, rule)
        out = _mix(dropout(weights, rule.dropout) if rule.dropout else weights, v_KPD, v)
    else:
        out = _Attend.apply(q, k, v, k_KDP, v_KPD, mask, rule)  # type: ignore[no-untyped-call]
    out = out.reshape(num_key_heads, rows, sharing, longest, width)
    return out.permute(1, 3, 0, 2, 4).reshape(rows, longest, num_heads, width)


def _weights(q: torch.Tensor, k_KDP: torch.Tensor, k: torch.Tensor, mask: torch.Tensor, rule: Rule) -> torch.Tensor:
    """(K*R, G*L, P+L) from queries (K*R, G*L, D), the beginning's keys, and own keys (K*R, D, L)."""
    heads = len(k_KDP)
    q = q * rule.scaling
    to_beginning = torch.bmm(q.reshape(heads, -1, q.shape[-1]), k_KDP).view(*q.shape[:2], -1)
    scores = torch.cat([to_beginning, torch.bmm(q, k)], -1)
    if rule.softcap:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    # Autocast would make this softmax, and all that follows, float32; computed inside in float32 anyway.
    return torch.softmax(scores.add_(mask), -1, dtype=scores.dtype)


def _mix(weights: torch.Tensor, v_KPD: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(K*R, G*L, D): values of the beginning and own values (K*R, L, D), weighed."""
    heads, size, width = v_KPD.shape
    of_beginning = torch.bmm(weights[..., :size].reshape(heads, -1, size), v_KPD)
    return torch.baddbmm(of_beginning.view(*weights.shape[:2], width), weights[..., size:], v)


class _Attend(torch.autograd.Function):
    """softmax(s q [k' k] + mask) [v'; v], the beginning's keys and values marked by a stroke. Keeps what it was given
    and computes the weights, the largest tensor here, again.

    With P = [P' P] the weights and g the gradient of the output: dP = g [v'; v]^T, dS = P (dP - sum(dP P)),
    dq = s (dS' k'^T + dS k^T), dk = s q^T dS, dv = P^T g; dk' and dv' likewise, summed over all rows.
    """

    @staticmethod
    def forward(ctx, q, k, v, k_KDP, v_KPD, mask, rule):  # type: ignore[no-untyped-def]  # noqa: PLR0913
        ctx.save_for_backward(q, k, v, k_KDP, v_KPD, mask)
        ctx.rule = rule
        return _mix(_weights(q, k_KDP, k, mask, rule), v_KPD, v)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v, k_KDP, v_KPD, mask = ctx.saved_tensors
        heads, size = v_KPD.shape[:2]
        weights = _weights(q, k_KDP, k, mask, ctx.rule)
        grad = grad.contiguous()
        q_all, grad_all = (x.reshape(heads, -1, x.shape[-1]) for x in (q, grad))
        grad_v = torch.bmm(weights[..., size:].transpose(1, 2), grad)
        grad_v_KPD = torch.bmm(weights[..., :size].reshape(heads, -1, size).transpose(1, 2), grad_all)
        to_beginning = torch.bmm(grad_all, v_KPD.transpose(1, 2)).view(*weights.shape[:2], size)
        slope = torch.cat([to_beginning, torch.bmm(grad, v.transpose(1, 2))], -1)
        slope = torch.ops.aten._softmax_backward_data(slope, weights, -1, weights.dtype).mul_(ctx.rule.scaling)
        own, shared = slope[..., size:], slope[..., :size].reshape(heads, -1, size)
        grad_q = torch.bmm(shared, k_KDP.transpose(1, 2)).view_as(q)
        grad_q = torch.baddbmm(grad_q, own, k.transpose(1, 2))
        grad_k, grad_k_KDP = torch.bmm(q.transpose(1, 2), own), torch.bmm(q_all.transpose(1, 2), shared)
        return grad_q, grad_k, grad_v, grad_k_KDP, grad_v_KPD, None, None


def _mask(branch: Group, size: int, rule: Rule, like: torch.Tensor, sharing: int) -> torch.Tensor:
    """What is added to the scores (K*R, G*L, P+L), the same for all rows: 0 where a token is seen, -inf where not.
    Rows are padded at their end, so that being causal hides the padding. Kept: every layer asks for it."""
    known = (size, rule.window, like.dtype, sharing)
    mask = branch.masks.get(known)
    if mask is None:
        visible = _visible(branch, size, rule, like.device)
        assert visible is not None  # being causal hides something
        mask = branch.masks[known] = additive(visible, like).repeat(sharing, 1)
    return mask


def _visible(branch: Group, size: int, rule: Rule, device: torch.device) -> torch.Tensor | None:
    """(L, P+L): which tokens, of the beginning and its own, each place of a row sees."""
    places = torch.arange(size + branch.longest, device=device)
    return rule.find_visible(places[None, :] - places[size:, None])


def _attend_long(
    q_1LHD: torch.Tensor,
    k_1LKD: torch.Tensor,
    v_1LKD: torch.Tensor,
    beginning: tuple[torch.Tensor, torch.Tensor],
    branch: Group,
    rule: Rule,
) -> torch.Tensor:
    """A row too long for its scores to fit the cache is a branch of its own."""
    k = torch.cat([beginning[0][None], k_1LKD], 1)
    v = torch.cat([beginning[1][None], v_1LKD], 1)
    out = F.scaled_dot_product_attention(
        q_1LHD.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=_visible(branch, len(beginning[0]), rule, q_1LHD.device),
        dropout_p=rule.dropout,
        scale=rule.scaling,
        enable_gqa=q_1LHD.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)
