"""Accelerators by their makers' data sheets, for plans on hardware that is not here.

Dense matrix products without sparsity, in bfloat16 with float32 sums, and in float32 proper (not TF32). From NVIDIA's
data sheets H100 SXM, H200, B200 (HGX), A100 80GB and 40GB SXM, L4, L40S, A10, T4, and the architecture papers of GA102
and AD102; AMD's of MI300X.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tunesmith.errors import InputError, nearest


@dataclass(frozen=True, slots=True)
class Chip:
    """FLOP/s in bfloat16 (0: not in hardware) and in float32, memory in bytes, bytes per second; all at their peak."""

    bf16: float
    fp32: float
    memory: float
    bytes_per_second: float


CHIPS = {
    "b200": Chip(2250e12, 75e12, 180e9, 7.7e12),
    "h200": Chip(989e12, 67e12, 141e9, 4.8e12),
    "h100": Chip(989e12, 67e12, 80e9, 3.35e12),
    "a100": Chip(312e12, 19.5e12, 80e9, 2.04e12),
    "a100-40gb": Chip(312e12, 19.5e12, 40e9, 1.56e12),
    "l40s": Chip(362e12, 91.6e12, 48e9, 0.864e12),
    "a10": Chip(125e12, 31.2e12, 24e9, 0.6e12),
    "l4": Chip(121e12, 30.3e12, 24e9, 0.3e12),
    "t4": Chip(0, 8.1e12, 16e9, 0.32e12),
    "rtx4090": Chip(165e12, 82.6e12, 24e9, 1.01e12),
    "rtx3090": Chip(71e12, 35.6e12, 24e9, 0.936e12),
    "mi300x": Chip(1307e12, 163.4e12, 192e9, 5.3e12),
}
NAMED_HERE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def find_chip(name: str) -> tuple[Chip, int] | None:
    """The chip of `h100` or `h100x8` and how many; None for a device of this machine.

    Raises:
        InputError: neither.
    """
    if NAMED_HERE.fullmatch(name):
        return None
    known = re.fullmatch(r"(.+?)(?:x(\d+))?", name.lower())
    if known is None or known[1] not in CHIPS:
        raise InputError(
            f"unknown device '{name}': {nearest(name, CHIPS)}. Or auto, cpu, cuda, mps; h100x8 means eight"
        )
    return CHIPS[known[1]], int(known[2] or 1)
