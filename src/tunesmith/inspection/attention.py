"""Who looks at whom: attention by layer and head, its flow through all layers, and what happens without a token.

Shape letters: R rows, L layers, H heads, T tokens that look, S tokens that are looked at, V vocabulary.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tunesmith.errors import InputError
from tunesmith.inspection.reading import Reading, Side, eagerly

MOST_THUMBNAIL = 16
ROWS_AT_ONCE = 16
CAVEAT = (
    "Attention says where a head looked, not why the model answered: what it carried from there may count for little, "
    "and other weights can give the same answer (Jain and Wallace 2019). Leaving a token out shows what it counts for."
)


def head_weights(reading: Reading, side: Side, layer: int, head: int) -> torch.Tensor:
    """(T, S): each row says how one token divides its attention; -1 as the head is the mean over heads.

    Raises:
        InputError: no such layer, head or side, or there was no room for attention.
    """
    layers = _layers(reading, side)
    heads = len(layers[0])
    if not 0 <= layer < len(layers) or not -1 <= head < heads:
        raise InputError(f"there are layers 0 to {len(layers) - 1} and heads 0 to {heads - 1}, not {layer} and {head}")
    weights_HTS = layers[layer].float()
    return weights_HTS.mean(0) if head == -1 else weights_HTS[head]


def _layers(reading: Reading, side: Side) -> list[torch.Tensor]:
    if side not in reading.attention:
        known = ", ".join(reading.attention) or "; ".join(reading.notes)
        raise InputError(f"'{reading.subject.name}' has no {side} attention here. There is: {known}")
    return reading.attention[side]


def thumbnails(reading: Reading, side: Side) -> torch.Tensor:
    """(L, H, t, s) all heads, made smaller: of each field the largest weight, for that is what strikes the eye."""
    small = []
    for weights_HTS in _layers(reading, side):
        _, num_looking, num_seen = weights_HTS.shape
        size = (min(MOST_THUMBNAIL, num_looking), min(MOST_THUMBNAIL, num_seen))
        small.append(F.adaptive_max_pool2d(weights_HTS[None].float(), size)[0])
    return torch.stack(small)


def rollout(reading: Reading, side: Side = "own") -> torch.Tensor:
    """(T, T): how far each token's last state goes back to each first one, when what a layer adds and what it hands on
    count half each (Abnar and Zuidema 2020, arXiv 2005.00928)."""
    if side == "cross":
        raise InputError("rollout goes through layers that look at their own tokens; take own or source")
    flow_TT = None
    for weights_HTT in _layers(reading, side):
        mean_TT = weights_HTT.float().mean(0)
        mixed_TT = 0.5 * mean_TT + 0.5 * torch.eye(len(mean_TT), device=mean_TT.device)
        flow_TT = mixed_TT if flow_TT is None else mixed_TT @ flow_TT
    assert flow_TT is not None
    return flow_TT


@torch.inference_mode()
def occlusion(reading: Reading, place: int = -1) -> torch.Tensor:
    """What each token counts for: without it, how much less likely in nats is the word that the model holds likeliest
    at `place`. A model without words is asked how far the mean of its last states turns (1 - cosine).

    (T,), or (S,) of an encoder-decoder's source; 0 for the token at `place` itself, which cannot be left out.
    """
    is_two_sided, ids = reading.source is not None, reading.source or reading.ids
    kept = len(ids) if is_two_sided else place % len(ids)
    found = torch.zeros(len(ids))
    places = [at for at in range(len(ids)) if at != kept and len(ids) > 1]
    for start in range(0, len(places), ROWS_AT_ONCE):
        some = places[start : start + ROWS_AT_ONCE]
        shorter = torch.tensor([ids[:at] + ids[at + 1 :] for at in some], device=reading.subject.model.device)
        # Where a token before it is gone, the place is one further to the left.
        moved = [place % len(reading.ids) - (not is_two_sided and at < kept) for at in some]
        found[some] = _change(reading, shorter, moved, place).cpu()
    return found


def _change(reading: Reading, rows_RS: torch.Tensor, places: list[int], place: int) -> torch.Tensor:
    """(R,) what changed in each row."""
    subject = reading.subject
    inputs = {"input_ids": rows_RS}
    if reading.source is not None:
        own = torch.tensor([reading.ids], device=rows_RS.device).repeat(len(rows_RS), 1)
        inputs["decoder_input_ids"] = own
    with eagerly(subject.model, wanted=False):
        if reading.logits is None:
            before_D = reading.states[-1].mean(0)
            after_RD = subject.model.base_model(**inputs).last_hidden_state.mean(1)
            return 1 - F.cosine_similarity(after_RD, before_D[None], dim=-1)
        logits_RTV = subject.model(**inputs).logits.float()
    before_V = reading.logits[place].log_softmax(-1)
    word = int(before_V.argmax())
    after_RV = logits_RTV[range(len(places)), places].log_softmax(-1)
    return before_V[word] - after_RV[:, word]
