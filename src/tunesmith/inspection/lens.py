"""The logit lens: what each layer would say if it were the last (nostalgebraist 2020).

Shape letters: L layers, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.errors import InputError
from tunesmith.inspection.reading import Reading, words_from
from tunesmith.inspection.tokens import tokens_of

# What the last layer's states go through before the head, by the names of transformers' families.
FINAL_NORMS = ("norm", "ln_f", "final_norm", "final_layer_norm", "final_layernorm", "layer_norm")
CAVEAT = "Early layers need not speak the language of the last one: what they seem to say may be noise."


@torch.inference_mode()
def lens(reading: Reading) -> tuple[torch.Tensor, torch.Tensor]:
    """Probability and id (L+1, T) of the likeliest word by layer, from the embeddings to the model's own.

    Raises:
        InputError: the model has no head for words.
    """
    if reading.logits is None:
        raise InputError(f"'{reading.subject.name}' has no head for words, so its layers cannot be asked for any")
    found = [_layer_word(reading, state_TD) for state_TD in reading.states[:-1]]
    found.append(_likeliest(reading.logits))
    return torch.stack([values for values, _ in found]), torch.stack([tokens for _, tokens in found])


def _layer_word(reading: Reading, state_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _likeliest(words_from(reading.subject, normed(reading, state_TD)[None])[0])


def _likeliest(logits_TV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    best = logits_TV.softmax(-1).max(-1)
    return best.values, best.indices


def normed(reading: Reading, state_TD: torch.Tensor) -> torch.Tensor:
    """States of an inner layer as the head takes them: after the final norm, where the family has one."""
    norm = find_final_norm(reading.subject.body)
    if norm is None:
        return state_TD
    result: torch.Tensor = norm(state_TD)
    return result


def find_final_norm(body: Any) -> Any | None:
    """None for families whose layers end with a norm each (BERT, BART, Marian)."""
    return next((getattr(body, name) for name in FINAL_NORMS if hasattr(body, name)), None)


def lens_words(reading: Reading) -> list[list[tuple[str, float]]]:
    """By layer and place: the likeliest word and its probability."""
    values_LT, tokens_LT = lens(reading)
    texts = iter(tokens_of(tokens_LT.flatten().tolist(), reading.subject.tokenizer))
    return [[(next(texts).text, value) for value in values_T] for values_T in values_LT.tolist()]
