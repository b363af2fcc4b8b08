"""What a piece of training allocates and computes, by running it over a network without weights.

Every operation passes through `Trace`. It notes when storages come and go, so that the highest moment can be found
afterwards, and which operations ran on which shapes, so that their FLOPs are counted and their time can be told.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from tunesmith.models.outline import ATEN, PRIM, Pretence

Kind = Literal["parameters", "gradients", "optimizer", "activations", "temporaries"]
KINDS: tuple[Kind, ...] = ("parameters", "gradients", "optimizer", "activations", "temporaries")
Holding = dict[Kind, int]
BACKWARD, UPDATE = "backward", "update"


def _flops_of_linear(x: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any) -> int:
    """What torch counts only where a gradient is wanted, since it is then made of other operations."""
    return 2 * x.numel() * weight.shape[0]


FURTHER = {ATEN.linear: _flops_of_linear}
IN_PLACE = {ATEN.addmm_: ATEN.addmm, ATEN.baddbmm_: ATEN.baddbmm}
FREE = {PRIM.device.default, ATEN.detach.default, ATEN._local_scalar_dense.default, ATEN.lift_fresh.default}


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor of an operation, without its numbers."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation on shapes. `args` and `kwargs` are its arguments with a Spec for each tensor but real indices."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    flops: int
    num_bytes: int

    @property
    def name(self) -> str:
        """Function, shapes and types: what its time depends on."""
        return f"{self.func}{[_describe(leaf) for leaf in tree_leaves((self.args, dict(self.kwargs)))]}"


def _describe(leaf: Any) -> str:
    if isinstance(leaf, Spec):
        return f"{leaf.shape}/{leaf.stride}/{leaf.dtype}".replace(" ", "")
    return f"{tuple(leaf.shape)}" if isinstance(leaf, torch.Tensor) else str(leaf)


@dataclass
class Work:
    """How often each operation ran."""

    counts: Counter[Any] = field(default_factory=Counter)
    operations: dict[Any, Operation] = field(default_factory=dict)
    num_calls: int = 0

    @property
    def flops(self) -> int:
        return sum(self.operations[key].flops * count for key, count in self.counts.items())

    def extended(self, shallower: Work, times: int) -> Work:
        """The work with `times` more layers, each adding what this has beyond `shallower`."""
        counts = Counter({key: n + times * (n - shallower.counts[key]) for key, n in self.counts.items()})
        num_calls = self.num_calls + times * (self.num_calls - shallower.num_calls)
        return Work(counts, self.operations, num_calls)

    def __iter__(self) -> Iterator[tuple[Operation, int]]:
        return ((self.operations[key], count) for key, count in self.counts.items())


class Trace(TorchDispatchMode):
    """Active, it runs operations as the pretence does and takes note of them."""

    def __init__(self, pretence: Pretence) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pretence = pretence
        self._moment = ""
        self._sizes: list[int] = []
        self._is_activation: list[bool] = []
        self._moves: list[tuple[int, str]] = []  # +n: storage n - 1 came, and when; -n: it went
        self._live: dict[int, tuple[int, Any]] = {}
        self._work = Work()

    def begin(self, moment: str) -> Work:
        """A new part of the training begins; returns the work of the one before."""
        done, self._work, self._moment = self._work, Work(), moment
        return done

    def _when(self) -> str:
        is_backward = torch._C._current_graph_task_id() != -1
        return BACKWARD if is_backward else self._moment

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = self._pretence.run(func, args, kwargs)
        if func in FREE:
            return out
        is_new = self.keep(tree_leaves(out))
        self._work.num_calls += 1
        if not func.is_view and (is_new or func._schema.is_mutable):
            self._note(func, args, kwargs, out)
        return out

    def keep(self, tensors: Iterable[Any]) -> bool:
        """Takes note of the storages of tensors; whether one of them is new."""
        is_new = False
        for tensor in tensors:
            if not isinstance(tensor, FakeTensor):
                continue
            storage = tensor.untyped_storage()
            place = storage._cdata
            if place in self._live:
                continue
            is_new = True
            self._sizes.append(storage.nbytes())
            self._is_activation.append(self._when() not in (BACKWARD, UPDATE))
            number = len(self._sizes)
            self._moves.append((number, self._when()))
            self._live[place] = (number, weakref.ref(storage, partial(self._let_go, place)))
        return is_new

    def _let_go(self, place: int, _: object) -> None:
        number, _ = self._live.pop(place)
        self._moves.append((-number, self._when()))

    def _note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        leaves = tree_leaves((args, kwargs))
        key = (func, *(tuple(x.shape) if isinstance(x, torch.Tensor) else repr(x) for x in leaves))
        self._work.counts[key] += 1
        if key in self._work.operations:
            return
        packet = func._overloadpacket
        count = FURTHER.get(packet) or flop_registry.get(packet) or flop_registry.get(IN_PLACE.get(packet))
        flops = count(*args, **kwargs, out_val=out) if count else 0
        tensors = [x for x in (*leaves, *tree_leaves(out)) if isinstance(x, FakeTensor)]
        num_bytes = sum(x.numel() * x.dtype.itemsize for x in {id(x): x for x in tensors}.values())
        specs, named = tree_map_only(
            FakeTensor, lambda x: Spec(tuple(x.shape), tuple(x.stride()), x.dtype), (tuple(args), dict(kwargs))
        )
        self._work.operations[key] = Operation(func, specs, named, int(flops), num_bytes)

    def numbers_of(self, tensors: Iterable[Any]) -> set[int]:
        """The storages of tensors that are alive, by number."""
        places = [x.untyped_storage()._cdata for x in tensors if isinstance(x, FakeTensor)]
        return {self._live[place][0] for place in places if place in self._live}

    def find_peaks(self, known: Mapping[Kind, set[int]], lasting: set[int], ignored: set[int]) -> dict[str, Holding]:
        """Bytes by kind at the highest point of each moment, when the storages `lasting` are there all the time.

        The two halves of the backward pass are moments of their own: in the first activations weigh most, in the
        second gradients.

        Args:
            known: storages whose kind is known; others are activations if made in a forward pass, else temporaries.
            ignored: storages that are counted elsewhere.
        """
        kind_of = {number: kind for kind, numbers in known.items() for number in numbers}
        held: Holding = dict.fromkeys(KINDS, 0)
        for number in lasting:
            held[kind_of[number]] += self._sizes[number - 1]
        peaks: dict[str, Holding] = {}
        num_backward = sum(when == BACKWARD for _, when in self._moves)
        done = 0
        for move, when in self._moves:
            number = abs(move)
            done += when == BACKWARD
            moment = f"{when}, second half" if when == BACKWARD and done > num_backward / 2 else when
            if number not in lasting and number not in ignored:
                size = self._sizes[number - 1] if move > 0 else -self._sizes[number - 1]
                otherwise: Kind = "activations" if self._is_activation[number - 1] else "temporaries"
                held[kind_of.get(number, otherwise)] += size
            if moment not in peaks or sum(held.values()) > sum(peaks[moment].values()):
                peaks[moment] = dict(held)
        return peaks
