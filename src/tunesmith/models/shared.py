"""Attention of rows that share a beginning: its keys and values stand once, and every row's own queries see them.

What the beginning itself says is computed once, by every layer. A row that goes on from it puts the beginning's keys
and values before its own.

Shape letters: R rows of a branch, L longest of their own parts, P tokens of the beginning, H query heads, K key/value
heads, G = H/K queries sharing a key head, D width of a head.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional as F

from tunesmith.models.scores import Rule, additive, attend, by_rows, weigh
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
    # A row's keys are a small copy beside its scores: G*L times as many as these are wide.
    k, v = (_with_beginning(first, own) for first, own in zip(beginning, (k_RLKD, v_RLKD), strict=True))
    mask = _mask(branch, len(beginning[0]), rule, q_RLHD, q_RLHD.shape[2] // k.shape[2])
    return weigh(q_RLHD, k, v, mask, rule)


def _with_beginning(first_PKD: torch.Tensor, own_RLKD: torch.Tensor) -> torch.Tensor:
    """(R,P+L,K,D)"""
    return torch.cat([first_PKD.expand(len(own_RLKD), *first_PKD.shape), own_RLKD], 1)


def _mask(branch: Group, size: int, rule: Rule, like: torch.Tensor, sharing: int) -> torch.Tensor:
    """What is added to the scores (R*K, G*L, P+L), the same for all rows: 0 where a token is seen, -inf where not.
    Rows are padded at their end, so that being causal hides the padding. Kept: every layer asks for it."""
    dtype = working_dtype(like)
    known = (size, rule.window, dtype, sharing)
    mask = branch.masks.get(known)
    if mask is None:
        visible = _visible(branch, size, rule, like.device)
        assert visible is not None  # being causal hides something
        mask = branch.masks[known] = additive(visible, dtype).repeat(sharing, 1)
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
    k, v = _with_beginning(beginning[0], k_1LKD), _with_beginning(beginning[1], v_1LKD)
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
