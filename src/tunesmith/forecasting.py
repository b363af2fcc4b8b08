"""What a training would need, foreseen from its configuration and its rows, before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from tunesmith.config import TrainingConfig
from tunesmith.methods.table import Method, put_under
from tunesmith.models.outline import Pretence, Unknowing, count_layers, outline_network
from tunesmith.records import Examples
from tunesmith.runtime import current_memory
from tunesmith.terminal import describe_bytes
from tunesmith.train.plan import Forecast, Needs, Pace, Rows, find_needs, forecast
from tunesmith.train.step import Plan

# Above so many blocks two shallow networks are traced, and the rest follows: blocks are alike.
MOST_TRACED = 4
# Of a process that computes, beyond what it holds before: pages of torch's kernels, buffers of matrix products, and
# pieces that glibc keeps between batches of unlike size. 99 to 140 MB over seven methods on Linux (docs/log.md).
KERNELS = 115e6


@dataclass(frozen=True, slots=True)
class Target:
    """Where a training would run: on `device`, or, `by_data_sheet`, on hardware that is not here.

    `available` are bytes of memory, `pace` says how fast it is. `base` is what the process holds before it trains, in
    bytes; when not given it is measured.
    """

    device: torch.device
    pace: Pace
    available: int
    base: int | None = None
    by_data_sheet: bool = False

    @property
    def holds_interpreter(self) -> bool:
        return self.device.type == "cpu" and not self.by_data_sheet


def foresee(
    config: TrainingConfig, method: Method, examples: Examples, rows: Rows, plan: Plan, target: Target
) -> Forecast:
    """The forecast of one training, with advice when it does not fit into memory.

    Raises:
        InputError: the method cannot be applied to the model.
    """
    needs = _find_needs(config, method, examples, rows, plan)
    base = 0
    if target.holds_interpreter:  # its memory is the process's
        base = target.base or current_memory(target.device) + int(KERNELS)
    found = forecast(needs, rows, plan, target.pace)
    memory = replace(found.memory, base=base, prefix=0 if target.holds_interpreter else found.store)
    weights = memory.parameters if method.saving.whole else needs.checkpoint // 3
    found = replace(
        found,
        method=method.name,
        memory=memory,
        device=str(target.device),
        # Of checkpoints the newest, the best, and the one being written.
        disk=weights + 3 * needs.checkpoint + found.store - memory.prefix,
        available=target.available,
    )
    return found if found.fits else replace(found, advice=_advise(found, config, rows))


def _find_needs(config: TrainingConfig, method: Method, examples: Examples, rows: Rows, plan: Plan) -> Needs:
    num_layers = count_layers(config.model)
    shallow = max(2, config.num_last_layers + 1)
    if num_layers <= max(MOST_TRACED, shallow + 1):
        return _trace(config, method, examples, rows, plan, None)
    less, more = (_trace(config, method, examples, rows, plan, shallow + extra) for extra in (0, 1))
    return more.extended(less, num_layers - shallow - 1)


def _trace(
    config: TrainingConfig, method: Method, examples: Examples, rows: Rows, plan: Plan, num_layers: int | None
) -> Needs:
    network = outline_network(config.model, examples.task, examples.class_names, num_layers)
    pretence = Pretence(plan.device)
    with torch.device("meta"), Unknowing():
        put_under(network, method, config, plan.dtype, pretence.place)
    return find_needs(network, pretence, rows, plan)


def _advise(found: Forecast, config: TrainingConfig, rows: Rows) -> str:
    """What needs less memory and trains the same; else what trains less."""
    memory, size = found.memory, config.per_device_train_batch_size
    fixed = memory.parameters + memory.gradients + memory.optimizer + memory.prefix + memory.base
    by_batch = memory.activations + memory.temporaries
    says = (
        f"{found.method} needs {describe_bytes(found.peak)} of memory by the plan, and "
        f"{describe_bytes(found.available)} are free: {memory}"
    )
    smaller = size
    while smaller > 1 and fixed + by_batch * smaller / size > 0.95 * found.available:
        smaller //= 2
    if fixed + by_batch * smaller / size <= 0.95 * found.available:
        more = -(-size * config.gradient_accumulation_steps // smaller)
        return (
            f"{says}. The same training in less: --per-device-train-batch-size {smaller} "
            f"--gradient-accumulation-steps {more}"
        )
    room = 0.95 * found.available - fixed
    longest = max(len(row.input_ids) for row in rows.train)
    if room > 0 and (shorter := int(longest * room * size / by_batch)) > 1:
        return f"{says}. Even one row at a time is too much: a --max-length of {shorter} would fit, with batches of 1"
    return f"{says}. Its weights and their states alone do not fit: take a method that trains less, or a smaller model"
