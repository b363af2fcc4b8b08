"""Methods whose parameters and files are PEFT's: put around a network, or read back from a folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from peft import AdaLoraConfig, LoraConfig, PeftConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.config import TrainingConfig
from tunesmith.errors import InputError
from tunesmith.methods.method import Family, Method, Saving, save_pretrained
from tunesmith.models.layers import find_layers, find_linears, linear_names, matrix_of
from tunesmith.models.load import Network, quietly
from tunesmith.models.lowrank import fuse
from tunesmith.models.wrap import read, wrap

Sizes = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Adapter:
    """Linear layers of the blocks get adapters of one kind.

    `settings` are those in which it is not as PEFT has it, `fit` those that depend on the layers' sizes (outputs,
    inputs), and `choose` says which layers where these are not all linear ones. `transposed`: see Method.
    """

    name: str
    kind: type[PeftConfig]
    settings: Mapping[str, Any] = field(default_factory=dict)
    fit: Callable[[Sizes], dict[str, Any]] | None = None
    choose: Callable[[Network, TrainingConfig], dict[str, Any]] | None = None
    transposed: bool = True

    def __call__(self, network: Network, config: TrainingConfig) -> None:
        is_transposed = any(isinstance(module, Conv1D) for module in network.model.modules())
        if is_transposed and not self.transposed:
            raise InputError(
                f"{self.name} changes only layers that keep their matrix as (outputs, inputs); those of "
                f"'{network.source}' keep it the other way round (Conv1D). lora does with both"
            )
        known = {each.name for each in fields(self.kind)}
        chosen = _all_linear(network, config, known) if self.choose is None else self.choose(network, config)
        given = common_keys(network) | {"fan_in_fan_out": is_transposed} | chosen
        given |= dict(self.settings) | _lora_keys(self.kind, config)
        if self.fit is not None:
            given |= self.fit(_sizes(network, config))
        given |= options_of(self.name, config)
        try:
            made = self.kind(**{key: value for key, value in given.items() if key in known})
            with quietly():
                wrapped = wrap(network.model, made)
        except (ValueError, TypeError, NotImplementedError, AssertionError, ZeroDivisionError) as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{self.name} cannot be applied to '{network.source}': {first_line}") from error
        adopt(network, wrapped)


# Keys of PEFT's configurations that are ours to set.
OURS = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "modules_to_save", "target_modules", "fan_in_fan_out", "lora_alpha", "lora_dropout"),
    *("total_step", "rank_pattern"),
}


def common_keys(network: Network) -> dict[str, Any]:
    """What every configuration of PEFT's is told: which base, and that new heads are saved whole."""
    return {"base_model_name_or_path": network.folder, "modules_to_save": list(network.head_modules) or None}


def _all_linear(network: Network, config: TrainingConfig, known: set[str]) -> dict[str, Any]:
    present = linear_names(network.model)
    targets = list(config.target_modules or present)
    unknown = [target for target in targets if target not in present]
    if unknown:
        raise InputError(
            f"target_modules: '{network.source}' has no linear layer called '{unknown[0]}'. It has {', '.join(present)}"
        )
    inside, elsewhere = find_linears(network.model, targets)
    if not elsewhere:
        return {"target_modules": targets}
    # Outside the blocks there may be layers of the same name, in a head or unused ("dense" in BERT's poolers).
    return (
        {"target_modules": targets, "exclude_modules": elsewhere}
        if "exclude_modules" in known
        else {"target_modules": inside}
    )


def _sizes(network: Network, config: TrainingConfig) -> Sizes:
    """(outputs, inputs) of the linear layers that get an adapter."""
    wanted = set(config.target_modules or linear_names(network.model))
    return [
        tuple(matrix_of(module).shape)  # type: ignore[misc]
        for name, module in find_layers(network.model).named_modules()
        if name.rpartition(".")[2] in wanted and isinstance(module, nn.Linear | Conv1D)
    ]


def largest_factor(most: int, numbers: Iterable[int]) -> int:
    """The largest whole number up to `most` that divides them all."""
    shared = math.gcd(*numbers)
    return max(factor for factor in range(1, most + 1) if shared % factor == 0)


def _lora_keys(kind: type[PeftConfig], config: TrainingConfig) -> dict[str, Any]:
    if not issubclass(kind, LoraConfig):
        return {}
    given: dict[str, Any] = {"r": config.lora_r}
    if issubclass(kind, AdaLoraConfig):  # half as many again to begin with (section 4.1); the steps are not known yet
        given = {"target_r": config.lora_r, "init_r": math.ceil(1.5 * config.lora_r), "total_step": 10**9}
    return given | {"lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout}


def options_of(name: str, config: TrainingConfig) -> dict[str, Any]:
    """Those of `method_options` that are for this method: `name.key`, without the name."""
    given = config.method_options.items()
    return {key.partition(".")[2]: value for key, value in given if key.startswith(f"{name}.")}


def adopt(network: Network, wrapped: nn.Module) -> None:
    """Takes over a PEFT model: its base runs, it saves."""
    network.wrapper = wrapped
    fuse(wrapped)


def restore_adapter(network: Network, folder: Path) -> None:
    adopt(network, read(network.model, folder))


ADAPTER = Saving("PEFT adapter", save_pretrained, restore_adapter)


def adapter(  # noqa: PLR0913 (one argument for each column)
    family: Family,
    name: str,
    summary: str,
    paper: str,
    kind: type[PeftConfig],
    rates: tuple[float, float] = (3.75e-4, 1e-3),
    *,
    by_width: bool = True,
    starts_equal: bool = True,
    merges: bool = True,
    transposed: bool = False,
    foreseen: bool = True,
    fit: Any = None,
    choose: Any = None,
    **settings: Any,
) -> Method:
    """A row whose parameters and files are PEFT's."""
    return Method(
        name,
        family,
        summary,
        paper,
        rates,
        Adapter(name, kind, settings, fit, choose, transposed),
        ADAPTER,
        by_width,
        settings=settings,
        merges=merges,
        starts_equal=starts_equal,
        transposed=transposed,
        foreseen=foreseen,
        options=frozenset(each.name for each in fields(kind)) - OURS,
    )
