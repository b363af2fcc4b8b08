"""Heads that judge: how each model family turns hidden states into what it says of a row, of words, or of tokens.

One row of a table per way of building the head, not per model: ROW_HEADS for the modules of transformers' own
`...ForSequenceClassification` classes, WORD_HEADS for those of `...ForTokenClassification`, SPAN_HEADS for those of
`...ForQuestionAnswering`. They are called on the
pooled states, so a saved folder gives the same logits in plain transformers. TASK_HEADS says which task has which.

Shape letters: S rows, N judged places, D hidden width, C classes (1 for a score).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from peft import TaskType
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from tunesmith.errors import InputError
from tunesmith.models.masked import MASKED_HEADS
from tunesmith.models.seq2seq import family_of, refuse_unknown
from tunesmith.records import PackedBatch, Task

Pooling = Literal["first", "last", "mean", "judged"]


@dataclass(frozen=True, slots=True)
class Head:
    """`modules` are the parts above the pre-trained body, trained by every method; `logits` maps the
    model and the pooled states, (S, D) or (N, D), to as many times C."""

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


def _dropout_classifier(model: PreTrainedModel, states_ND: torch.Tensor) -> torch.Tensor:
    return model.classifier(model.dropout(states_ND))


def _dropout_score(model: PreTrainedModel, states_ND: torch.Tensor) -> torch.Tensor:
    return model.score(model.dropout(states_ND))


def _span_head(model: PreTrainedModel, states_ND: torch.Tensor) -> torch.Tensor:
    return model.qa_outputs(states_ND)


def _distilbert_span_head(model: PreTrainedModel, states_ND: torch.Tensor) -> torch.Tensor:
    return model.qa_outputs(model.dropout(states_ND))


def _judged(_: PreTrainedModel) -> Pooling:
    return "judged"


def _first(_: PreTrainedModel) -> Pooling:
    return "first"


def _last(_: PreTrainedModel) -> Pooling:
    return "last"


def _as_configured(model: PreTrainedModel) -> Pooling:
    return "mean" if model.config.classifier_pooling == "mean" else "first"


_POOLER = Head(("pooler", "classifier"), _first, _pooler_head)
_TOKEN = Head(("classifier",), _first, _token_head)
_SCORE = Head(("score",), _last, _score_head)

ROW_HEADS: dict[str, Head] = {
    "bert": _POOLER,
    "roberta": _TOKEN,
    "xlm-roberta": _TOKEN,
    "camembert": _TOKEN,
    "electra": _TOKEN,
    "distilbert": Head(("pre_classifier", "classifier"), _first, _distilbert_head),
    "modernbert": Head(("head", "classifier"), _as_configured, _modernbert_head),
}

_WORD_CLASSIFIER = Head(("classifier",), _judged, _dropout_classifier)

WORD_HEADS: dict[str, Head] = {
    "bert": _WORD_CLASSIFIER,
    "roberta": _WORD_CLASSIFIER,
    "xlm-roberta": _WORD_CLASSIFIER,
    "camembert": _WORD_CLASSIFIER,
    "electra": _WORD_CLASSIFIER,
    "distilbert": _WORD_CLASSIFIER,
    "modernbert": Head(("head", "classifier"), _judged, _modernbert_head),
    "gpt2": _WORD_CLASSIFIER,
}


_SPAN = Head(("qa_outputs",), _judged, _span_head)

SPAN_HEADS: dict[str, Head] = {
    "bert": _SPAN,
    "roberta": _SPAN,
    "xlm-roberta": _SPAN,
    "camembert": _SPAN,
    "electra": _SPAN,
    "distilbert": Head(("qa_outputs",), _judged, _distilbert_span_head),
    "modernbert": Head(("head", "classifier"), _judged, _modernbert_head),
}


@dataclass(frozen=True, slots=True)
class TaskHead:
    """One row of TASK_HEADS: the class of transformers that a model is loaded as, the architectures that have one,
    what PEFT and the configuration call the task, and the heads. `score` is the head of all decoders that are not
    listed, which end in a layer of its name."""

    auto: Any
    architectures: Mapping[str, str]
    peft_type: TaskType
    problem_type: str | None
    heads: Mapping[str, Head]
    score: Head


def _of_rows(problem_type: str) -> TaskHead:
    return TaskHead(
        AutoModelForSequenceClassification,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        TaskType.SEQ_CLS,
        problem_type,
        ROW_HEADS,
        _SCORE,
    )


# Tasks that are not here are written, by a language head.
TASK_HEADS: dict[Task, TaskHead] = {
    "classification": _of_rows("single_label_classification"),
    "multi-label": _of_rows("multi_label_classification"),
    "regression": _of_rows("regression"),
    "ranking": _of_rows("regression"),
    "token-classification": TaskHead(
        AutoModelForTokenClassification,
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        TaskType.TOKEN_CLS,
        None,  # transformers knows of problem types for rows only
        WORD_HEADS,
        Head(("score",), _judged, _dropout_score),
    ),
    "extractive-qa": TaskHead(
        AutoModelForQuestionAnswering,
        MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        TaskType.QUESTION_ANS,
        None,
        SPAN_HEADS,
        _SPAN,
    ),
}


def find_head(model: PreTrainedModel, task: Task) -> Head:
    """The head of a model that was loaded for a task that judges.

    Raises:
        InputError: the architecture's head is not known here.
    """
    kind = TASK_HEADS[task]
    head = kind.heads.get(model.config.model_type)
    last = kind.score.modules[-1]
    if head is None and hasattr(model, last) and not is_encoder(model.config):
        head = kind.score
    if head is None:
        known = ", ".join([*kind.heads, f"decoders with a {last} layer"])
        raise InputError(f"{type(model).__name__}: its head for {task} is not known to tunesmith. Known: {known}")
    return head


def name_head_modules(model: PreTrainedModel, task: Task) -> tuple[str, ...]:
    """Last name parts of the modules above the pre-trained body that the task brings; empty for generation."""
    if task == "text" and model.config.model_type in MASKED_HEADS:
        return MASKED_HEADS[model.config.model_type].modules
    return find_head(model, task).modules if task in TASK_HEADS else ()


def is_encoder(config: PreTrainedConfig) -> bool:
    """Bidirectional models, judged by the architectures transformers lists for masked words."""
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_encoder_decoder


def choose_class(config: PreTrainedConfig, task: Task) -> Any:
    """The class of transformers that loads or makes such a model."""
    if task in TASK_HEADS:
        return TASK_HEADS[task].auto
    if task == "text" and is_encoder(config):
        return AutoModelForMaskedLM
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def rename_weights(config: PreTrainedConfig, task: Task) -> dict[str, str]:
    """Names of weights in files -> their names in the class for the task, as transformers' `key_mapping` takes them.

    Of most decoders its classes for question answering call the body otherwise than those that write, whose files there
    are."""
    asking, writing = AutoModelForQuestionAnswering._model_mapping, AutoModelForCausalLM._model_mapping
    if task != "extractive-qa" or type(config) not in writing:
        return {}
    own, theirs = (mapping[type(config)].base_model_prefix for mapping in (asking, writing))
    return {} if own == theirs else {rf"^{theirs}\.": f"{own}."}


@torch.no_grad()
def draw_reward_head(model: PreTrainedModel) -> None:
    """Weights from N(0, 1 / (D + 1)), that is a standard deviation of 1 / sqrt(D + 1), and no bias: the first rewards
    have about the size that differences of one nat want (Stiennon et al. 2020, arXiv 2009.01325; the released code has
    this deviation, the paper's text its square)."""
    modules = find_head(model, "ranking").modules
    head = [module for module in model.get_submodule(modules[-1]).modules() if isinstance(module, nn.Linear)][-1]
    head.weight.normal_(0.0, (head.in_features + 1) ** -0.5)
    if head.bias is not None:
        head.bias.zero_()


def start_at_frequencies(model: PreTrainedModel, new_modules: Sequence[str], shares: Sequence[float]) -> None:
    """Lets a new head of several labels begin with how often each holds, by its bias log(p / (1 - p)): else the first
    hundreds of steps go into learning that most labels hold seldom (Lin et al. 2017, arXiv 1708.02002, section 4.1).
    A head without a bias, as decoders have it, stays as it is."""
    logits_C = torch.tensor(shares).clamp(1e-4, 1 - 1e-4).logit()
    for module in map(model.get_submodule, new_modules):
        if isinstance(module, nn.Linear) and module.bias is not None and module.out_features == len(shares):
            module.bias.data.copy_(logits_C)


def refuse_unfit(config: PreTrainedConfig, task: Task, name: str) -> None:
    """Raises an InputError when a model of this kind cannot do the task."""
    kind = config.model_type
    if config.is_encoder_decoder:
        if task not in ("generation", "text"):
            raise InputError(
                f"'{name}' is an encoder-decoder ({kind}): it writes texts, and the data is for {task}. Take an "
                "encoder such as minilm-l6, or give the classes as texts to write (source/target)"
            )
        return refuse_unknown(config, name)
    if task == "text" and is_encoder(config) and kind in MASKED_HEADS:
        return
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_encoder(config)
    if task not in TASK_HEADS and not causal:
        raise InputError(
            f"'{name}' is an encoder ({kind}): it cannot write text. Take a decoder such as "
            f"smollm2-135m-instruct, or give the data a task it can do ({', '.join(TASK_HEADS)})"
        )
    if task in TASK_HEADS:
        _refuse_headless(config, task, name)


def _refuse_headless(config: PreTrainedConfig, task: Task, name: str) -> None:
    """Raises an InputError when transformers has no class of this architecture for the task."""
    if config.model_type not in TASK_HEADS[task].architectures:
        raise InputError(
            f"'{name}' ({config.model_type}): transformers has no model of this architecture for {task}. "
            "Take another one, for example a BERT, ModernBERT, Llama or Qwen3"
        )


def type_for_peft(model: PreTrainedModel) -> TaskType:
    """What PEFT calls the task that a model was made for: the one it judges for, else writing, from one text or two."""
    name = type(model).__name__
    found = (kind.peft_type for kind in TASK_HEADS.values() if name == kind.architectures.get(model.config.model_type))
    return next(found, TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM)


def head_settings(task: Task, class_names: Sequence[str]) -> dict[str, Any]:
    """What the configuration says of the head, and of what its numbers mean."""
    problem = {"problem_type": TASK_HEADS[task].problem_type}
    if task == "extractive-qa":  # two numbers a token: how well an answer begins there, and ends there
        return problem | {"num_labels": 2}
    if not class_names:
        return problem | {"num_labels": 1}
    return problem | {
        "num_labels": len(class_names),
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: index for index, name in enumerate(class_names)},
    }


def pool(hidden_TD: torch.Tensor, batch: PackedBatch, pooling: Pooling) -> torch.Tensor:
    """The state that stands for each row: (T, D) packed -> (S, D); of judged places their own, (N, D).

    Raises:
        ValueError: rows share a beginning, and not only their last states are wanted.
    """
    if pooling == "judged":
        return hidden_TD[batch.predict_from]
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

    Those of encoders and encoder-decoders do something to the states before (`enter`), and add a bias (V,)."""

    weight: torch.Tensor
    softcap: float | None
    enter: Callable[[torch.Tensor], torch.Tensor] | None = None
    bias: torch.Tensor | None = None


# Keys under which configurations scale logits in ways of their own; such heads compute for themselves.
SCALINGS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier_scale", "dim_model_base")


def find_language_head(model: PreTrainedModel) -> LanguageHead | None:
    """The head of a model that writes when it is a plain product, else None: then the model's own forward is used."""
    head: Any = model.get_output_embeddings()
    if model.config.is_encoder_decoder:
        family = family_of(model)
        plain = LanguageHead(head.weight, None, partial(family.enter, model), family.bias(model))
        return plain if type(head) is nn.Linear else None
    if model.config.model_type in MASKED_HEADS:
        enter = partial(MASKED_HEADS[model.config.model_type].enter, model)
        return LanguageHead(head.weight, None, enter, head.bias) if type(head) is nn.Linear else None
    is_plain = type(head) is nn.Linear and head.bias is None
    if not is_plain or any(getattr(model.config, key, None) not in (None, 1, 1.0) for key in SCALINGS):
        return None
    return LanguageHead(head.weight, getattr(model.config, "final_logit_softcapping", None))
