"""What a training will need, before it runs: memory, time, arithmetic, disk.

The prediction comes from the training's own code. Its network has no weights (`models/outline.py`); one optimizer
step over the longest window of the training, one validation pass and the filling of the frozen prefix run over it
and are traced (`trace.py`), operation by operation. `clock.py` says how long operations take.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch

from tunesmith.data.pack import epoch_batches, find_longest, pack, token_batches
from tunesmith.models.embedding import clear_gradients
from tunesmith.models.load import Network, count_parameters
from tunesmith.models.outline import Pretence
from tunesmith.models.prefix import LARGEST_STORE, Prefix, count_bytes, count_frozen, count_tokens
from tunesmith.records import TokenizedExample
from tunesmith.runtime import autocast
from tunesmith.terminal import describe_bytes, describe_seconds
from tunesmith.train import generators
from tunesmith.train.checkpoint import estimate_bytes
from tunesmith.train.loop import FEWEST_TO_REHEARSE, count_steps, optimizer_for, steps_per_epoch, trainable
from tunesmith.train.objective import judged_losses
from tunesmith.train.step import Plan, accumulate
from tunesmith.train.trace import UPDATE, Holding, Kind, Trace, Work

# Of a checkpoint: written, flushed and read again for its checksum. 1.6 GB took 6.0 to 8.6 s (docs/decisions.md).
CHECKPOINT_RATE = 2.2e8  # bytes per second
MOST_EPOCHS = 10  # in which the longest batch is looked for


class Pace(Protocol):
    """A clock, or a chip by its data sheet."""

    def seconds(self, work: Work) -> float: ...


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the highest moment of a training, by what they are for.

    activations  what the forward pass keeps for the backward pass
    temporaries  what comes and goes within an operation, a layer or an update
    prefix       the store of what frozen blocks say, on an accelerator; a CPU has it on disk
    base         interpreter, libraries and rows; 0 on an accelerator, which does not hold them
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    temporaries: int
    prefix: int = 0
    base: int = 0

    @property
    def peak(self) -> int:
        return sum(asdict(self).values())

    def __str__(self) -> str:
        return ", ".join(f"{kind} {describe_bytes(size)}" for kind, size in asdict(self).items() if size)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one training will need.

    flops       of the whole training: steps, validation passes, frozen prefix; 2 for a multiplication and an addition
    seconds     from the first pass to the last update, checkpoints included; at most, since it may stop early.
                `parts` says what for
    checkpoint  bytes of one; the newest and the best are kept while the next is written
    store       bytes of what frozen blocks say, as long as it is trained; in memory on an accelerator, else on disk
    disk        bytes of all: final files, checkpoints and store, at most
    available   bytes of memory there are; `advice` says what to change where they do not suffice
    basis       where the numbers come from, in a sentence
    """

    trained: int
    parameters: int
    memory: Memory
    num_steps: int
    flops_per_step: int
    flops: int
    num_tokens: int
    seconds: float
    checkpoint: int
    parts: Mapping[str, float] = field(default_factory=dict)
    method: str = ""
    device: str = ""
    store: int = 0
    disk: int = 0
    available: int = 0
    advice: str = ""
    basis: str = ""

    @property
    def peak(self) -> int:
        return self.memory.peak

    @property
    def fits(self) -> bool:
        return bool(self.num_steps) and self.peak <= self.available

    def __str__(self) -> str:
        return f"{describe_bytes(self.peak)}, {describe_seconds(self.seconds)}"

    def to_plain(self) -> dict[str, object]:
        """Every field, and what follows from them."""
        more = {"peak": self.peak, "fits": self.fits, "tokens_per_second": round(self.tokens_per_second, 1)}
        return {**asdict(self), **more}

    @classmethod
    def impossible(cls, method: str, why: str) -> Forecast:
        """Of a method that cannot be applied; it has no steps."""
        return cls(0, 0, Memory(0, 0, 0, 0, 0), 0, 0, 0, 0, 0.0, 0, method=method, advice=why)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Rows:
    """What a training reads."""

    train: Sequence[TokenizedExample]
    validation: Sequence[TokenizedExample]


@dataclass(frozen=True, slots=True)
class Needs:
    """What the passes of one training compute, and the highest point of each moment, in bytes by kind.

    Works are of one window, one update, one validation pass and one pass that fills the store of frozen blocks;
    `tokens` says how many tokens each of these had ("window", "validation", "fill"). `prefix` is the store's bytes for
    a token.
    """

    works: Mapping[str, Work]
    tokens: Mapping[str, int]
    peaks: Mapping[str, Holding]
    prefix: int
    trained: int
    parameters: int
    checkpoint: int

    def extended(self, shallower: Needs, times: int) -> Needs:
        """The needs with `times` more layers, each adding what these have beyond `shallower`."""

        def more(deep: int, shallow: int) -> int:
            return deep + times * (deep - shallow)

        return Needs(
            works={name: work.extended(shallower.works[name], times) for name, work in self.works.items()},
            tokens=self.tokens,
            peaks={
                moment: {kind: more(size, shallower.peaks[moment][kind]) for kind, size in peak.items()}
                for moment, peak in self.peaks.items()
                if moment in shallower.peaks
            },
            prefix=self.prefix,
            trained=more(self.trained, shallower.trained),
            parameters=more(self.parameters, shallower.parameters),
            checkpoint=more(self.checkpoint, shallower.checkpoint),
        )


def forecast(needs: Needs, rows: Rows, plan: Plan, pace: Pace) -> Forecast:
    """The forecast of a training from its needs, without what lies outside torch (`Memory.base`) and final files."""
    num_steps = count_steps(len(rows.train), plan)
    times = _count_passes(rows, plan, needs, num_steps)
    seconds = {name: pace.seconds(needs.works[name]) * count for name, count in times.items()}
    peak = max(needs.peaks.values(), key=lambda held: sum(held.values()))
    return Forecast(
        trained=needs.trained,
        parameters=needs.parameters,
        memory=Memory(**peak),
        store=needs.prefix * count_tokens([*rows.train, *rows.validation]) if needs.prefix else 0,
        num_steps=num_steps,
        flops_per_step=int(_count_tokens(rows, plan, 1) / needs.tokens["window"] * needs.works["window"].flops),
        flops=int(sum(needs.works[name].flops * count for name, count in times.items())),
        num_tokens=int(_count_tokens(rows, plan, num_steps)),
        seconds=sum(seconds.values()) + needs.checkpoint / CHECKPOINT_RATE,
        checkpoint=needs.checkpoint,
        parts=seconds,
    )


def find_needs(network: Network, pretence: Pretence, rows: Rows, plan: Plan) -> Needs:
    """Runs the passes of a training over an outlined network that `pretence` has placed, under its method.

    The random generators stay as they are.
    """
    before = generators.capture(torch.device("cpu"))
    try:
        with _known_prefix(network, rows, plan) as prefix:
            return _trace(network, pretence, rows, plan, prefix)
    finally:
        generators.restore(before, torch.device("cpu"))


@contextmanager
def _known_prefix(network: Network, rows: Rows, plan: Plan) -> Iterator[Prefix | None]:
    """As `cached_prefix`, but nothing is computed yet."""
    num_frozen = count_frozen(network)
    if not num_frozen or (
        plan.device.type != "cpu" and count_bytes(network, [*rows.train, *rows.validation]) > LARGEST_STORE
    ):
        yield None
        return
    prefix = Prefix(network, num_frozen)
    try:
        yield prefix
    finally:
        network.prefix = None
        prefix.detach()


def _trace(network: Network, pretence: Pretence, rows: Rows, plan: Plan, prefix: Prefix | None) -> Needs:
    named = trainable(network)
    longest = _longest_window(rows.train, plan)
    window = [pack(batch, network.num_virtual, network.is_decoder) for batch in longest]
    judged = [rows.validation[index] for index in token_batches(rows.validation)[0]]
    weights = [*network.model.parameters(), *network.model.buffers(), *(p for _, p in named)]
    weights += [made() for made in (network.prompt, network.past) if made is not None]
    works = {}
    trace = Trace(pretence)
    trace.keep([*weights, *(parameter.grad for _, parameter in named)])  # gradients of large embeddings stay, too
    with trace:
        if prefix is not None:
            trace.begin("fill")
            prefix.fill(judged, plan.dtype, quiet=True)
            works["fill"] = trace.begin("fill")
            prefix.fill([*judged, *longest[0]], plan.dtype, quiet=True)
            network.prefix = prefix
        optimizer = optimizer_for(network, named, plan)  # its moments are made once, so no step counts them
        trace.begin("validation")
        network.model.eval()
        with torch.inference_mode(), autocast(plan.device, plan.dtype):
            judged_losses(network, pack(judged, network.num_virtual, network.is_decoder))
        works["validation"] = trace.begin("forward")
        network.model.train()
        accumulate(network, window, named, plan, 0, optimizer)
        works["window"] = trace.begin(UPDATE)
        gradients = trace.numbers_of(parameter.grad for _, parameter in named)
        optimizer.step()
        states = trace.numbers_of(x for state in optimizer.state.values() for x in state.values())
        clear_gradients(network.model, optimizer)
        works["update"] = trace.begin("")
    lasting = trace.numbers_of(parameter.grad for _, parameter in named)  # of large embeddings
    numbers = trace.numbers_of(weights)
    stored = set() if prefix is None else trace.numbers_of(prefix.states)
    known: dict[Kind, set[int]] = {"gradients": gradients, "optimizer": states, "parameters": numbers}
    trained, parameters = count_parameters(network)
    return Needs(
        works=works,
        tokens={"window": sum(map(_count, longest)), "validation": _count(judged), "fill": _count(judged)},
        peaks=trace.find_peaks(known, lasting | states | numbers, stored),
        prefix=0 if prefix is None else prefix.bytes_per_token,
        trained=trained,
        parameters=parameters,
        checkpoint=estimate_bytes(named),
    )


def _count(rows: Sequence[TokenizedExample]) -> int:
    return sum(len(row.input_ids) for row in rows)


def _longest_window(rows: Sequence[TokenizedExample], plan: Plan) -> list[list[TokenizedExample]]:
    """The batch with the most tokens of all epochs; with accumulation twice, since gradients are held then."""
    epochs = range(min(math.ceil(plan.num_epochs), MOST_EPOCHS))
    batches = (batch for epoch in epochs for batch in epoch_batches(len(rows), plan.batch_size, plan.seed, epoch))
    longest = [rows[index] for index in find_longest(rows, batches)]
    return [longest] * min(plan.accumulation, 2)


def _count_tokens(rows: Rows, plan: Plan, num_steps: int) -> float:
    """Tokens of so many steps."""
    return _count(rows.train) * num_steps / steps_per_epoch(len(rows.train), plan)


def _count_passes(rows: Rows, plan: Plan, needs: Needs, num_steps: int) -> dict[str, float]:
    """How often each traced pass is repeated, by its share of the tokens."""
    evaluations = 1 + math.ceil(num_steps / (plan.eval_steps or steps_per_epoch(len(rows.train), plan)))
    times = {
        # The rehearsal is one window more.
        "window": _count_tokens(rows, plan, num_steps) / needs.tokens["window"] + (num_steps >= FEWEST_TO_REHEARSE),
        "update": float(num_steps),
        "validation": evaluations * _count(rows.validation) / needs.tokens["validation"],
    }
    if needs.prefix:
        times["fill"] = count_tokens([*rows.train, *rows.validation]) / needs.tokens["fill"]
    return times
