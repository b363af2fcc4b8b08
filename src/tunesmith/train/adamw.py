"""AdamW with its states in eight bits: two bytes a weight instead of eight.

It goes through the weights in pieces, so that little but the states is held beside them. Weights may be bfloat16: they
are computed in float32 and rounded at random, so that updates smaller than their last digit are kept on average.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from tunesmith.train.blockwise import BLOCK, dequantize, quantize

# Numbers in a piece: some six of them in float32 stay within a CPU's caches.
PIECE = 1024 * BLOCK
# Below this many elements eight bits save nothing worth their error (bitsandbytes draws the line there, too).
SMALLEST_QUANTIZED = 4096


class AdamW8bit(torch.optim.Optimizer):
    """Decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101), with torch's defaults for betas and eps.

    p <- p - lr (decay p + m' / (sqrt(v') + eps)),  m' = m / (1 - b1^t),  v' = v / (1 - b2^t)

    A weight's state is plain tensors: `step`, and `exp_avg` and `exp_avg_sq` as codes (N,) of its N numbers with
    `exp_avg_scale` and `exp_avg_sq_scale` (B,), or in float32 and its shape where it is small.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state |= self._begin(parameter)
        state["step"] += 1
        step = state["step"].double()
        beta1, beta2 = group["betas"]
        # Tensors, not numbers: nothing waits for an accelerator.
        slowness = ((1 - beta1**step) / group["lr"]).float()
        root = (1 - beta2**step).sqrt().float()
        weights, gradients = parameter.view(-1), parameter.grad.reshape(-1)  # type: ignore[union-attr]
        for piece in _pieces(len(weights)):
            gradient, weight = gradients[piece].float(), weights[piece].float()
            mean = _read(state, "exp_avg", piece).lerp_(gradient, 1 - beta1)
            square = _read(state, "exp_avg_sq", piece).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            divisor = square.sqrt().div_(root).add_(group["eps"]).mul_(slowness)
            weight.mul_(1 - group["lr"] * group["weight_decay"]).addcdiv_(mean, divisor, value=-1)
            if weights.dtype == torch.bfloat16:
                weights[piece] = round_at_random(weight)
            _write(state, "exp_avg", piece, mean)
            _write(state, "exp_avg_sq", piece, square)

    def _begin(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state = {"step": torch.zeros((), dtype=torch.float32, device=parameter.device)}
        count = parameter.numel()
        for key in ("exp_avg", "exp_avg_sq"):
            if count < SMALLEST_QUANTIZED:
                state[key] = torch.zeros_like(parameter, dtype=torch.float32)
            else:
                zeros = torch.zeros(count, device=parameter.device)
                state[key], state[f"{key}_scale"] = quantize(zeros, signed=key == "exp_avg")
        return state


def _pieces(count: int) -> Iterator[slice]:
    """Slices of at most PIECE that together are 0..count."""
    return (slice(start, min(start + PIECE, count)) for start in range(0, count, PIECE))


def round_at_random(values: torch.Tensor) -> torch.Tensor:
    """Float32 to bfloat16: of the two neighbours the upper one with the probability of the share of the way up to it,
    so that the mean is the value (Gupta et al. 2015, arXiv 1502.02551). Draws from torch's generator."""
    bits = values.view(torch.int32)
    # The lower 16 bits are what bfloat16 lacks: with 0..65535 added they carry into the upper half in just that share
    # of all cases.
    noise = torch.randint(0, 2**16, bits.shape, dtype=torch.int32, device=bits.device)
    return (bits + noise).bitwise_and_(-(2**16)).view(torch.float32).bfloat16()


def _read(state: dict[str, torch.Tensor], key: str, piece: slice) -> torch.Tensor:
    scales = state.get(f"{key}_scale")
    if scales is None:
        return state[key].view(-1)[piece]
    return dequantize(state[key][piece], scales[_blocks(piece)], signed=key == "exp_avg")


def _write(state: dict[str, torch.Tensor], key: str, piece: slice, values: torch.Tensor) -> None:
    scales = state.get(f"{key}_scale")
    if scales is not None:  # float32 is updated in place
        state[key][piece], scales[_blocks(piece)] = quantize(values, signed=key == "exp_avg")


def _blocks(piece: slice) -> slice:
    return slice(piece.start // BLOCK, -(-piece.stop // BLOCK))
