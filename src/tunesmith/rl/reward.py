"""What judges answers: reward models, other models that judge texts, and functions of the user's.

A scorer takes prompts (turns) and an answer to each, and gives a number for each, more being better.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.config_align import Judging
from tunesmith.data.tokenize import tokenize
from tunesmith.errors import InputError, nearest
from tunesmith.evaluation.readings import READINGS
from tunesmith.models.load import Network, load_config, load_network, resolve_model, rest
from tunesmith.records import Examples, Message, Origin, Ranking
from tunesmith.rewarding import REPORT
from tunesmith.runs.folder import MANIFEST
from tunesmith.runs.run import Run
from tunesmith.runtime import choose_precision
from tunesmith.train.validate import validate

Turns = Sequence[Message]
Scorer = Callable[[Sequence[Turns], Sequence[str]], np.ndarray]


def open_rewards(names: Sequence[str], weights: Sequence[float], config: Judging, device: torch.device) -> Scorer:
    """The weighted sum of several; the scorer raises an InputError where one is no finite number.

    Raises:
        InputError: something named is no run, model or function, or judges no texts.
    """
    scorers = [(name, _open(name, config, device)) for name in names]
    counts = list(weights) or [1.0] * len(scorers)

    def score(prompts: Sequence[Turns], answers: Sequence[str]) -> np.ndarray:
        total = np.zeros(len(answers))
        for (name, scorer), weight in zip(scorers, counts, strict=True):
            total += weight * _checked(name, scorer(prompts, answers), answers)
        return total

    return score


def _checked(name: str, scores: Any, answers: Sequence[str]) -> np.ndarray:
    found = np.asarray(scores, dtype=float)
    if found.shape != (len(answers),):
        raise InputError(
            f"reward '{name}' gave numbers of shape {found.shape} for {len(answers)} answers; one for each"
        )
    bad = next((place for place, score in enumerate(found) if not math.isfinite(score)), None)
    if bad is not None:
        raise InputError(
            f"reward '{name}' is {found[bad]} for the answer {answers[bad][:60]!r}. Give it a finite number"
        )
    return found


def _open(name: str, config: Judging, device: torch.device) -> Scorer:
    folder = Path(name).expanduser()
    if (folder / MANIFEST).is_file():
        network = Run.open(folder).network
        network.model.to(device)
        return _reward_model(network, folder) if network.task == "ranking" else _judge(network, config)
    if ":" in name:
        return _function(name)
    settings = load_config(resolve_model(name), name)
    labels = tuple(settings.id2label[place] for place in range(settings.num_labels))
    network = load_network(
        name, "classification" if len(labels) > 1 else "regression", labels if len(labels) > 1 else ()
    )
    if network.new_modules:
        raise InputError(f"'{name}' has no head that judges texts. Train one: tunesmith reward, or tunesmith tune")
    rest(network, choose_precision("auto", device), device)
    return _judge(network, config)


def _function(name: str) -> Scorer:
    """`module:function`, or `file.py:function`, which is given the text of each prompt's last turn and the answers."""
    place, _, attribute = name.rpartition(":")
    try:
        if place.endswith(".py"):
            found = importlib.util.spec_from_file_location(Path(place).stem, Path(place).expanduser())
            assert found is not None
            assert found.loader is not None
            module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except (ImportError, OSError) as error:
        raise InputError(
            f"reward '{name}': {error}. Give a run, a model, module:function or file.py:function"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise InputError(f"reward '{name}': no function '{attribute}' there: {nearest(attribute, known)}")
    return lambda prompts, answers: function([turns[-1].content for turns in prompts], list(answers))


def _reward_model(network: Network, folder: Path) -> Scorer:
    """A run of `tunesmith reward`, shifted and scaled as its report says: 0 is a usual answer, 1 a deviation better."""
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    shift, deviation = float(report["shift"]), float(report["deviation"]) or 1.0

    def score(prompts: Sequence[Turns], answers: Sequence[str]) -> np.ndarray:
        origin = Origin("<answers>", 0)
        rows = [Ranking(tuple(turns), (text,), (1,), origin) for turns, text in zip(prompts, answers, strict=True)]
        return (_logits(network, Examples("ranking", rows, (), "", ""))[:, 0] + shift) / deviation

    return score


def _judge(network: Network, config: Judging) -> Scorer:
    """A classifier's log-odds of one label, or a regression's number, of a text."""
    if network.task not in ("classification", "regression"):
        raise InputError(
            f"'{network.source}' does {network.task}; a reward is a reward model, a classifier or a regression"
        )
    names = network.class_names
    label = names[-1] if names and config.reward_label is None else config.reward_label
    if names and label not in names:
        raise InputError(f"reward_label: '{network.source}' knows no '{label}': {nearest(str(label), names)}")

    def score(prompts: Sequence[Turns], answers: Sequence[str]) -> np.ndarray:
        texts = list(answers)
        if config.reward_reads == "both":
            texts = [f"{turns[-1].content} {text}" for turns, text in zip(prompts, answers, strict=True)]
        row = READINGS[network.task].row
        rows = [row(text, names, Origin("<answers>", 0)) for text in texts]
        logits_RC = _logits(network, Examples(network.task, rows, names, "", ""))
        return log_odds(logits_RC, names.index(str(label))) if names else logits_RC[:, 0]

    return score


def log_odds(logits_RC: np.ndarray, label: int) -> np.ndarray:
    """log p / (1 - p) of a label: its logit less log sum exp of the others'."""
    others = np.delete(logits_RC, label, axis=1)
    return np.asarray(logits_RC[:, label] - np.logaddexp.reduce(others, axis=1))


def _logits(network: Network, examples: Examples) -> np.ndarray:
    limit = network.max_positions - network.num_virtual
    rows = tokenize(examples, network.tokenizer, limit)
    dtype = choose_precision("auto", network.model.device)
    return validate(network, rows, dtype).logits.astype(float)
