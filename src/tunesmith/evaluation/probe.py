"""A small general probe: facts, arithmetic and instructions that most models of some size can do.

The items are ours, in `general/`; a file is never changed once it is published, a new one takes its place, so that
numbers with the same version can be set beside each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import torch

from tunesmith.data.tokenize import tokenize
from tunesmith.evaluation.predictions import Predictions
from tunesmith.models.generate import Decoding, generate
from tunesmith.models.load import Network
from tunesmith.records import Conversation, Examples, Message, Origin
from tunesmith.train.validate import validate

VERSION = 1
LONGEST = 40  # tokens of a written answer
TOGETHER = 32  # rows: the choices of a question stay in one batch, where the question is computed once
Item = Mapping[str, Any]


def read_general(name: str) -> str:
    """A file of ours by its name without the version: `probe`, `texts` or `prompts`."""
    ending = "txt" if name == "prompts" else "jsonl"
    return (files("tunesmith.evaluation") / "general" / f"{name}-{VERSION}.{ending}").read_text(encoding="utf-8")


def read_items() -> list[Item]:
    return [json.loads(line) for line in read_general("probe").splitlines()]


def ask_items(network: Network, dtype: torch.dtype) -> dict[str, Predictions]:
    """What a decoder says to the probe, each item right or not: by kind, and `probe` for all of them.

    facts, arithmetic  the choice with the highest log-probability per character is the first (lm-eval's acc_norm)
    sums_written       the last number of the written answer is the right one
    instructions       the written answer does what was asked, by a rule that a program can check
    """
    items = read_items()
    chosen = choose([item for item in items if "choices" in item], network, dtype)
    asked = [item for item in items if "check" in item or "answer" in item]
    made = generate(network, [(_question(item),) for item in asked], Decoding(LONGEST), dtype, quiet=True)
    followed = [_holds(item, answer) for item, answer in zip(asked, made, strict=True)]
    right: dict[str, list[bool]] = {}
    for item, hit in zip([item for item in items if "choices" in item], chosen, strict=True):
        right.setdefault(item["kind"], []).append(hit)
    for item, hit in zip(asked, followed, strict=True):
        right.setdefault("instructions" if "check" in item else "sums_written", []).append(hit)
    right["probe"] = [hit for hits in right.values() for hit in hits]
    return {name: hits_of(hits) for name, hits in right.items()}


def hits_of(hits: Sequence[bool]) -> Predictions:
    """Items right or not as predictions, so that they have an accuracy, its interval and paired differences."""
    return Predictions("classification", np.ones(len(hits), dtype=int), np.array(hits, dtype=int))


def choose(items: Sequence[Item], network: Network, dtype: torch.dtype) -> list[bool]:
    """Whether the first choice of each item is the likeliest, in nats per character, its stop token included."""
    rows = tuple(
        Conversation((_question(item), Message("assistant", choice)), Origin("<probe>", at))
        for at, item in enumerate(items, 1)
        for choice in item["choices"]
    )
    limit = network.max_positions - network.num_virtual
    asked = tokenize(Examples("generation", rows, (), "", ""), network.tokenizer, limit)
    losses = iter(
        loss
        for start in range(0, len(asked), TOGETHER)
        for loss in validate(network, asked[start : start + TOGETHER], dtype).losses
    )
    return [int(np.argmin([next(losses) / len(text) for text in item["choices"]])) == 0 for item in items]


def _question(item: Item) -> Message:
    return Message("user", item["question"])


def _holds(item: Item, answer: str) -> bool:
    if "answer" in item:
        numbers = re.findall(r"-?\d+", answer.replace(",", ""))
        return bool(numbers) and numbers[-1] == item["answer"]
    return all(CHECKS[name](answer, wanted) for name, wanted in item["check"].items())


def _plain(text: str) -> str:
    return text.strip().strip("\"'`*.!? \n").casefold()


def _fold(answer: str, wanted: str) -> str:
    """Case counts where the wanted text has capitals."""
    return answer if wanted != wanted.lower() else answer.casefold()


def _are_in_order(answer: str, wanted: Sequence[str]) -> bool:
    at = 0
    for word in wanted:
        at = _fold(answer, word).find(word, at) + 1
        if not at:
            return False
    return True


# What an answer must be, by the name it has in the file.
CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    "exact": lambda answer, wanted: _plain(answer) == wanted,
    "contains": lambda answer, wanted: wanted in _fold(answer, wanted),
    "starts": lambda answer, wanted: _fold(answer.lstrip(" \"'*"), wanted).startswith(wanted),
    "order": _are_in_order,
    "min_lines": lambda answer, wanted: sum(bool(line.strip()) for line in answer.splitlines()) >= wanted,
    "max_words": lambda answer, wanted: 0 < len(answer.split()) <= wanted,
}
