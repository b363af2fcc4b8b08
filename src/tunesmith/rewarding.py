"""Stage: rankings -> a reward model, and how far it agrees with people on prompts it has not seen.

The run is one of `tune` on the task "ranking": a prompt with all its answers is one row, computed once, and the loss is
the mean over its pairs. Its folder loads in plain transformers as a sequence classifier with one label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.config import TuneConfig
from tunesmith.config_align import RewardConfig
from tunesmith.data.parts import load_split
from tunesmith.data.tokenize import tokenize
from tunesmith.data.tokens import TokenRows
from tunesmith.errors import InputError
from tunesmith.evaluation.rankings import best_of_n, describe, pairs_of
from tunesmith.methods.method import Method
from tunesmith.models.load import Network
from tunesmith.records import Examples, Ranking, Split
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
    return tune(config, _with_pairs(parts) if config.ties == "drop" else parts, quiet, how=_prepare)


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


def _prepare(config: TuneConfig, method: Method, parts: Split, planned: bool) -> Prepared:
    prepared = prepare(config, method, parts, planned)
    assert isinstance(prepared.validation, TokenRows)
    network, rows = prepared.network, {"validation": prepared.validation}
    if parts.test.rows:  # read now: what is too long in it should not be found after a training
        limit = network.max_positions - network.num_virtual
        rows["test"] = tokenize(parts.test, network.tokenizer, limit, config.too_long)
    return replace(prepared, finish=partial(_finish, prepared, rows))


def _finish(prepared: Prepared, rows: Mapping[str, TokenRows], folder: Path) -> Mapping[str, Any]:
    """Writes the report. Rewards are shifted so that the answers of the validation part have mean 0 (Ouyang et al.
    2022, section 3.4, does so with demonstrations), and `deviation` is theirs; whoever uses the model applies both."""
    rewards = {name: rewards_of(prepared.network, part, prepared.plan.dtype) for name, part in rows.items()}
    seen = np.array([reward for answers in rewards["validation"] for reward in answers])
    report: dict[str, Any] = {"shift": -float(seen.mean()), "deviation": float(seen.std())}
    for name, part in rows.items():
        examples: Examples = getattr(prepared.split, name)
        rankings = [row for row in (examples.rows[place] for place in part.examples) if isinstance(row, Ranking)]
        lengths = [[len(answer) for answer in row.answers] for row in rankings]
        ranks = [row.ranks for row in rankings]
        report[name] = describe(pairs_of(rewards[name], ranks, lengths)) | {
            "best_of_n": best_of_n(rewards[name], ranks)
        }
    write_json(folder / REPORT, report)
    return {"reward": report}


def rewards_of(network: Network, rows: TokenRows, dtype: torch.dtype) -> list[list[float]]:
    """The model's own numbers for each answer of each tokenized ranking, neither shifted nor scaled."""
    logits_A = validate(network, rows, dtype).logits[:, 0]
    ends = np.cumsum([len(row.answers) for row in rows])[:-1]
    return [part.tolist() for part in np.split(logits_A.astype(float), ends)]
