"""The methods beside each other: what each is, and what it would train of a given model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tunesmith.config import TuneConfig
from tunesmith.errors import InputError
from tunesmith.methods.apply import default_learning_rate
from tunesmith.methods.method import Method
from tunesmith.methods.table import METHODS
from tunesmith.models.heads import is_encoder
from tunesmith.models.load import count_parameters, load_config, resolve_model
from tunesmith.models.outline import Unknowing, outline_network
from tunesmith.records import Task


def survey(model: str | None = None) -> list[dict[str, Any]]:
    """A mapping for each method; with a model also what it would train of it with default settings.

    A decoder is taken as one that writes text, an encoder as a classifier of two classes.
    """
    rows = [_describe(method) for method in METHODS.values()]
    return rows if model is None else [row | more for row, more in zip(rows, _on(model), strict=True)]


def _describe(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "family": method.family,
        "summary": method.summary,
        "paper": method.paper,
        "learning_rate": method.learning_rate,
        "by_width": method.by_width,
        "settings": dict(method.settings),
        "saved_as": method.saving.form,
        "merges": method.merges,
        "starts_equal": method.starts_equal,
        "conv1d": method.transposed,
    }


def _on(model: str) -> Iterator[dict[str, Any]]:
    task: Task = "classification" if is_encoder(load_config(resolve_model(model), model)) else "generation"
    names = ("a", "b") if task == "classification" else ()
    for method in METHODS.values():
        config = TuneConfig.read(given={"model": model, "data": "none", "method": method.name})
        if not method.foreseen:
            yield _refused("how many parameters it trains depends on the weights")
            continue
        network = outline_network(model, task, names)
        try:
            with torch.device("meta"), Unknowing():
                method.apply(network, config)
        except InputError as error:
            yield _refused(str(error).partition(". ")[0])
            continue
        trained, total = count_parameters(network)
        rate = default_learning_rate(method, network)
        yield {"trained": trained, "share": trained / total, "learning_rate": rate, "refusal": ""}


def _refused(why: str) -> dict[str, Any]:
    return {"trained": None, "share": None, "refusal": why}
