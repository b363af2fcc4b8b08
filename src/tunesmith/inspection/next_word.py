"""The next word, or a masked one: a distribution over the vocabulary, and what a sampler makes of it.

Shape letters: T tokens, V vocabulary.
"""

from __future__ import annotations

import torch


def shape_distribution(
    logits_V: torch.Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> torch.Tensor:
    """(V,) probabilities, in float64, from which a sampler with these settings draws; see `models/choose.py`."""
    logits_V = logits_V.double()
    if temperature == 0:
        return torch.nn.functional.one_hot(logits_V.argmax(-1), len(logits_V)).double()
    probabilities_V = (logits_V / temperature).softmax(-1)
    values_V, order_V = probabilities_V.sort(descending=True)
    if top_k:
        values_V[top_k:] = 0
    values_V = values_V / values_V.sum()
    values_V = values_V.masked_fill(values_V.cumsum(-1) - values_V >= top_p, 0.0)
    return torch.zeros_like(values_V).scatter(0, order_V, values_V / values_V.sum())


def entropy_bits(probabilities_V: torch.Tensor) -> float:
    """How unsure: 0 when one word is certain, log2 V when all are alike."""
    return float(-torch.special.xlogy(probabilities_V, probabilities_V).sum() / torch.log(torch.tensor(2.0)))


def rank_of(logits_V: torch.Tensor, token: int) -> int:
    """1 for the likeliest word."""
    return int((logits_V > logits_V[token]).sum()) + 1


def answer_logprobs(logits_TV: torch.Tensor, ids: tuple[int, ...], start: int) -> torch.Tensor:
    """(T - start,): log-probability in nats of each token from `start` on, as said by the place before it."""
    logprobs_TV = logits_TV[start - 1 : -1].double().log_softmax(-1)
    targets_T = torch.tensor(ids[start:], device=logits_TV.device)
    return logprobs_TV.gather(-1, targets_T[:, None])[:, 0]
