"""Keys and values of answers in the making: those of a prompt are kept once, whatever the number of its answers.

All rows (answers) at work advance by one token a step, so their last tokens are laid end to end in one sequence,
as rows are in training, and the linear layers see one product. In attention the queries of a prompt's answers
become one product with the prompt's keys, and each row sees its own few tokens besides; the two parts are joined
by their softmax normalisers (Milakov & Gimelshein 2018, arXiv 1805.02867; shared prefixes: Juravsky et al. 2024,
arXiv 2402.05099). What is in the cache is never moved to make room for a token.

Shape letters: P prompts, A most answers of a prompt, R rows, T tokens made so far, L longest prompt, H query
heads, K key/value heads, G = H/K queries sharing a key head, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from tunesmith.models.attention import packed_attention
from tunesmith.models.segments import Segments
from tunesmith.models.virtual import Past
from tunesmith.records import PackedBatch
from tunesmith.runtime import working_dtype

DECODING = "tunesmith_decoding"
# Tokens for which each row has room at first; doubled when they are made, so that short answers cost little memory.
FIRST_ROOM = 32
# Where a row sees nothing of one part: below all scores, yet finite, so that no difference is NaN.
LOWEST = -1e30


@dataclass
class _Layer:
    """Keys and values of prompts (P,K,L,D) and of answers (R,K,room,D)."""

    prompts: tuple[torch.Tensor, torch.Tensor]
    answers: tuple[torch.Tensor, torch.Tensor]


class Cache:
    """Filled by `decoding_attention`: first with prompts, packed, then with one token of each row a step.

    `lengths` of the prompts, virtual tokens included; `owners` the prompt of each row; `most_new` tokens that a
    row may get.
    """

    def __init__(self, lengths: Sequence[int], owners: Sequence[int], most_new: int, device: torch.device) -> None:
        self._lengths, self._longest, self._most_new = list(lengths), max(lengths), most_new
        self._device = device
        self._layers: dict[int, _Layer] = {}
        self._filling: PackedBatch | None = None
        self._num_filled = 0
        self.num_made = 0
        self._place(list(owners))

    def _place(self, owners: list[int]) -> None:
        """Gives each row a slot in the grid of prompts and answers (P, A)."""
        columns, counts = [], [0] * len(self._lengths)
        for owner in owners:
            columns.append(counts[owner])
            counts[owner] += 1
        self.owners, self.most_answers = owners, max(counts)
        slots = [owner * self.most_answers + column for owner, column in zip(owners, columns, strict=True)]
        is_whole = slots == list(range(len(counts) * self.most_answers))
        self.slots_R = None if is_whole else torch.tensor(slots, device=self._device)
        self._masks: dict[int | None, torch.Tensor] = {}

    @property
    def num_prompts(self) -> int:
        return len(self._lengths)

    @property
    def positions_R(self) -> torch.Tensor:
        """The position of each row's token in the step at hand."""
        return torch.tensor([self._lengths[owner] + self.num_made for owner in self.owners], device=self._device)

    @contextmanager
    def filling(self, batch: PackedBatch) -> Iterator[None]:
        """Inside it a pass over the next prompts runs, the rows of `batch`."""
        self._filling = batch
        yield
        self._filling = None
        self._num_filled += len(batch.rows)

    def keep_prompts(self, index: int, key_1KTD: torch.Tensor, value_1KTD: torch.Tensor) -> None:
        """Keys and values of a layer for the prompts of the pass at hand."""
        assert self._filling is not None
        if index not in self._layers:
            self._layers[index] = self._make_layer(key_1KTD, value_1KTD)
        for store_PKLD, new in zip(self._layers[index].prompts, (key_1KTD, value_1KTD), strict=True):
            segments = new[0].split(self._filling.lengths, 1)
            for number, chain in enumerate(self._filling.chains, self._num_filled):
                place = 0
                for part_KTD in (segments[segment] for segment in chain):
                    store_PKLD[number, :, place : place + part_KTD.shape[1]] = part_KTD
                    place += part_KTD.shape[1]

    def _make_layer(self, *kept: torch.Tensor) -> _Layer:
        room = min(FIRST_ROOM, self._most_new)
        # Zeros, not whatever was there: padding has weight 0, and 0 times infinity would be NaN.
        prompts = [x.new_zeros(self.num_prompts, x.shape[1], self._longest, x.shape[3]) for x in kept]
        answers = [x.new_empty(len(self.owners), x.shape[1], room, x.shape[3]) for x in kept]
        return _Layer((prompts[0], prompts[1]), (answers[0], answers[1]))

    def add(self, index: int, key_1KRD: torch.Tensor, value_1KRD: torch.Tensor) -> None:
        """A token of each row; it counts once `num_made` says so."""
        layer = self._layers[index]
        layer.answers = tuple(self._with_room(x) for x in layer.answers)  # type: ignore[assignment]
        for store_RKTD, new in zip(layer.answers, (key_1KRD, value_1KRD), strict=True):
            store_RKTD[: new.shape[2], :, self.num_made] = new[0].transpose(0, 1)

    def _with_room(self, store: torch.Tensor) -> torch.Tensor:
        rows, heads, room, width = store.shape
        if self.num_made < room:
            return store
        larger = store.new_empty(rows, heads, min(2 * room, self._most_new), width)
        larger[:, :, :room] = store
        return larger

    def prompts(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(P,K,L,D) keys and values."""
        keys, values = self._layers[index].prompts
        return keys[: self.num_prompts], values[: self.num_prompts]

    def answers(self, index: int, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(R,K,T,D) keys and values up to the token of this step; of them the last `window`."""
        end = self.num_made + 1
        start = 0 if window is None else max(0, end - window)
        keys, values = self._layers[index].answers
        rows = len(self.owners)
        return keys[:rows, :, start:end], values[:rows, :, start:end]

    def prompt_mask(self, window: int | None) -> torch.Tensor:
        """What is added to scores (P,1,L): 0 where a prompt's token is seen by its answers, else -inf."""
        if window is not None and self._longest + self.num_made < window:
            window = None
        known = self._masks.get(window)
        if known is None:
            lengths_P1 = torch.tensor(self._lengths, device=self._device)[:, None]
            places_L = torch.arange(self._longest, device=self._device)
            seen_PL = places_L < lengths_P1
            if window is not None:
                seen_PL &= places_L > lengths_P1 + self.num_made - window
            known = torch.zeros(seen_PL.shape, device=self._device).masked_fill_(~seen_PL, float("-inf"))[:, None]
            self._masks[window] = known
        return known

    def next_token(self) -> None:
        self.num_made += 1
        self._masks = {window: mask for window, mask in self._masks.items() if window is None}

    def keep_rows(self, order: Sequence[int]) -> None:
        """Row i becomes what row order[i] was; prompts without rows leave too."""
        owners = [self.owners[index] for index in order]
        wanted = set(owners)
        prompts = fill_holes([prompt in wanted for prompt in range(self.num_prompts)])
        for layer in self._layers.values():
            for store in layer.answers:
                _move(store, order, self.num_made)
            for store in layer.prompts:
                _move(store, prompts, self._longest)
        self._lengths = [self._lengths[index] for index in prompts]
        new = {old: number for number, old in enumerate(prompts)}
        self._place([new[owner] for owner in owners])


def fill_holes(stays: Sequence[bool]) -> list[int]:
    """Indices of those who stay, in an order in which few move: the last take the places of those who leave."""
    num = sum(stays)
    last = iter([index for index in range(num, len(stays)) if stays[index]])
    return [index if stays[index] else next(last) for index in range(num)]


def _move(store: torch.Tensor, order: Sequence[int], num_used: int) -> None:
    holes = [place for place, index in enumerate(order) if place != index]
    if holes:
        store[holes, :, :num_used] = store[[order[place] for place in holes], :, :num_used]


def decoding_attention(  # noqa: PLR0913 (the signature is the attention interface's)
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cache: Cache,
    segments: Segments | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    past: Past | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention with a cache. query (1,H,N,D), key and value (1,K,N,D) -> (1,N,H,D).

    With `segments` the N places are prompts, packed, and are kept; without, they are one token of each row.
    The rules are those of `packed_attention`.
    """
    index = int(module.layer_idx)  # type: ignore[arg-type]
    dtype = working_dtype(query)
    key, value = key.to(dtype), value.to(dtype)
    if past is not None:
        key, value = past.put(index, key, value)
    rule = {"scaling": scaling, "sliding_window": sliding_window, "softcap": softcap}
    if segments is not None:
        cache.keep_prompts(index, key, value)
        return packed_attention(module, query, key, value, attention_mask, segments=segments, **rule, **kwargs)  # type: ignore[arg-type]
    cache.add(index, key, value)
    scaled = query.to(dtype) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    return _attend(scaled, cache, index, sliding_window, softcap)[None], None


def _attend(
    query_1HRD: torch.Tensor, cache: Cache, index: int, window: int | None, softcap: float | None
) -> torch.Tensor:
    """(R,H,D) from scaled queries."""
    _, heads, rows, width = query_1HRD.shape
    keys_PKLD, values_PKLD = cache.prompts(index)
    num_prompts, num_keys, longest, _ = keys_PKLD.shape
    q_RKGD = query_1HRD[0].transpose(0, 1).reshape(rows, num_keys, heads // num_keys, width)
    own_keys, own_values = cache.answers(index, window)
    own = _part(q_RKGD.flatten(0, 1), own_keys.flatten(0, 1), own_values.flatten(0, 1), None, softcap)
    grid = _to_grid(q_RKGD, cache).flatten(0, 1).flatten(1, 2)
    mask = cache.prompt_mask(window).expand(num_prompts, num_keys, longest).reshape(-1, 1, longest)
    shared = _part(grid, keys_PKLD.flatten(0, 1), values_PKLD.flatten(0, 1), mask, softcap)
    parts = [_from_grid(x.unflatten(0, (num_prompts, num_keys)), cache) for x in shared]
    joined = _join([x.unflatten(0, (rows, num_keys)) for x in own], parts)
    return joined.flatten(1, 2).to(query_1HRD.dtype)


def _to_grid(q_RKGD: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Rows to the grid of prompts and answers: (P,K,A,G,D)."""
    if cache.slots_R is not None:
        empty = q_RKGD.new_zeros(cache.num_prompts * cache.most_answers, *q_RKGD.shape[1:])
        q_RKGD = empty.index_copy_(0, cache.slots_R, q_RKGD)
    return q_RKGD.unflatten(0, (cache.num_prompts, cache.most_answers)).transpose(1, 2)


def _from_grid(x_PKND: torch.Tensor, cache: Cache) -> torch.Tensor:
    """The way back, N = A*G: (R,K,G,D)."""
    x = x_PKND.unflatten(2, (cache.most_answers, -1)).transpose(1, 2).flatten(0, 1)
    return x if cache.slots_R is None else x.index_select(0, cache.slots_R)


def _part(
    q_BND: torch.Tensor, k_BLD: torch.Tensor, v_BLD: torch.Tensor, mask: torch.Tensor | None, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What queries take from some of the keys: (weighted values (B,N,D), weights' sum, largest score (B,N,1)),
    weights being relative to the largest score; float32."""
    scores_BNL = torch.bmm(q_BND, k_BLD.transpose(1, 2)).float()
    if softcap is not None:
        scores_BNL = scores_BNL.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores_BNL += mask
    largest = scores_BNL.amax(-1, keepdim=True).clamp_min_(LOWEST)
    weights = scores_BNL.sub_(largest).exp_()
    return torch.bmm(weights.to(v_BLD.dtype), v_BLD).float(), weights.sum(-1, keepdim=True), largest


def _join(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> torch.Tensor:
    """The softmax over both parts' keys, times their values."""
    (out, total, largest), (other_out, other_total, other_largest) = one, other
    top = torch.maximum(largest, other_largest)
    share, other_share = (largest - top).exp_(), (other_largest - top).exp_()
    return (out * share + other_out * other_share) / (total * share + other_total * other_share)


@contextmanager
def attending_to_cache(model: PreTrainedModel) -> Iterator[None]:
    """Inside it the model's attention takes a `cache`."""
    before = model.config._attn_implementation
    model.set_attn_implementation(DECODING)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(DECODING, decoding_attention)
