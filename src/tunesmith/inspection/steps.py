"""Distributions over the next word made small: for a page that changes the temperature, and goes one word on.

Shape letters: M models, K words, V vocabulary.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tunesmith.inspection.look import Inspection
from tunesmith.inspection.next_word import rank_of
from tunesmith.inspection.reading import read
from tunesmith.inspection.tokens import tokens_of

MOST_WORDS = 200
"""Of each model at each place; all others are in the histogram."""
BINS = 64
STEPS = 5


def next_words(inspection: Inspection, most_places: int) -> dict[str, Any]:
    """Each of the last places with what comes after it; of an encoder, what could stand there. `vocabulary` has the
    text of every word that occurs."""
    if not inspection.has_words:
        return {"places": {}, "vocabulary": {}}
    ids = inspection.speaking[0].ids
    places = range(max(0, len(ids) - most_places), len(ids))
    found = {place: small(inspection.logits_at(place), inspection.true_word(place)) for place in places}
    words = sorted({word for each in found.values() for word in each["ids"]})
    return {"places": found, "vocabulary": _texts_of(inspection, words)}


def one_step_on(inspection: Inspection) -> dict[str, Any]:
    """After the likeliest words each once more, by id; nothing of an encoder, which goes on with no word."""
    if not inspection.has_words or inspection.speaking[0].subject.family == "encoder":
        return {"places": {}, "vocabulary": {}}
    likeliest = [word.id for word in inspection.next_word(count=STEPS).words[:STEPS]]
    found = {}
    for word in likeliest:
        readings = [read(one.subject, inspection.given, ids=(*one.ids, word)) for one in inspection.speaking]
        found[word] = small([one.logits[-1] for one in readings if one.logits is not None], None)
    words = sorted({word for each in found.values() for word in each["ids"]})
    return {"places": found, "vocabulary": _texts_of(inspection, words)}


def small(logits: Sequence[torch.Tensor], true: int | None) -> dict[str, Any]:
    """The likeliest words of any model with their logits in all (M, K), and a histogram of the other logits of each:
    of every bin how many and the logarithm of their mean exponential, exact at temperature 1."""
    best = {int(word) for each in logits for word in each.topk(min(MOST_WORDS, len(each))).indices}
    words = sorted(best, key=lambda word: -float(logits[0][word]))
    others = torch.ones(len(logits[0]), dtype=torch.bool)
    others[words] = False
    return {
        "ids": words,
        "logits": [_encode(each[words]) for each in logits],
        "others": [_histogram(each[others.to(each.device)]) for each in logits],
        "true": true,
        "ranks": [] if true is None else [rank_of(each, true) for each in logits],
    }


def _histogram(logits_V: torch.Tensor) -> list[tuple[float, int]]:
    if not len(logits_V):
        return []
    values = logits_V.double().cpu().numpy()
    low, high = values.min(), values.max()
    bins = np.minimum(((values - low) / max(high - low, 1e-9) * BINS).astype(int), BINS - 1)
    found = []
    for bin_ in np.unique(bins):
        inside = values[bins == bin_]
        top = inside.max()
        found.append((round(float(top + np.log(np.exp(inside - top).mean())), 4), len(inside)))
    return found


def _encode(logits_K: torch.Tensor) -> str:
    return base64.b64encode(logits_K.float().cpu().numpy().tobytes()).decode()


def _texts_of(inspection: Inspection, words: Sequence[int]) -> dict[int, str]:
    tokens = tokens_of(words, inspection.speaking[0].subject.tokenizer)
    return {token.id: token.text for token in tokens}
