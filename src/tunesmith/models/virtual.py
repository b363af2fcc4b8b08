"""Virtual tokens: places before each row that hold no word but trained embeddings, or trained keys and values.

Shape letters: T packed tokens, P virtual tokens of a row, D width, K key/value heads, W width of a head, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tunesmith.records import PackedBatch


def virtual_places(batch: PackedBatch) -> torch.Tensor:
    """Where virtual tokens stand: at the head of every row, or of the beginning it shares; P for each, in order."""
    starts = torch.tensor(batch.lengths).cumsum(0) - torch.tensor(batch.lengths)
    heads = starts[torch.tensor(batch.parents) < 0]
    return (heads[:, None] + torch.arange(batch.num_virtual)).flatten().to(batch.input_ids.device)


def put_prompt(embeddings_TD: torch.Tensor, prompt_PD: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Embeddings (T, D) with the virtual tokens in their places."""
    places = virtual_places(batch)
    prompts = prompt_PD.to(embeddings_TD.dtype).repeat(len(places) // len(prompt_PD), 1)
    return embeddings_TD.index_copy(0, places, prompts)


@dataclass(frozen=True, slots=True)
class Past:
    """Keys and values (2, L, K, P, W) that attention finds at `places`, whatever stands there. They are not rotated:
    transformers' caches keep keys as they are after rotation, and so do PEFT's files."""

    places: torch.Tensor
    states: torch.Tensor

    def put(self, layer: int, *kept: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys and values (1, K, T, W) of a layer with those of the virtual tokens."""
        times = len(self.places) // self.states.shape[3]
        own = (states[layer].to(x.dtype).repeat(1, times, 1) for states, x in zip(self.states, kept, strict=True))
        return tuple(x.index_copy(2, self.places, mine[None]) for x, mine in zip(kept, own, strict=True))


def as_past(flat: torch.Tensor, num_layers: int, num_heads: int) -> torch.Tensor:
    """(2, L, K, P, W) of what PEFT keeps as (P, L 2 K W), layer by layer its keys and then its values."""
    return flat.view(len(flat), num_layers, 2, num_heads, -1).permute(2, 1, 3, 0, 4)
