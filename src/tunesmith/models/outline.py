"""Networks without weights: shapes, types and code are the real ones, and no number is ever stored.

A model is built from its configuration alone on torch's meta device, a method is applied to it, and its parameters
then become fake tensors (`torch._subclasses.FakeTensor`), which claim to lie on a device and know only their shape.
The code that trains runs over them as it is. What asks for a number gets one: losses are 1, comparisons hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tunesmith.models.heads import TASK_HEADS, choose_class, head_settings, refuse_unfit
from tunesmith.models.load import (
    Network,
    enclose,
    find_base,
    load_config,
    quietly,
    resolve_model,
    use_our_layers,
)
from tunesmith.records import Task

ATEN: Any = torch.ops.aten
PRIM: Any = torch.ops.prim
# Tensors that nothing was computed from yet. Indices are real (arange, tensor literals): their values decide shapes.
MAKERS = {ATEN.zeros.default, ATEN.ones.default, ATEN.full.default, ATEN.rand.default, ATEN.randn.default}
EMPTY = {ATEN.empty.memory_format, ATEN.empty_strided.default}


def count_layers(name: str) -> int:
    """Blocks that are all alike, by the configuration; 0 for an encoder-decoder, which has two kinds."""
    config = load_config(resolve_model(name), name)
    return 0 if config.is_encoder_decoder else int(config.num_hidden_layers)


def outline_network(name: str, task: Task, class_names: Sequence[str] = (), num_layers: int | None = None) -> Network:
    """As `load_network`, on the meta device: no weights are read, and the folder need not hold any.

    Args:
        num_layers: build only so many blocks.

    Raises:
        InputError: unknown model, or one that cannot do the task.
    """
    source = resolve_model(name)
    base = find_base(source, name)
    config: Any = load_config(base, name)
    refuse_unfit(config, task, name)
    dtype = getattr(config, "dtype", None) or _stored_dtype(Path(base))
    if num_layers is not None:
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:num_layers]
    auto = choose_class(config, task)
    if task in TASK_HEADS:
        for key, value in head_settings(task, class_names).items():
            setattr(config, key, value)
    with quietly(), torch.device("meta"), Unknowing():
        model = auto.from_config(config, attn_implementation="eager", dtype=dtype)
        network = enclose(model, source, name, task, class_names)
        use_our_layers(network)
    return network


def _stored_dtype(folder: Path) -> torch.dtype:
    """The type of the weights where the configuration does not say; float32 without weights."""
    for path in sorted(folder.glob("*.safetensors"))[:1]:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                kind = file.get_slice(name).get_dtype()
                if kind in ("F32", "F16", "BF16"):
                    return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    return torch.float32


class Unknowing(TorchDispatchMode):
    """Answers what asks for a number: on tensors without any, comparisons hold and every number is 1."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = _answer(func, args)
        return func(*args, **(kwargs or {})) if answer is None else answer


def _answer(func: Any, args: Sequence[Any]) -> Any:
    if func is ATEN.allclose.default or func is ATEN.equal.default:
        return True if _has_no_numbers(args[0]) else None
    if func is ATEN._local_scalar_dense.default and _has_no_numbers(args[0]):
        return 1.0 if args[0].is_floating_point() else args[0].dtype == torch.bool or 1
    return None


def _has_no_numbers(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, FakeTensor) or tensor.is_meta


class Pretence:
    """The tensors of one outlined network: all of them belong to one mode, on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._mode = device, FakeTensorMode(allow_non_fake_inputs=True)

    def place(self, network: Network) -> None:
        """In place of `.to(device)`: meta parameters and buffers become fake ones, tied ones stay tied."""
        known: dict[torch.Tensor, nn.Parameter] = {}
        for module in (*network.root.modules(), *network.model.modules()):
            for name, parameter in module._parameters.items():
                if parameter is not None and not isinstance(parameter, FakeTensor):
                    if parameter not in known:
                        known[parameter] = nn.Parameter(self._fake(parameter.data), parameter.requires_grad)
                    module._parameters[name] = known[parameter]
            for name, buffer in module._buffers.items():
                if buffer is not None and not isinstance(buffer, FakeTensor):
                    module._buffers[name] = self._fake(buffer)

    def _fake(self, tensor: torch.Tensor) -> FakeTensor:
        return FakeTensor(self._mode, tensor.to("meta"), self._device)

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """One operation; what makes tensors from nothing makes fake ones, unless they are indices."""
        if func is PRIM.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        answer = _answer(func, args)
        if answer is not None:
            return answer
        if func in EMPTY or (func in MAKERS and _is_float(kwargs)) or _goes_elsewhere(kwargs):
            with self._mode:
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _is_float(kwargs: Mapping[str, Any]) -> bool:
    dtype: torch.dtype = kwargs.get("dtype") or torch.get_default_dtype()
    return dtype.is_floating_point


def _goes_elsewhere(kwargs: Mapping[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type not in ("cpu", "meta")
