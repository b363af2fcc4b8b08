"""Stage: what trainings would need, before any of them runs: one forecast for each method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from tunesmith.chips import Chip, find_chip
from tunesmith.config import PlanConfig, TuneConfig
from tunesmith.data.parts import load_split
from tunesmith.errors import InputError
from tunesmith.forecasting import Target, foresee
from tunesmith.methods.method import Method
from tunesmith.methods.table import choose_methods
from tunesmith.records import Split
from tunesmith.runtime import available_memory, choose_device, choose_precision
from tunesmith.train.clock import Clock, DataSheet
from tunesmith.train.plan import Forecast, Rows
from tunesmith.train.terms import make_plan
from tunesmith.tuning import find_max_length, read_rows

PATIENCE = 10.0  # seconds in which operations are timed, for all methods together
# Of a data sheet's peak that a training step reaches, an assumption; several devices lose a tenth in talking.
SHARE = 0.4
SHARE_OF_SEVERAL = 0.9
# Bytes of an accelerator's memory that its own context takes.
CONTEXT = 0.6e9


def plan(config: PlanConfig, parts: Split | None = None) -> list[Forecast]:
    """Forecasts by method, in the order given. A method that the model does not take says why in `advice`.

    Raises:
        InputError: wrong model, data, method or device.
    """
    methods = choose_methods(config.methods, config.method_options)
    target, dtype = choose_target(config)
    parts = load_split(config) if parts is None else parts
    keys = {key: getattr(config, key) for key in TuneConfig.model_fields if hasattr(config, key)}
    found = []
    read: dict[int, Rows] = {}  # by the longest row a method leaves room for
    for method in methods:
        tuning = TuneConfig(**keys | {"method": method.name})
        limit = find_max_length(tuning)
        if limit not in read:
            read[limit] = Rows(*read_rows(tuning, parts)[:2])
        rows = read[limit]
        try:
            if not method.foreseen:
                raise InputError(
                    f"{method.name}: its parameters depend on the weights' values, which a plan does not read"
                )
            one = foresee(tuning, method, parts.train, rows, make_plan(tuning, 1.0, target.device, dtype), target)
        except InputError as error:
            one = Forecast.impossible(method.name, str(error))
        if one.memory.base:
            target = replace(target, base=one.memory.base)  # later ones would count what planning itself leaves behind
        found.append(replace(one, device=config.device, basis=_basis(target, config.device, dtype)))
    if isinstance(target.pace, Clock):
        target.pace.save()
    return _with_alternatives(found)


def _refuse_unforeseen(method: Method) -> None:
    if not method.foreseen:
        raise InputError(f"{method.name}: how many parameters it trains depends on weights, which a plan does not read")


def choose_target(config: PlanConfig) -> tuple[Target, torch.dtype]:
    """Where the trainings would run, and in which precision."""
    named = find_chip(config.device)
    if named is None:
        device = choose_device(config.device)
        target = Target(device, Clock(device, PATIENCE), available_memory(device))
        return target, choose_precision(config.precision, device)
    chip, count = named
    # Its step is traced as the CPU's is, in its own precision: the operations are the same.
    dtype = torch.float32 if config.precision == "fp32" or not chip.bf16 else torch.bfloat16
    pace = _pace(chip, count, dtype)
    return Target(torch.device("cpu"), pace, int(chip.memory - CONTEXT), by_data_sheet=True), dtype


def _basis(target: Target, name: str, dtype: torch.dtype) -> str:
    precision = str(dtype).removeprefix("torch.")
    traced = f"Memory and FLOPs: the training step itself, traced without weights, in {precision}"
    if not target.by_data_sheet:
        return f"{traced}. Time: its operations, each timed on this machine; at most, since training may stop early."
    return (
        f"{traced}. Time: an estimate for {name} from its data sheet, at an assumed {SHARE:.0%} of the peak; nothing "
        "was run there. Memory is that of one device, without the allocator's slack. Training on several devices is "
        f"not there yet: for more than one the time supposes {SHARE_OF_SEVERAL:.0%} of ideal scaling."
    )


def _pace(chip: Chip, count: int, dtype: torch.dtype) -> DataSheet:
    several = 1.0 if count == 1 else count * SHARE_OF_SEVERAL
    return DataSheet(chip.fp32 if dtype == torch.float32 else chip.bf16, chip.bytes_per_second, SHARE * several)


def _with_alternatives(found: Sequence[Forecast]) -> list[Forecast]:
    """Names the methods that fit to those that do not."""
    fitting = ", ".join(one.method for one in found if one.fits)
    return [
        replace(one, advice=f"{one.advice}. Methods that fit as they are: {fitting}")
        if not one.fits and fitting
        else one
        for one in found
    ]
