"""What a system said about rows, and what would have been right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluation.answers import Answers, count_answers, overlap_f1, squad_words
from tunesmith.evaluation.tags import entities
from tunesmith.records import Task

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.integer[Any]]


@dataclass
class Predictions:
    """What a system said about R rows, and what would have been right.

    classification  targets, outputs: class ids (R,)
    multi-label     targets, outputs: whether each class holds (R, C)
    regression      targets, outputs: scores (R,)
    ranking         targets: ranks, outputs: rewards of each row's answers
    token-class.    targets, outputs: tags of each row's words, None where none was given
    extractive-qa   targets: all right answers of each question, none where there is none; outputs: answers, empty so
    generation      targets: reference answers; outputs: answers, None where none was made
    losses          (R,) sum of losses per row in nats (regression: squared error), or None
    num_tokens      (R,) judged tokens per row, or None for one each
    probabilities   classification: (R, C), or None
    finished        generation: whether each answer ended by itself, None where none was made; or None
    prompt_tokens   tokens that were read for each answer, or None
    seconds         what these answers took, made in batches, or None
    note            how the system was chosen, where it was
    """

    task: Task
    targets: Any
    outputs: Any
    losses: Floats | None = None
    num_tokens: Indices | None = None
    probabilities: Floats | None = None
    finished: list[bool | None] | None = None
    prompt_tokens: list[int] | None = None
    seconds: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.task in ("token-classification", "ranking"):
            self.targets, self.outputs = list(map(tuple, self.targets)), list(map(tuple, self.outputs))
        elif self.task == "extractive-qa":
            self.targets = list(map(tuple, self.targets))
        elif self.task != "generation":
            self.targets, self.outputs = np.asarray(self.targets), np.asarray(self.outputs)

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def answers(self) -> Answers:
        """What can be counted in each answer."""
        return count_answers(self.targets, self.outputs)

    @cached_property
    def by_class(self) -> tuple[Floats, Floats]:
        """(R, C) each: right yeses, and yeses of targets and outputs together."""
        targets, outputs = self.targets.astype(bool), self.outputs.astype(bool)
        return (targets & outputs).astype(float), targets.astype(float) + outputs

    @cached_property
    def by_question(self) -> Floats:
        """(R, 3): whether an answer is a right one, its share of words with the right one that it is most like, and
        whether there is one; the first two as SQuAD has them (Rajpurkar et al. 2016, arXiv 1606.05250; 2018, arXiv
        1806.03822)."""
        counts = []
        for targets, output in zip(self.targets, self.outputs, strict=True):
            said, right = squad_words(output), [squad_words(target) for target in targets or ("",)]
            likest = max(overlap_f1(said, true) for true in right)
            counts.append((said in right, likest, bool(targets)))
        return np.array(counts, dtype=float)

    @cached_property
    def by_pair(self) -> Floats:
        """(R, 3): pairs whose better answer has the higher reward (level ones half), their -log sigmoid(gap) in nats,
        and pairs; of each ranking."""
        sums = []
        for ranks, rewards in zip(self.targets, self.outputs, strict=True):
            rank_K, reward_K = np.array(ranks), np.array(rewards)
            gaps = (reward_K[:, None] - reward_K[None, :])[rank_K[:, None] < rank_K[None, :]]
            sums.append(((0.5 + 0.5 * np.sign(gaps)).sum(), np.logaddexp(0, -gaps).sum(), len(gaps)))
        return np.array(sums)

    @cached_property
    def by_row(self) -> Indices:
        """(R, 5): entities that are right, said and true; words that are right, and words."""
        counts = []
        for targets, outputs in zip(self.targets, self.outputs, strict=True):
            true, said = entities(targets), entities(outputs)
            right = sum(one == other for one, other in zip(targets, outputs, strict=True))
            counts.append((len(true & said), len(said), len(true), right, len(targets)))
        return np.array(counts)

    def to_mapping(self) -> dict[str, Any]:
        return {
            field.name: value.tolist() if isinstance(value := getattr(self, field.name), np.ndarray) else value
            for field in fields(self)
        }

    @classmethod
    def from_mapping(cls, plain: Mapping[str, Any]) -> Predictions:
        arrays = {name: plain.get(name) for name in ("losses", "num_tokens", "probabilities")}
        made: dict[str, Any] = {name: None if value is None else np.array(value) for name, value in arrays.items()}
        made |= {name: plain[name] for name in ("finished", "prompt_tokens", "seconds", "note") if name in plain}
        return cls(plain["task"], plain["targets"], plain["outputs"], **made)
