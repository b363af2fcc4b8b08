"""The next token of each row, drawn or the likeliest, and how likely the model held it.

Shape letters: R rows, V vocabulary, C candidates for a draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tunesmith.errors import InputError

# Candidates looked at first for top_p; eight times as many as long as they do not hold the mass.
FIRST_CANDIDATES = 128
# Rows are taken a few at a time on a CPU: what is computed of them stays in its cache, and no fresh memory is needed.
CHUNK_ELEMENTS = 2**20
BLOCK = 256


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the next token is chosen: the likeliest at temperature 0, else drawn.

    A draw is from softmax(logits / temperature), cut first to the `top_k` likeliest tokens (0: all), then to
    the fewest that hold `top_p` of what is left (Holtzman et al. 2020, arXiv 1904.09751). The numbers that decide
    depend on `seed`, the prompt's and the answer's number and the token's place, on nothing else.

    Raises:
        InputError: a number out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        allowed = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "temperature": (0 <= self.temperature < float("inf"), "0 (the likeliest token) or more"),
            "top_p": (0 < self.top_p <= 1, "more than 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or more"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for name, (is_good, range_) in allowed.items():
            if not is_good:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {range_}")


def draw_numbers(seed: int, prompt: int, answer: int, count: int) -> np.ndarray:
    """(count,) numbers in [0, 1), one for each token of an answer: the same on every machine, in every batch."""
    bits = np.random.Philox(np.random.SeedSequence([seed, prompt, answer]))
    return np.random.Generator(bits).random(count, dtype=np.float32)


def choose(logits_RV: torch.Tensor, numbers_R: torch.Tensor, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (R,) and log softmax(logits)[token] in nats, float32 (R,).

    The log-probability is the model's own: neither temperature nor cuts are in it.
    """
    size = len(logits_RV) if logits_RV.device.type != "cpu" else max(1, CHUNK_ELEMENTS // logits_RV.shape[-1])
    chosen = [
        _choose(logits_CV.float(), numbers_C, decoding)
        for logits_CV, numbers_C in zip(logits_RV.split(size), numbers_R.split(size), strict=True)
    ]
    tokens, logprobs = zip(*chosen, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _choose(logits_RV: torch.Tensor, numbers_R: torch.Tensor, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor]:
    highest_R1 = logits_RV.amax(-1, keepdim=True)
    weights_RV = (logits_RV - highest_R1).exp_()
    if decoding.temperature == 0:
        tokens_R1 = logits_RV.argmax(-1, keepdim=True)
    elif decoding.temperature == 1 and not decoding.top_k and decoding.top_p == 1:
        tokens_R1 = _invert(weights_RV, numbers_R)
    else:
        tokens_R1 = _draw(logits_RV / decoding.temperature, numbers_R, decoding)
    at_token_R1 = logits_RV.gather(-1, tokens_R1) - highest_R1
    return tokens_R1[:, 0], (at_token_R1 - weights_RV.sum(-1, keepdim=True).log())[:, 0]


def _draw(scaled_RV: torch.Tensor, numbers_R: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """(R, 1) tokens."""
    if not decoding.top_k and decoding.top_p == 1:
        return _invert(scaled_RV.softmax(-1), numbers_R)
    probabilities_RC, tokens_RC = _candidates(scaled_RV, decoding)
    mass_RC = probabilities_RC.cumsum(-1)
    # A token is in as long as those before it do not hold the mass; so the likeliest always is.
    probabilities_RC = probabilities_RC.masked_fill(mass_RC - probabilities_RC >= decoding.top_p, 0.0)
    return tokens_RC.gather(-1, _invert(probabilities_RC, numbers_R))


def _candidates(scaled_RV: torch.Tensor, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, falling, and ids (R, C) of the likeliest tokens: top_k, or enough to hold top_p. The whole
    vocabulary is not sorted for that, which would take as long as the model does."""
    size = scaled_RV.shape[-1]
    if decoding.top_k:
        values_RC, tokens_RC = scaled_RV.topk(min(decoding.top_k, size))
        return values_RC.softmax(-1), tokens_RC
    normaliser_R1 = scaled_RV.logsumexp(-1, keepdim=True)
    count = FIRST_CANDIDATES
    while True:
        values_RC, tokens_RC = scaled_RV.topk(min(count, size))
        probabilities_RC = (values_RC - normaliser_R1).exp()
        if count >= size or bool((probabilities_RC.sum(-1) >= decoding.top_p).all()):
            return probabilities_RC, tokens_RC
        count *= 8


def _invert(weights_RC: torch.Tensor, numbers_R: torch.Tensor) -> torch.Tensor:
    """(R, 1) the place at which the cumulated weights pass a number in [0, 1) times their sum; resolution 2^-24.

    Found in the sums of blocks first, then in one block: weights are added up one after the other, which a chip is
    slow at.
    """
    whole = weights_RC[:, : weights_RC.shape[1] // BLOCK * BLOCK].unflatten(1, (-1, BLOCK))
    rest_RC = weights_RC[:, whole.shape[1] * BLOCK :]
    sums_RB = torch.cat([whole.sum(-1), rest_RC.sum(-1, keepdim=True)], 1)
    block_R1, aim_R1 = _find(sums_RB, numbers_R[:, None] * sums_RB.sum(-1, keepdim=True))
    places_RC = block_R1 * BLOCK + torch.arange(BLOCK, device=weights_RC.device)
    is_there_RC = places_RC < weights_RC.shape[1]
    inside_RC = weights_RC.gather(1, places_RC.where(is_there_RC, 0)).where(is_there_RC, 0)
    return block_R1 * BLOCK + _find(inside_RC, aim_R1)[0]


def _find(weights_RC: torch.Tensor, aim_R1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The place at which the cumulated weights pass the aim (R, 1), and what of the aim is left there."""
    mass_RC = weights_RC.cumsum(-1)
    total_R1 = mass_RC[:, -1:]
    # Rounding may lift the aim to the sum, which no place passes.
    aim_R1 = torch.minimum(aim_R1, total_R1.nextafter(torch.zeros_like(total_R1)))
    place_R1 = torch.searchsorted(mass_RC, aim_R1, right=True)
    before_R1 = mass_RC.gather(1, place_R1) - weights_RC.gather(1, place_R1)
    return place_R1, (aim_R1 - before_R1).clamp_min(0)
