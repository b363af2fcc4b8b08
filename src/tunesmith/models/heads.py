"""Heads that judge a whole row: how each model family turns a row's hidden states into its answer.

One row of HEADS per way of building the head, not per model: the modules of transformers' own
`...ForSequenceClassification` classes are called on the pooled states, so a saved folder gives the
same logits in plain transformers.

Shape letters: S rows, D hidden width, C classes (1 for a score).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import InputError
from tunesmith.models.seq2seq import family_of
from tunesmith.records import PackedBatch

Pooling = Literal["first", "last", "mean"]


@dataclass(frozen=True, slots=True)
class Head:
    """`modules` are the parts above the pre-trained body, trained by every method; `logits` maps the
    model and the pooled states (S, D) to (S, C)."""

    modules: tuple[str, ...]
    pooling: Callable[[PreTrainedModel], Pooling]
    logits: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]


def _pooler_head(model: PreTrainedModel, pooled_SD: torch.Tensor) -> torch.Tensor:
    # The pooler belongs to the body and reads the first token of (S, T, D).
    pooled_SD = model.base_model.pooler(pooled_SD.unsqueeze(1))
    return model.classifier(model.dropout(pooled_SD))


def _token_head(model: PreTrainedModel, pooled_SD: torch.Tensor) -> torch.Tensor:
    return model.classifier(pooled_SD.unsqueeze(1))


def _distilbert_head(model: PreTrainedModel, pooled_SD: torch.Tensor) -> torch.Tensor:
    return model.classifier(model.dropout(torch.relu(model.pre_classifier(pooled_SD))))


def _modernbert_head(model: PreTrainedModel, pooled_SD: torch.Tensor) -> torch.Tensor:
    return model.classifier(model.drop(model.head(pooled_SD)))


def _score_head(model: PreTrainedModel, pooled_SD: torch.Tensor) -> torch.Tensor:
    return model.score(pooled_SD)


def _first(_: PreTrainedModel) -> Pooling:
    return "first"


def _last(_: PreTrainedModel) -> Pooling:
    return "last"


def _as_configured(model: PreTrainedModel) -> Pooling:
    return "mean" if model.config.classifier_pooling == "mean" else "first"


_POOLER = Head(("pooler", "classifier"), _first, _pooler_head)
_TOKEN = Head(("classifier",), _first, _token_head)
_SCORE = Head(("score",), _last, _score_head)

HEADS: dict[str, Head] = {
    "bert": _POOLER,
    "roberta": _TOKEN,
    "xlm-roberta": _TOKEN,
    "camembert": _TOKEN,
    "electra": _TOKEN,
    "distilbert": Head(("pre_classifier", "classifier"), _first, _distilbert_head),
    "modernbert": Head(("head", "classifier"), _as_configured, _modernbert_head),
}


def find_head(model: PreTrainedModel) -> Head:
    """The head of a sequence-classification model. Decoders all end in a `score` layer.

    Raises:
        InputError: the architecture's head is not known here.
    """
    head = HEADS.get(model.config.model_type)
    if head is None and hasattr(model, "score"):
        head = _SCORE
    if head is None:
        known = ", ".join([*HEADS, "decoders with a score layer"])
        raise InputError(f"{type(model).__name__}: its classification head is not known to tunesmith. Known: {known}")
    return head


def pool(hidden_TD: torch.Tensor, batch: PackedBatch, pooling: Pooling) -> torch.Tensor:
    """The state that stands for each row: (T, D) packed -> (S, D).

    Raises:
        ValueError: rows share a beginning, and not only their last states are wanted.
    """
    counts = torch.tensor(batch.lengths, device=hidden_TD.device)
    ends = counts.cumsum(0)
    if pooling == "last":
        return hidden_TD[ends[[chain[-1] for chain in batch.chains]] - 1]
    if max(batch.parents) >= 0:
        raise ValueError(f"rows that share a beginning have no {pooling} state of their own")
    if pooling == "first":
        return hidden_TD[ends - counts]
    return torch.stack([row_TD.mean(0) for row_TD in hidden_TD.split(batch.lengths)])


@dataclass(frozen=True, slots=True)
class LanguageHead:
    """A head that is one product with the weight (V, D), and perhaps a soft cap on it.

    Those of encoder-decoders may do something to the states before (`enter`), and add a bias (V,)."""

    weight: torch.Tensor
    softcap: float | None
    enter: Callable[[torch.Tensor], torch.Tensor] | None = None
    bias: torch.Tensor | None = None


# Keys under which configurations scale logits in ways of their own; such heads compute for themselves.
SCALINGS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier_scale", "dim_model_base")


def find_language_head(model: PreTrainedModel) -> LanguageHead | None:
    """The head of a decoder when it is a plain product, else None: then the model's own forward is used."""
    head: Any = model.get_output_embeddings()
    if model.config.is_encoder_decoder:
        family = family_of(model)
        plain = LanguageHead(head.weight, None, partial(family.enter, model), family.bias(model))
        return plain if type(head) is nn.Linear else None
    is_plain = type(head) is nn.Linear and head.bias is None
    if not is_plain or any(getattr(model.config, key, None) not in (None, 1, 1.0) for key in SCALINGS):
        return None
    return LanguageHead(head.weight, getattr(model.config, "final_logit_softcapping", None))
