"""A text in one model or two as one page: all of it in the file, made small, nothing asked of anybody.

Arrays lie in it as base64: attention in steps of 1/255, embeddings in steps of 1/127 of their largest number, logits of
the likeliest words in float32 and those of all other words as a histogram, so that a page can change the temperature.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from torch.nn import functional as F

from tunesmith.inspection import attention, embeddings, lens
from tunesmith.inspection.asked import Texts
from tunesmith.inspection.look import Inspection, Sampling
from tunesmith.inspection.reading import Reading, Side
from tunesmith.inspection.steps import next_words, one_step_on
from tunesmith.inspection.tokens import tokens_of
from tunesmith.pages import write_page
from tunesmith.storage import to_plain

MOST_PLACES = 48
MOST_BYTES = 2_000_000
"""Of one kind of attention of one model, before base64."""
NEIGHBOURS = 6
LONGEST_TEXT = 300
SCRIPTS = ("dom.js", "tokens.js", "words.js", "layers.js", "attention.js", "maps.js", "start.js")
WEB = Path(__file__).parent / "web"


def write_inspection(
    path: Path, inspection: Inspection, texts: Texts | None, place: int | None, sampling: Sampling
) -> None:
    """Writes the page; `place` and `sampling` are what it shows first."""
    script = "\n".join((WEB / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (WEB / "page.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; style-src '{_fingerprint(style)}'; script-src '{_fingerprint(script)}'"
    values = {
        "title": f"{_shortened(inspection.given.text, 60)} in {inspection.names[0]}",
        "policy": f"{policy}; base-uri 'none'; form-action 'none'",
        "content": to_plain(content_of(inspection, texts, place, sampling)),  # NaN and infinity are no JSON
        "script": Markup(script),  # noqa: S704 - our own files, nothing of a user's
        "style": Markup(style),  # noqa: S704
    }
    write_page(path, "tunesmith.inspection", "page.html.j2", values)


def _fingerprint(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def content_of(inspection: Inspection, texts: Texts | None, place: int | None, sampling: Sampling) -> dict[str, Any]:
    """All that the page shows, as JSON can hold it."""
    speaking = inspection.speaking
    most = max(len(reading.ids) for reading in inspection.readings)
    notes = list(inspection.notes)
    if most > MOST_PLACES:
        notes.append(f"numbers, next words and layers are there for the last {MOST_PLACES} of {most:,} tokens")
    at_first = inspection.next_word(place, 1).place if inspection.has_words else most - 1 if place is None else place
    models = [_model(inspection, at, at_first, notes) for at in range(len(inspection.readings))]
    return {
        "text": _shortened(inspection.given.text, 2000),
        "names": inspection.names,
        "family": inspection.readings[0].subject.family,
        "alike": inspection.is_alike,
        "place": at_first % len(inspection.readings[0].ids),
        "sampling": asdict(sampling),
        "notes": list(dict.fromkeys(notes)),
        "caveats": {"attention": attention.CAVEAT, "lens": lens.CAVEAT},
        "models": models,
        "speaking": [at for at, reading in enumerate(inspection.readings) if any(reading is one for one in speaking)],
        "next": next_words(inspection, MOST_PLACES),
        "steps": one_step_on(inspection),
        "said": [asdict(said) for said in inspection.said()] if inspection.can_be_said else [],
        "changes": [asdict(change) for change in inspection.changes()] if len(inspection.readings) == 2 else [],
        "texts": _texts(texts),
    }


def _model(inspection: Inspection, at: int, place: int, notes: list[str]) -> dict[str, Any]:
    reading = inspection.readings[at]
    first = max(0, len(reading.ids) - MOST_PLACES)
    side: Side = "own" if reading.source is None else "source"
    # Of a decoder what counts for the last word; of an encoder for the one that is looked at.
    place = min(place, len(reading.ids) - 1) if reading.subject.family == "encoder" else -1
    too_many = len(reading.tokens_of[side]) > 4 * MOST_PLACES
    if too_many:
        notes.append(f"what each token counts for is left out of a page with more than {4 * MOST_PLACES} tokens")
    return {
        "name": reading.subject.name,
        "tokens": [asdict(token) for token in inspection.tokens(which=at)],
        "source": [asdict(token) for token in inspection.tokens("source", at)] if reading.source else None,
        "perToken": inspection.characters_per_token()[at],
        "first": first,
        "numbers": _numbers(reading, first),
        "attention": {name: _small(reading, name, notes) for name in reading.attention},
        "rollout": _rollout(reading),
        "occlusion": None if too_many else {"side": side, "values": attention.occlusion(reading, place).tolist()},
        "unit": "nats" if reading.logits is not None else "1 - cosine",
        "lens": [layer[first:] for layer in lens.lens_words(reading)] if reading.logits is not None else [],
        "map": asdict(inspection.map()[at]) if len(reading.ids) > 2 else None,
    }


def _numbers(reading: Reading, first: int) -> dict[str, Any]:
    """Of each place from `first` on the token's own numbers; equal tokens share theirs."""
    table_VD = embeddings.table_of(reading.subject)
    ids = sorted(set(reading.ids[first:]))
    near = embeddings.nearest_of_each(table_VD, ids, NEIGHBOURS)
    own = {}
    for token, neighbours in zip(ids, near, strict=True):
        words = tokens_of([other for other, _ in neighbours], reading.subject.tokenizer)
        pairs = [(word.text, cosine) for word, (_, cosine) in zip(words, neighbours, strict=True)]
        own[token] = {**_vector(table_VD[token]), "near": pairs}
    positions = [embeddings.position_of(reading.subject, at) for at in range(first, len(reading.ids))]
    return {
        "own": own,
        "positions": [None if position is None else _vector(position) for position in positions],
        "note": embeddings.NO_TABLE if positions[0] is None else "",
    }


def _vector(vector_D: torch.Tensor) -> dict[str, Any]:
    values = vector_D.float().cpu()
    largest = float(values.abs().max()) or 1.0
    steps = (values / largest * 127).round().numpy().astype(np.int8)
    return {"norm": float(values.norm()), "largest": largest, "steps": encode(steps)}


def _small(reading: Reading, side: Side, notes: list[str]) -> dict[str, Any]:
    """All heads of a side; of a long text fields of several tokens, each with its largest weight."""
    layers = reading.attention[side]
    heads, looking, seen = layers[0].shape
    most = int((MOST_BYTES / (len(layers) * heads)) ** 0.5)
    size = (min(looking, most), min(seen, most))
    if size != (looking, seen):
        notes.append(
            f"{side} attention of {max(looking, seen):,} tokens is shown in {most} fields, the largest of each"
        )
    steps = [_steps(F.adaptive_max_pool2d(layer[None].float(), size)[0]) for layer in layers]
    return {
        "layers": len(layers),
        "heads": heads,
        "rows": size[0],
        "columns": size[1],
        "steps": encode(np.stack(steps)),
    }


def _rollout(reading: Reading) -> dict[str, Any] | None:
    side: Side = "own" if reading.source is None else "source"
    if side not in reading.attention:
        return None
    flow_TT = attention.rollout(reading, side)
    heads = len(reading.attention[side]) * len(reading.attention[side][0])
    size = min(len(flow_TT), int((MOST_BYTES / heads) ** 0.5))
    steps = _steps(F.adaptive_max_pool2d(flow_TT[None, None], size)[0])
    return {"side": side, "layers": 1, "heads": 1, "rows": size, "columns": size, "steps": encode(steps)}


def _steps(weights: torch.Tensor) -> np.ndarray:
    found: np.ndarray = (weights * 255).round().cpu().numpy().astype(np.uint8)
    return found


def encode(array: np.ndarray) -> str:
    """Bytes of an array, little-endian, as base64."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _texts(texts: Texts | None) -> dict[str, Any] | None:
    if texts is None:
        return None
    shown = [_shortened(text, LONGEST_TEXT) for text in texts.texts]
    return {**asdict(texts), "texts": shown}


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
