"""The packed layout, as attention needs it: which rows attend together, and how they are brought to one length.

Rows are taken in groups of similar length. A group is brought to a common length, attends in one batched matrix
product and goes back to the packed layout; rows of the same length cost no copy for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

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

    @property
    def is_long(self) -> bool:
        """The scores do not fit the cache; such a row is a group of its own."""
        return self.longest > LONGEST_FOR_MATMUL


@dataclass(frozen=True, slots=True)
class Shared:
    """A beginning that stands in the pack once, and the groups of rows that go on from it, right behind it."""

    beginning: Group
    branches: tuple[Group, ...]

    @property
    def num_tokens(self) -> int:
        return self.beginning.num_tokens + sum(branch.num_tokens for branch in self.branches)


@dataclass(frozen=True, slots=True)
class Segments:
    """How a packed sequence falls into parts that do not see each other; made once per batch, used by every layer."""

    parts: tuple[Group | Shared, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest row of its own."""
        return max(part.longest for part in self.parts if isinstance(part, Group))


@dataclass(frozen=True, slots=True)
class Crossing:
    """What a decoder's attention needs beside an encoder: its own rows, and with them, group by group, the encoder's
    rows that they read."""

    own: Segments
    pairs: tuple[tuple[Group, Group], ...]


def plan_segments(lengths: Sequence[int], parents: Sequence[int], device: torch.device) -> Segments:
    """Groups adjacent rows of similar length. Rows sorted by length give the fewest groups.

    `parents` as in PackedBatch: what goes on from a segment stands right behind it.
    """
    children: dict[int, list[int]] = {segment: [] for segment, parent in enumerate(parents) if parent < 0}
    for segment, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(lengths[segment])
    parts: list[Group | Shared] = []
    alone: list[int] = []
    for segment, branches in children.items():
        if not branches:
            alone.append(lengths[segment])
            continue
        parts += _make_groups(alone, device)
        alone = []
        parts.append(Shared(_make_group([lengths[segment]], device), tuple(_make_groups(branches, device))))
    return Segments((*parts, *_make_groups(alone, device)))


def plan_crossing(lengths: Sequence[int], source_lengths: Sequence[int], device: torch.device) -> Crossing:
    """Rows of a decoder and, in the same order, of the encoder; a group's rows are of like length on both sides."""
    groups: list[tuple[list[int], list[int]]] = []
    for length, source in zip(lengths, source_lengths, strict=True):
        if groups and _fits(groups[-1][0], length) and _fits(groups[-1][1], source):
            groups[-1][0].append(length)
            groups[-1][1].append(source)
        else:
            groups.append(([length], [source]))
    pairs = tuple((_make_group(own, device), _make_group(source, device)) for own, source in groups)
    return Crossing(plan_segments(lengths, [-1] * len(lengths), device), pairs)


def _make_groups(lengths: Sequence[int], device: torch.device) -> list[Group]:
    groups: list[list[int]] = []
    for length in lengths:
        if groups and _fits(groups[-1], length):
            groups[-1].append(length)
        else:
            groups.append([length])
    return [_make_group(group, device) for group in groups]


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


def pad(packed: torch.Tensor, group: Group) -> torch.Tensor:
    padded: torch.Tensor = _Pad.apply(packed, group.to_padded, group.to_packed)  # type: ignore[no-untyped-call]
    return padded


def unpad(padded: torch.Tensor, group: Group) -> torch.Tensor:
    packed: torch.Tensor = _Unpad.apply(padded, group.to_packed)  # type: ignore[no-untyped-call]
    return packed
