"""Stage: rankings -> a reward model, and how far it agrees with people on prompts it has not seen.

The run is one of `tune` on the task "ranking": a prompt with all its answers is one row, computed once, and the loss is
the mean over its pairs. Its folder loads in plain transformers as a sequence classifier with one label.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.config import TuneConfig
from tunesmith.config_align import RewardConfig
from tunesmith.data.parts import load_split
from tunesmith.data.split import normalise
from tunesmith.data.tokenize import tokenize
from tunesmith.data.tokens import TokenRows
from tunesmith.errors import InputError, nearest
from tunesmith.evaluation.rankings import best_of_n, describe, pairs_of
from tunesmith.feedback.agreement import Measure, measure_agreement
from tunesmith.feedback.pairs import Ranks
from tunesmith.methods.method import Method
from tunesmith.models.load import Network
from tunesmith.records import Example, Examples, Ranking, Split
from tunesmith.runs.run import Run
from tunesmith.storage import write_json
from tunesmith.train.validate import validate
from tunesmith.tuning import Prepared, prepare, tune

REPORT = "reward.json"


def train_reward(config: RewardConfig, parts: Split | None = None, quiet: bool = False) -> Run:
    """Trains and saves a reward model, or goes on with one that was interrupted.

    Raises:
        InputError: the data holds no rankings, or as `tune`.
    """
    parts = load_split(config) if parts is None else parts
    if parts.train.task != "ranking":
        raise InputError(
            f"the data is for {parts.train.task} ({parts.train.recognised}); a reward model learns from rankings: "
            "prompt and answers, best first, or prompt, chosen and rejected"
        )
    agreement = agreement_of([row for part in (parts.train, parts.validation, parts.test) for row in part.rows])
    parts, strangers = set_apart(parts, choose_people(parts, config))
    if config.ties == "drop":
        parts, strangers = _with_pairs(parts), _unlike(strangers)
    return tune(config, parts, quiet, how=partial(_prepare, strangers=strangers, agreement=agreement))


# People


def choose_people(parts: Split, config: RewardConfig) -> set[str]:
    """Those whose rankings are held out: named, or so many of them drawn by the seed.

    Raises:
        InputError: somebody who has ranked nothing, or nobody is left to learn from.
    """
    wanted = config.held_out_labelers
    if not wanted:
        return set()
    people = sorted({name for part in (parts.train, parts.validation, parts.test) for name in _labelers(part)} - {""})
    if not people:
        raise InputError(
            "held_out_labelers: the rankings do not say whose they are. Give them a column 'labeler', as "
            "`tunesmith feedback export` writes it"
        )
    if len(wanted) == 1 and wanted[0].isdecimal() and wanted[0] not in people:
        num = min(int(wanted[0]), len(people))
        chosen = set(random.Random(f"{config.seed}/labelers").sample(people, num))
    else:
        for name in wanted:
            if name not in people:
                raise InputError(f"held_out_labelers: nobody called '{name}' has ranked: {nearest(name, people)}")
        chosen = set(wanted)
    if not set(_labelers(parts.train)) - chosen:
        raise InputError(f"held_out_labelers: of {', '.join(people)} nobody is left to learn from. Hold out fewer")
    return chosen


def set_apart(parts: Split, people: Collection[str]) -> tuple[Split, Examples]:
    """The parts without these people, and what they said of prompts that are not trained.

    So a model is judged by others than it learned from on prompts that it has not seen either. What they said of
    training prompts is not used: there the answers were ranked before it, by somebody else.
    """
    if not people:
        return parts, replace(parts.test, rows=[])
    own = {name: _of_people(getattr(parts, name), people, False) for name in ("train", "validation", "test")}
    if not own["train"].rows or not own["validation"].rows:
        raise InputError("held_out_labelers: too few rankings of the others are left. Hold out fewer")
    theirs = [row for part in (parts.validation, parts.test) for row in _of_people(part, people, True).rows]
    sizes = ", ".join(f"{name} {len(part.rows):,}" for name, part in own.items())
    note = f"{parts.note}; without {', '.join(sorted(people))}: {sizes}, and {len(theirs):,} of theirs to be judged by"
    kept = replace(parts, train=own["train"], validation=own["validation"], test=own["test"], note=note)
    return kept, replace(parts.test, rows=theirs)


def _of_people(examples: Examples, people: Collection[str], is_theirs: bool) -> Examples:
    rows = [row for row in examples.rows if isinstance(row, Ranking) and (row.labeler in people) == is_theirs]
    fingerprint = f"{examples.fingerprint} {'by' if is_theirs else 'but not by'} {sorted(people)}"
    return replace(examples, rows=rows, fingerprint=fingerprint)


def _labelers(examples: Examples) -> list[str]:
    return [row.labeler for row in examples.rows if isinstance(row, Ranking)]


def agreement_of(rows: Sequence[Example]) -> Measure:
    """How often two people who ranked the same answers choose the same one of two: what a model can hardly surpass."""
    items: dict[tuple[str, frozenset[str]], dict[str, Ranks]] = defaultdict(dict)
    for row in rows:
        if isinstance(row, Ranking) and row.labeler:
            ranks = dict(zip(row.answers, row.ranks, strict=True))
            items[normalise(row), frozenset(ranks)][row.labeler] = ranks
    return measure_agreement({str(place): ranks for place, ranks in enumerate(items.values())})[0]


# Training and its report


def _with_pairs(parts: Split) -> Split:
    """Without rankings in which all are tied: they have no pair to learn from."""
    was = (parts.train, parts.validation, parts.test)
    train, validation, test = map(_unlike, was)
    lost = sum(len(part.rows) for part in was) - sum(len(part.rows) for part in (train, validation, test))
    if not train.rows or not validation.rows:
        raise InputError("in every ranking all answers are tied, so none is better than another. Try --ties half")
    note = f"{parts.note}; {lost:,} rankings whose answers are all tied left out" if lost else parts.note
    return Split(train, validation, test, note, parts.checked)


def _unlike(examples: Examples) -> Examples:
    rows = [row for row in examples.rows if isinstance(row, Ranking) and len(set(row.ranks)) > 1]
    return examples if len(rows) == len(examples.rows) else replace(examples, rows=rows)


def _prepare(
    config: TuneConfig, method: Method, parts: Split, planned: bool, strangers: Examples, agreement: Measure
) -> Prepared:
    prepared = prepare(config, method, parts, planned)
    assert isinstance(prepared.validation, TokenRows)
    network, judged = prepared.network, {"validation": Judged(parts.validation, prepared.validation)}
    limit = network.max_positions - network.num_virtual
    for name, examples in (("test", parts.test), ("held_out_labelers", strangers)):
        if examples.rows:  # read now: what is too long in it should not be found after a training
            judged[name] = Judged(examples, tokenize(examples, network.tokenizer, limit, config.too_long))
    return replace(prepared, finish=partial(_finish, prepared, judged, agreement))


@dataclass(frozen=True, slots=True)
class Judged:
    """Rankings that were not trained, and their tokens."""

    examples: Examples
    rows: TokenRows


def _finish(prepared: Prepared, judged: Mapping[str, Judged], agreement: Measure, folder: Path) -> Mapping[str, Any]:
    """Writes the report. Rewards are shifted so that the answers of the validation part have mean 0 (Ouyang et al.
    2022, section 3.4, does so with demonstrations), and `deviation` is theirs; whoever uses the model applies both."""
    rewards = {name: rewards_of(prepared.network, part.rows, prepared.plan.dtype) for name, part in judged.items()}
    seen = np.array([reward for answers in rewards["validation"] for reward in answers])
    report: dict[str, Any] = {"shift": -float(seen.mean()), "deviation": float(seen.std())}
    report["people_agree"] = agreement
    for name, part in judged.items():
        examples = (part.examples.rows[place] for place in part.rows.examples)
        rankings = [row for row in examples if isinstance(row, Ranking)]
        lengths = [[len(answer) for answer in row.answers] for row in rankings]
        ranks = [row.ranks for row in rankings]
        prompts = [normalise(row) for row in rankings]
        report[name] = describe(pairs_of(rewards[name], ranks, lengths, prompts)) | {
            "best_of_n": best_of_n(rewards[name], ranks),
            "labelers": len({row.labeler for row in rankings} - {""}),
        }
    write_json(folder / REPORT, report)
    return {"reward": report}


def rewards_of(network: Network, rows: TokenRows, dtype: torch.dtype) -> list[list[float]]:
    """The model's own numbers for each answer of each tokenized ranking, neither shifted nor scaled."""
    logits_A = validate(network, rows, dtype).logits[:, 0]
    ends = np.cumsum([len(row.answers) for row in rows])[:-1]
    return [part.tolist() for part in np.split(logits_A.astype(float), ends)]
