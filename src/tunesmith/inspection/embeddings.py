"""Words and texts as vectors: a token's numbers, its neighbours, and maps in two dimensions.

Shape letters: N vectors, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F

from tunesmith.errors import InputError
from tunesmith.inspection.reading import Given, Reading, eagerly, read
from tunesmith.inspection.subject import Subject

Way = Literal["pca", "tsne"]
NO_TABLE = "this family has no table of positions: where a token stands is told to attention itself"
POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions")


@dataclass(frozen=True, slots=True)
class Numbers:
    """A token as the model first sees it.

    vector      (D,) the row of the embedding table
    norm        its length
    position    (D,) the row of the table of positions, or None, see `position_note`
    neighbours  ids of the nearest other words by cosine, and how near
    """

    vector: list[float]
    norm: float
    position: list[float] | None
    position_norm: float | None
    position_note: str
    neighbours: list[tuple[int, float]]


@torch.inference_mode()
def numbers_of(reading: Reading, place: int, count: int = 8) -> Numbers:
    """The numbers of the token at a place.

    Raises:
        InputError: no such place.
    """
    if not 0 <= place < len(reading.ids):
        raise InputError(f"there are places 0 to {len(reading.ids) - 1}, not {place}")
    token = reading.ids[place]
    table_VD = table_of(reading.subject)
    vector_D = table_VD[token].float()
    position_D = position_of(reading.subject, place)
    return Numbers(
        vector_D.tolist(),
        float(vector_D.norm()),
        None if position_D is None else position_D.tolist(),
        None if position_D is None else float(position_D.norm()),
        NO_TABLE if position_D is None else "",
        nearest_words(table_VD, token, count),
    )


def table_of(subject: Subject) -> torch.Tensor:
    owner: Any = subject.body if subject.family == "encoder-decoder" else subject.model
    table: torch.Tensor = owner.get_input_embeddings().weight
    return table


def nearest_words(table_VD: torch.Tensor, token: int, count: int) -> list[tuple[int, float]]:
    """The other rows of a table that point most nearly the same way."""
    return nearest_of_each(table_VD, [token], count)[0]


def nearest_of_each(table_VD: torch.Tensor, tokens: Sequence[int], count: int) -> list[list[tuple[int, float]]]:
    """The same for several tokens in one pass over the table."""
    unit_VD = F.normalize(table_VD.float(), dim=-1)
    cosines_NV = unit_VD[list(tokens)] @ unit_VD.T
    cosines_NV[range(len(tokens)), list(tokens)] = -torch.inf
    best = cosines_NV.topk(min(count, cosines_NV.shape[-1] - 1))
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [list(zip(ids, values, strict=True)) for ids, values in rows]


def position_of(subject: Subject, place: int) -> torch.Tensor | None:
    """(D,): what is added for a place. RoBERTa counts from its pad id on, BART and OPT from 2."""
    owners: tuple[Any, Any] = subject.body, getattr(subject.body, "embeddings", None)
    for owner in owners:
        for name in POSITION_TABLES:
            table: Any = getattr(owner, name, None)
            if table is not None and getattr(table, "weight", None) is not None:
                shift = getattr(table, "offset", 0)
                if name == "position_embeddings" and hasattr(owner, "create_position_ids_from_input_ids"):
                    shift = int(owner.padding_idx) + 1
                row: torch.Tensor = table.weight[place + shift].float()
                return row
    return None


@dataclass(frozen=True, slots=True)
class Map:
    """points     (N, 2)
    explained  share of the vectors' variance along each axis; empty for t-SNE, whose axes mean nothing
    """

    points: list[list[float]]
    explained: list[float]


def map_vectors(vectors_ND: np.ndarray, way: Way = "pca") -> Map:
    """Vectors in two dimensions. Of each axis the sign is such that its largest coordinate is positive.

    Raises:
        InputError: fewer than three vectors.
    """
    if len(vectors_ND) < 3:
        raise InputError(f"a map wants three or more vectors, and there {_be(len(vectors_ND))}. Give more texts")
    if way == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(vectors_ND) - 1) / 3)
        return Map(TSNE(perplexity=perplexity, random_state=0).fit_transform(vectors_ND).tolist(), [])
    centred_ND = vectors_ND.astype(np.float64) - vectors_ND.mean(0)
    left, sizes, _ = np.linalg.svd(centred_ND, full_matrices=False)
    points_N2 = left[:, :2] * sizes[:2]
    points_N2 *= np.sign(points_N2[np.abs(points_N2).argmax(0), range(2)])
    total = float((sizes**2).sum())
    return Map(points_N2.tolist(), [float(size**2) / total if total else 0.0 for size in sizes[:2]])


def _be(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"


def text_vectors(subject: Subject, texts: Sequence[str]) -> np.ndarray:
    """(N, D): the mean of each text's last states; of an encoder-decoder those of what its encoder reads."""
    return np.stack([_mean_state(subject, text) for text in texts])


@torch.inference_mode()
def _mean_state(subject: Subject, text: str) -> np.ndarray:
    if subject.family != "encoder-decoder":
        vector: np.ndarray = read(subject, Given(text)).states[-1].float().mean(0).cpu().numpy()
        return vector
    ids = read(subject, Given(text)).source
    with eagerly(subject.model, wanted=False):
        out = subject.model.get_encoder()(input_ids=torch.tensor([ids], device=subject.model.device))
    mean: np.ndarray = out.last_hidden_state[0].float().mean(0).cpu().numpy()
    return mean
