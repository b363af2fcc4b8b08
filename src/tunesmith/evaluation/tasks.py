"""A network on labelled rows: what it predicts, how good that is, and its use on new texts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.data import sources
from tunesmith.data.ids import prompt_ids
from tunesmith.data.tokenize import tokenize
from tunesmith.errors import InputError
from tunesmith.evaluation.metrics import score
from tunesmith.evaluation.predictions import Predictions
from tunesmith.evaluation.prompting import WORDINGS, Prompting, fit_before
from tunesmith.evaluation.readings import READINGS, Given, by_row
from tunesmith.evaluation.spans import find_answers
from tunesmith.models.generate import Answer, Decoding, generate, sample, stream
from tunesmith.models.load import Network, load_network, rest
from tunesmith.outcomes import Score
from tunesmith.records import JUDGED, Conversation, Examples, LabelledText, Message, Origin, TaggedWords
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
    started = time.monotonic()
    outputs = validate(network, rows, dtype)
    if examples.task == "generation":
        conversations = [row for row in examples.rows if isinstance(row, Conversation)]
        asked = [prompt_ids(row.messages[:-1], network.tokenizer) for row in conversations[:max_generated]]
        decoding, started = Decoding(max_new_tokens=max_new_tokens), time.monotonic()
        made = [each[0] for each in sample(network, asked, decoding, dtype, quiet=False)] if asked else []
        silent = [None] * (len(conversations) - len(made))
        return Predictions(
            task="generation",
            targets=[row.messages[-1].content for row in conversations],
            outputs=[*(answer.text for answer in made), *silent],
            losses=outputs.losses,
            num_tokens=outputs.num_judged,
            finished=[*(answer.finished for answer in made), *silent],
            prompt_tokens=[len(ids) for ids in asked],
            seconds=time.monotonic() - started,
        )
    said = READINGS[examples.task].score(examples, rows, outputs)
    # A passage is read window by window.
    lengths = np.bincount(np.unique(rows.examples, return_inverse=True)[1], rows.lengths).astype(int).tolist()
    return replace(said, prompt_tokens=lengths, seconds=time.monotonic() - started)


def predict_asked(
    network: Network,
    examples: Examples,
    dtype: torch.dtype,
    max_generated: int,
    max_new_tokens: int,
    prompting: Prompting,
) -> Predictions:
    """What a decoder loaded for generation says about rows that are put to it by `prompting`: of classes the one whose
    name is likeliest as an answer, else as `predict_rows`."""
    if examples.task == "classification":
        return _predict_labels(network, examples, dtype, prompting)
    asked = ask_rows(network, examples, max_new_tokens, prompting)
    return predict_rows(network, asked, dtype, max_generated, max_new_tokens)


def ask_rows(network: Network, examples: Examples, max_new_tokens: int, prompting: Prompting) -> Examples:
    """Conversations as they are put to a decoder by `prompting`, behind as much as it can read."""
    rows = [row for row in examples.rows if isinstance(row, Conversation)]

    def fits(index: int, before: Sequence[Any]) -> bool:
        asked = prompting.ask(rows[index], before).messages
        return _fits(network, asked[:-1], [asked[-1].content], max_new_tokens)

    kept = fit_before(prompting.before or [()] * len(rows), fits)
    asked = tuple(prompting.ask(row, before) for row, before in zip(rows, kept, strict=True))
    return Examples("generation", asked, (), "", "")


def draw_answers(
    network: Network, asked: Examples, dtype: torch.dtype, decoding: Decoding, num_answers: int
) -> tuple[list[list[Answer]], list[int]]:
    """So many answers to the last question of each conversation, and how many tokens were read for them: each question
    goes through the network once."""
    rows = [row for row in asked.rows if isinstance(row, Conversation)]
    prompts = [prompt_ids(row.messages[:-1], network.tokenizer) for row in rows]
    network.model.eval()
    return sample(network, prompts, decoding, dtype, num_answers, quiet=False), [len(ids) for ids in prompts]


def _predict_labels(network: Network, examples: Examples, dtype: torch.dtype, prompting: Prompting) -> Predictions:
    names, texts = examples.class_names, texts_of(examples)
    asked = ask_labels(network, texts, names, prompting)
    started = time.monotonic()
    said = label_logprobs(network, asked, names, dtype).argmax(1)
    seconds = time.monotonic() - started
    lengths = [len(prompt_ids([message], network.tokenizer)) for message in asked]
    targets = [names.index(row.target) for row in examples.rows if isinstance(row, LabelledText)]
    return Predictions("classification", targets, said, prompt_tokens=lengths, seconds=seconds)


PLAIN = Prompting(WORDINGS["classification"][0])


def ask_labels(
    network: Network, texts: Sequence[str], class_names: Sequence[str], prompting: Prompting = PLAIN
) -> list[Message]:
    """The question which class each text has, behind as much as the model can read."""

    def fits(index: int, before: Sequence[Any]) -> bool:
        return _fits(network, [prompting.ask_label(texts[index], before, class_names)], class_names)

    kept = fit_before(prompting.before or [()] * len(texts), fits)
    return [prompting.ask_label(text, before, class_names) for text, before in zip(texts, kept, strict=True)]


def label_logprobs(
    network: Network, asked: Sequence[Message], class_names: Sequence[str], dtype: torch.dtype
) -> np.ndarray:
    """(questions, classes): mean log-probability per token of each class name as the answer to each question. The
    network must be a decoder loaded for generation."""
    rows = tuple(
        Conversation((message, Message("assistant", name)), Origin("<text>", index))
        for index, message in enumerate(asked, 1)
        for name in class_names
    )
    conversations = Examples("generation", rows, (), "", "")
    outputs = validate(network, tokenize(conversations, network.tokenizer, network.max_positions), dtype)
    return -(outputs.losses / outputs.num_judged).reshape(len(asked), len(class_names))


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
    rest(network, choose_precision("auto", device), device)
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
        known = ", ".join(network.class_names) or "none"
        raise InputError(f"label '{unknown[0]}' is unknown to '{network.source}'. It knows {known}")
    return Examples(examples.task, examples.rows, network.class_names, examples.recognised, examples.fingerprint)


def predict_texts(network: Network, texts: Sequence[Given], max_new_tokens: int = 256) -> list[dict[str, Any]]:
    """One mapping per text: `label` and `probability`, `labels` and `probabilities`, `score`, `tags`, or `answer`.

    Of an answer that was found in a passage also where it is, and by how many logits it is ahead of no answer.

    Args:
        texts: texts, or pairs of texts for a model that judges pairs; a question and a passage; words, or a text to
            be divided at its blanks, for token classification.
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
    parts: Sequence[Any] = (
        find_answers(examples, rows, outputs, network.class_names)
        if network.task == "extractive-qa"
        else by_row(outputs, JUDGED[network.task] == "words")
    )
    for row, part in zip(examples.rows, parts, strict=True):
        said = READINGS[network.task].tell(part, network.class_names)
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
