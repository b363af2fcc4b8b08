"""What a training would need, foreseen from its configuration and its rows, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from tunesmith.config import MEMORY_PARTS, TrainingConfig
from tunesmith.methods.apply import put_under
from tunesmith.methods.method import Method
from tunesmith.models.outline import Pretence, Unknowing, count_layers, outline_network
from tunesmith.records import Examples
from tunesmith.runtime import current_memory
from tunesmith.terminal import describe_bytes
from tunesmith.train.plan import Forecast, Needs, Pace, Rows, find_needs, forecast
from tunesmith.train.step import Plan

# Above so many blocks two shallow networks are traced, and the rest follows: blocks are alike.
MOST_TRACED = 4
# Of a process that computes, beyond what it holds before: pages of torch's kernels, buffers of matrix products, and
# pieces that glibc keeps between batches of unlike size. 54 to 74 MB over nine methods on Linux (docs/log.md).
KERNELS = 65e6
# With products in bfloat16 further, above all kernels that oneDNN compiles and keeps (`runtime.MOST_KERNELS`): 99 to
# 217 MB together on two chips, the smaller numbers in methods that train in all layers.
COMPILED = 95e6
# Keys of a relief that are told; the dial stands for its parts.
TOLD = (
    "memory",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optimizer_in_backward",
    "quantization",
)


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
    """The forecast of one training; when it does not fit into memory, with settings that would, foreseen in their turn.

    Raises:
        InputError: the method cannot be applied to the model.
    """
    found = _foresee(config, method, examples, rows, plan, target)
    if found.fits:
        return found
    says = (
        f"{method.name} needs {describe_bytes(found.peak)} of memory by the plan, and "
        f"{describe_bytes(found.available)} are free: {found.memory}"
    )
    for settings in _reliefs(config, method):
        lighter = config.model_copy(update=settings)
        light = replace(
            plan,
            batch_size=lighter.per_device_train_batch_size,
            accumulation=lighter.gradient_accumulation_steps,
            optim=lighter.optim,
            optimizer_in_backward=lighter.optimizer_in_backward,
        )
        other = _foresee(lighter, method, examples, rows, light, target)
        if other.fits:
            told = {key: str(value).lower() for key, value in settings.items() if key in TOLD}
            flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in told.items())
            return replace(found, advice=f"{says}. This would fit, with {describe_bytes(other.peak)}: {flags}")
    return replace(
        found,
        advice=f"{says}. No setting makes it fit: take a shorter --max-length, a method that trains less, or a smaller "
        "model",
    )


def _reliefs(config: TrainingConfig, method: Method) -> Iterator[dict[str, Any]]:
    """Settings that need less memory; first those that change the training least."""
    size, times = config.per_device_train_batch_size, config.gradient_accumulation_steps
    low = {"memory": "low"} | {key: settings[-1] for key, settings in MEMORY_PARTS.items()}
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": size * times}
    if config.optimizer_in_backward:  # takes no batch in parts
        yield low
        return
    if size >= 4:
        yield {"per_device_train_batch_size": size // 4, "gradient_accumulation_steps": -(-size * times // (size // 4))}
    yield low
    yield low | one
    if not config.further_passes and method.attend is None:
        yield low | {"optimizer_in_backward": True}
    if method.family == "reparameterised":
        yield low | one | {"quantization": "nf4"}


def _foresee(
    config: TrainingConfig, method: Method, examples: Examples, rows: Rows, plan: Plan, target: Target
) -> Forecast:
    needs = _find_needs(config, method, examples, rows, plan)
    base = 0
    if target.holds_interpreter:  # its memory is the process's
        kernels = KERNELS + (COMPILED if plan.dtype == torch.bfloat16 else 0)
        base = target.base or current_memory(target.device) + int(kernels)
    found = forecast(needs, rows, plan, target.pace)
    memory = replace(found.memory, base=base, prefix=0 if target.holds_interpreter else found.store)
    weights = memory.parameters if method.saving.whole else needs.checkpoint // 3
    return replace(
        found,
        method=method.name,
        memory=memory,
        device=str(target.device),
        # Of checkpoints the newest, the best, and the one being written.
        disk=weights + 3 * needs.checkpoint + found.store - memory.prefix,
        available=target.available,
    )


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
