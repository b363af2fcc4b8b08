"""Numbers in eight bits, by blocks (Dettmers et al. 2022, arXiv 2110.02861).

Each block of 256 numbers is divided by its largest magnitude, and each quotient becomes the code of the nearest
of 256 values. These lie closer the smaller they are, over seven decades: the dynamic tree of the paper.

Shape letters: N numbers, B = ceil(N / 256) blocks.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional as F

BLOCK = 256
DECADES = 7


def quantize(values_N: torch.Tensor, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (N,) in uint8 and the blocks' largest magnitudes (B,) in float32, of float32 numbers.

    Without sign what is not zero stays so: it is rounded up to the least value, since a second moment that became
    zero would make the update it divides boundless.
    """
    count = len(values_N)
    whole = values_N if count % BLOCK == 0 else F.pad(values_N, (0, -count % BLOCK))
    blocks_BK = whole.view(-1, BLOCK)
    scales_B = blocks_BK.abs().amax(1)
    quotients = blocks_BK / scales_B.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    # The upper half of a float32 says which code is nearest to within 2^-8 of the quotient; a search by
    # comparisons takes thirty times as long.
    places = quotients.bfloat16().view(torch.int16).int().add_(2**15)
    return _codes(signed, values_N.device).index_select(0, places.flatten())[:count], scales_B


def dequantize(codes_N: torch.Tensor, scales_B: torch.Tensor, signed: bool) -> torch.Tensor:
    """(N,) in float32"""
    count = len(codes_N)
    values_N = _values(signed, codes_N.device).index_select(0, codes_N.int())
    if count % BLOCK:
        return values_N.mul_(scales_B.repeat_interleave(BLOCK)[:count])
    return values_N.view(-1, BLOCK).mul_(scales_B[:, None]).view(-1)


def dynamic_values(signed: bool) -> torch.Tensor:
    """The 256 values in order, float32: decade 10^(i-6), i = 0..6, has the middles of 2^i equal parts on either side
    of zero, or of 2^(i+1) above it; and there are 0 and 1."""
    found = [0.0, 1.0]
    for i in range(DECADES):
        edges = torch.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1, dtype=torch.float64)
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (i - DECADES + 1)).tolist()
        found += [*middles, *(-middle for middle in middles)] if signed else middles
    return torch.tensor(sorted(found), dtype=torch.float64).float()


@cache
def _values(signed: bool, device: torch.device) -> torch.Tensor:
    return dynamic_values(signed).to(device)


@cache
def _codes(signed: bool, device: torch.device) -> torch.Tensor:
    """The code of every bfloat16 number, by its 16 bits read as an integer from -2^15 on."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = bits.view(torch.bfloat16).float().nan_to_num(0.0).clamp(-1, 1)
    values = dynamic_values(signed)
    codes = torch.bucketize(numbers, (values[1:] + values[:-1]) / 2)
    if not signed:
        codes[numbers > 0] = codes[numbers > 0].clamp_min(1)
    return codes.to(torch.uint8).to(device)
