"""tunesmith as a contestant: its own step, over batches in the order given."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from record import Record


def adopt(network: Any, adapter: Path) -> None:
    """Puts the LoRA adapter of a folder on a network, to be trained on."""
    from peft import PeftModel

    from tunesmith.methods import adapters

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapters.adopt(network, PeftModel.from_pretrained(network.model, adapter, is_trainable=True))


def train(
    network: Any,
    batches: Iterable[Sequence[Any]],
    plan: Any,
    record: Record,
    describe: Callable[[Any], Any],
) -> None:
    """A step for each batch of rows; `describe` says what a row is for the record."""
    from tunesmith.data.pack import pack
    from tunesmith.train.loop import trainable
    from tunesmith.train.optim import make_optimizer
    from tunesmith.train.step import take_step

    parameters = trainable(network)
    optimizer = make_optimizer(parameters, plan.learning_rate, plan.weight_decay, plan.optim, plan.rates)
    network.model.train()
    for step, rows in enumerate(batches):
        batch = pack(rows, share=network.is_decoder)
        record.losses.append(take_step(network, [batch], parameters, optimizer, plan, step).loss)
        record.tick()
        record.note([describe(row) for row in rows])
