"""A network on labelled rows: what it predicts, how good that is, and its use on new texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.data import sources
from tunesmith.data.ids import prompt_ids
from tunesmith.data.tokenize import tokenize
from tunesmith.errors import InputError
from tunesmith.evaluation.demonstrations import Shown, fit_shown, show_before, write_question
from tunesmith.evaluation.metrics import score
from tunesmith.evaluation.predictions import Predictions
from tunesmith.evaluation.readings import READINGS, Given, by_row
from tunesmith.models.generate import Decoding, generate, sample, stream
from tunesmith.models.load import Network, load_network, settle_precision
from tunesmith.records import (
    JUDGED,
    Conversation,
    Examples,
    LabelledText,
    Message,
    Origin,
    Score,
    TaggedWords,
)
from tunesmith.runs.folder import MANIFEST
from tunesmith.runs.run import Run
from tunesmith.runtime import choose_device, choose_precision
from tunesmith.train.validate import validate

DEFAULT_MAX_NEW_TOKENS = 128
# Tokens that a template may put around an answer.
MARKS = 8


def predict_rows(
    network: Network,
    examples: Examples,
    dtype: torch.dtype,
    max_generated: int = 0,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
) -> Predictions:
    """What the network says about labelled rows; generation answers the first `max_generated` of them."""
    network.model.eval()
    rows = tokenize(examples, network.tokenizer, network.max_positions - network.num_virtual)
    outputs = validate(network, rows, dtype)
    if examples.task == "generation":
        conversations = [row for row in examples.rows if isinstance(row, Conversation)]
        asked = [prompt_ids(row.messages[:-1], network.tokenizer) for row in conversations[:max_generated]]
        decoding = Decoding(max_new_tokens=max_new_tokens)
        made = [each[0] for each in sample(network, asked, decoding, dtype, quiet=False)] if asked else []
        silent = [None] * (len(conversations) - len(made))
        return Predictions(
            task="generation",
            targets=[row.messages[-1].content for row in conversations],
            outputs=[*(answer.text for answer in made), *silent],
            losses=outputs.losses,
            num_tokens=outputs.num_judged,
            finished=[*(answer.finished for answer in made), *silent],
        )
    return READINGS[examples.task].score(examples, rows, outputs)


def label_logprobs(
    network: Network, texts: Sequence[str], class_names: Sequence[str], dtype: torch.dtype, shown: Shown = ()
) -> np.ndarray:
    """(texts, classes): mean log-probability per token of each class name as the answer to a question
    that lists them, behind the demonstrations `shown` before each text. The network must be a decoder loaded
    for generation."""
    question = f"Which of these labels fits the text best: {', '.join(class_names)}?\n"

    def ask(index: int, pairs: Sequence[tuple[str, str]]) -> Message:
        return Message("user", question + write_question(texts[index], pairs, "Text", "Label"))

    kept = fit_shown(shown or [()] * len(texts), lambda index, pairs: _fits(network, [ask(index, pairs)], class_names))
    rows = tuple(
        Conversation((ask(index, pairs), Message("assistant", name)), Origin("<text>", index + 1))
        for index, pairs in enumerate(kept)
        for name in class_names
    )
    asked = Examples("generation", rows, (), "", "")
    outputs = validate(network, tokenize(asked, network.tokenizer, network.max_positions), dtype)
    return -(outputs.losses / outputs.num_judged).reshape(len(texts), len(class_names))


def predict_shown(
    network: Network, examples: Examples, dtype: torch.dtype, max_generated: int, max_new_tokens: int, shown: Shown
) -> Predictions:
    """As `predict_rows` for generation, with the demonstrations `shown` in the question of each row."""
    rows = [row for row in examples.rows if isinstance(row, Conversation)]

    def fits(index: int, pairs: Sequence[tuple[str, str]]) -> bool:
        asked = show_before(rows[index], pairs).messages
        return _fits(network, asked[:-1], [asked[-1].content], max_new_tokens)

    kept = fit_shown(shown, fits)
    asked = tuple(show_before(row, pairs) for row, pairs in zip(rows, kept, strict=True))
    return predict_rows(network, Examples("generation", asked, (), "", ""), dtype, max_generated, max_new_tokens)


def _fits(network: Network, asked: Sequence[Message], answers: Sequence[str], max_new_tokens: int = 0) -> bool:
    """Whether the model can read a prompt with the longest of its answers and the marks at their end."""
    longest = max(len(network.tokenizer(answer)["input_ids"]) for answer in answers) + MARKS
    num_prompt = len(prompt_ids(asked, network.tokenizer))
    return num_prompt + max(longest, max_new_tokens) <= network.max_positions


def open_network(name: str, task: str | None = None, class_names: Sequence[str] = ()) -> Network:
    """A run folder, or else a model by name, folder or hub name, on the best device."""
    if (Path(name).expanduser() / MANIFEST).is_file():
        return Run.open(name).network
    network = load_network(name, task or "generation", class_names)  # type: ignore[arg-type]
    device = choose_device()
    network.model.requires_grad_(False)
    settle_precision(network, choose_precision("auto", device))
    network.model.to(device)
    network.model.eval()
    return network


def evaluate(network: Network, data: Any, columns: Mapping[str, str] | None = None, max_generated: int = 32) -> Score:
    """Scores a network on all rows of labelled data.

    Raises:
        InputError: the data does not fit the network's task, or has classes it does not know.
    """
    examples = sources.load(data, network.task, columns)
    return score(predict_rows(network, fit_classes(examples, network), _dtype(network), max_generated))


def fit_classes(examples: Examples, network: Network) -> Examples:
    """The same rows with the network's class ids."""
    if examples.task != network.task:
        raise InputError(f"the data is for {examples.task}, '{network.source}' does {network.task}")
    unknown = sorted(set(examples.class_names) - set(network.class_names))
    if unknown:
        raise InputError(
            f"label '{unknown[0]}' is unknown to '{network.source}'. It knows {', '.join(network.class_names)}"
        )
    return Examples(examples.task, examples.rows, network.class_names, examples.recognised, examples.fingerprint)


def predict_texts(network: Network, texts: Sequence[Given], max_new_tokens: int = 256) -> list[dict[str, Any]]:
    """One mapping per text: `label` and `probability`, `labels` and `probabilities`, `score`, `tags`, or `answer`.

    Args:
        texts: texts, or pairs of texts for a model that judges pairs; words, or a text to be divided at its blanks, for
            token classification.
    """
    dtype = _dtype(network)
    if network.task == "generation":
        prompts = [(Message("user", str(text)),) for text in texts]
        return [{"answer": text} for text in generate(network, prompts, Decoding(max_new_tokens), dtype)]
    given = [
        READINGS[network.task].row(text, network.class_names, Origin("<text>", at)) for at, text in enumerate(texts, 1)
    ]
    if len({bool(row.pair) for row in given if isinstance(row, LabelledText)}) > 1:
        raise InputError("some of the texts are pairs and others are not. A model judges the one or the other")
    asked = [row for row in given if not isinstance(row, TaggedWords) or row.words]
    said = iter(_judge(network, Examples(network.task, asked, network.class_names, "", ""), dtype) if asked else ())
    return [{"tags": []} if isinstance(row, TaggedWords) and not row.words else next(said) for row in given]


def _judge(network: Network, examples: Examples, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """What is said of each row; None is the tag of a word that was cut off."""
    rows = tokenize(examples, network.tokenizer, network.max_positions - network.num_virtual)
    outputs = validate(network, rows, dtype)
    for row, logits in zip(examples.rows, by_row(outputs, JUDGED[network.task] == "words"), strict=True):
        said = READINGS[network.task].tell(logits, network.class_names)
        if isinstance(row, TaggedWords):
            said["tags"] += [None] * (len(row.words) - len(said["tags"]))
        yield said


def chat_stream(network: Network, messages: Sequence[Message], decoding: Decoding) -> Iterator[str]:
    """The next answer of a conversation, piece by piece."""
    return stream(network, messages, decoding, _dtype(network))


def texts_of(examples: Examples) -> list[str]:
    """The text of each labelled row; the last question of each conversation."""
    labelled = [row.whole for row in examples.rows if isinstance(row, LabelledText)]
    return labelled or [row.messages[-2].content for row in examples.rows if isinstance(row, Conversation)]


def _dtype(network: Network) -> torch.dtype:
    return choose_precision("auto", network.model.device)
