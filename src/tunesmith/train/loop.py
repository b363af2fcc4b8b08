"""The training loop: batches in, a tuned model out. One way for every method and task that learns from rows.

Each optimizer step takes a window of `gradient_accumulation_steps` packed batches. The losses of the
window are summed and divided once by all places judged in it (trained tokens, or rows), so splitting
a batch over several passes changes nothing.

What the next step depends on is in `State`. A step is taken whole or not at all: until the optimizer
moves, an interruption leaves weights, optimizer and generators as they were before it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TypeVar

import torch
from torch import nn

from tunesmith.data.pack import epoch_batches, find_longest, pack
from tunesmith.data.stream import Renewed
from tunesmith.models.embedding import clear_gradients
from tunesmith.models.load import Network
from tunesmith.records import PackedBatch, TokenizedExample
from tunesmith.runtime import Trimmer, current_memory
from tunesmith.signals import shielded
from tunesmith.terminal import describe_bytes, say
from tunesmith.train import generators
from tunesmith.train.checkpoint import Named, Start, State
from tunesmith.train.course import Course, Watch
from tunesmith.train.optim import hold_near_start, learning_rate_factor, make_optimizer
from tunesmith.train.progress import Outcome
from tunesmith.train.saver import Saver
from tunesmith.train.step import NonFiniteError, Plan, Step, accumulate, take_step
from tunesmith.train.trouble import find_nonfinite_rows, is_out_of_memory, out_of_memory, report_nonfinite

Made = TypeVar("Made")

MOST_SKIPPED = 10
# From so many steps on, a rehearsal of the longest batch costs at most a twentieth of the training.
FEWEST_TO_REHEARSE = 20


def trainable(network: Network, beside: Sequence[nn.Module] = ()) -> list[tuple[str, nn.Parameter]]:
    """Name and tensor of everything that requires a gradient; also in modules that are trained `beside` the network."""
    named = (pair for module in (network.root, *beside) for pair in module.named_parameters())
    return [(name, parameter) for name, parameter in named if parameter.requires_grad]


def fit(
    network: Network, rows: Sequence[TokenizedExample], plan: Plan, watch: Watch, start: Start | None = None
) -> Outcome:
    """Trains what requires a gradient and leaves the weights of the best evaluation in the model.

    `start` says where to begin; else before the first step. When asked to stop, a checkpoint is made first.

    Raises:
        NonFiniteError: with the step and the rows of the window; the weights are as before that step.
        InputError: not enough memory or disk; what to change.
        KeyboardInterrupt: asked to stop.
    """
    parameters = trainable(network)
    state = State(parameters, optimizer_for(network, parameters, plan), plan.device)
    num_steps = count_steps(len(rows), plan)
    if plan.attend is not None:
        plan.attend(state.optimizer, num_steps)
    course = Course(network, plan, watch, state, (num_steps, steps_per_epoch(len(rows), plan)))
    training = _Training(network, rows, plan, watch, state, course.saver)
    return course.run(training.advance, start, training.rehearse if num_steps >= FEWEST_TO_REHEARSE else None)


def optimizer_for(network: Network, parameters: Named, plan: Plan) -> torch.optim.Optimizer:
    """Made before a checkpoint is read: what L2-SP holds weights near to is how they were pretrained."""
    rate, decay, rank = plan.learning_rate, plan.weight_decay, plan.galore_rank
    optimizer = make_optimizer(parameters, rate, decay, plan.optim, plan.rates, rank)
    kept = plan.kept
    if plan.l2_sp or kept.ewc:
        matters = {parameter: kept.fisher[name] for name, parameter in parameters if name in kept.fisher}
        held = (p for name, p in parameters if not network.is_new(name))
        hold_near_start(optimizer, held, plan.l2_sp, matters, kept.ewc)
    return optimizer


def set_learning_rate(
    optimizer: torch.optim.Optimizer, plan: Plan, step: int, num_steps: int, epoch: float = 0.0
) -> float:
    """For the step after `step` others, at `epoch`; returns the plain rate. What does not learn yet does not decay."""
    num_warmup = math.ceil(num_steps * plan.warmup_ratio)
    plain = plan.learning_rate * learning_rate_factor(step, num_steps, num_warmup, plan.schedule)
    for group in optimizer.param_groups:
        factor, begins = group["rate"]
        group["lr"] = plain * factor if epoch >= begins else 0.0
    return plain


def time_step(network: Network, rows: Sequence[TokenizedExample], plan: Plan, num: int = 8) -> float:
    """Seconds that a step takes, the median of some; everything is afterwards as it was."""
    parameters = trainable(network)
    before, generated = [parameter.detach().clone() for _, parameter in parameters], generators.capture(plan.device)
    state = State(parameters, optimizer_for(network, parameters, plan), plan.device)
    windows, taken = _Windows(network, rows, plan), []
    network.model.train()
    set_learning_rate(state.optimizer, plan, 0, num)
    for number in range(num):
        started = time.perf_counter()
        state.progress.window = number % steps_per_epoch(len(rows), plan)
        take_step(network, windows.at(state), parameters, state.optimizer, plan, number)
        taken.append(time.perf_counter() - started)
    with torch.no_grad():
        for (_, parameter), value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    generators.restore(generated, plan.device)
    return statistics.median(taken[1:])


def steps_per_epoch(num_rows: int, plan: Plan) -> int:
    return math.ceil(num_rows / (plan.batch_size * plan.accumulation))


def count_steps(num_rows: int, plan: Plan) -> int:
    """Optimizer steps of the whole run; the last window of an epoch may be smaller."""
    steps = math.ceil(steps_per_epoch(num_rows, plan) * plan.num_epochs)
    return min(steps, plan.max_steps) if plan.max_steps else steps


class _Training:
    """One training under way; everything that must outlive an interruption is in `state`."""

    def __init__(
        self,
        network: Network,
        rows: Sequence[TokenizedExample],
        plan: Plan,
        watch: Watch,
        state: State,
        saver: Saver,
    ) -> None:
        self._network, self._rows, self._plan, self._watch = network, rows, plan, watch
        self._state, self._saver = state, saver
        self._num_steps = count_steps(len(rows), plan)
        self._rate = 0.0
        self._windows = _Windows(network, rows, plan)
        self._trimmer = Trimmer()

    def rehearse(self) -> None:
        """The longest batch; what follows is as if it had not been."""
        self._in_memory(self._rehearse)

    def advance(self) -> str:
        """Takes the next step; returns what the progress bar shows."""
        started = time.perf_counter()
        optimizer, progress = self._state.optimizer, self._state.progress
        epoch = progress.outcome.epochs
        self._rate = set_learning_rate(optimizer, self._plan, self._state.step, self._num_steps, epoch)
        is_early = self._plan.optimizer_in_backward  # the step begins with the gradient then
        with shielded() if is_early else nullcontext():
            window, taken = self._gradient()
            shown = self._finish(window, taken, started)
        self._trimmer.trim_if_due()
        return shown

    def _finish(self, window: list[PackedBatch], taken: Step | None, started: float) -> str:
        """The update, and a step counted; returns what the progress bar shows."""
        optimizer, progress = self._state.optimizer, self._state.progress
        with shielded():
            if taken is not None:
                optimizer.step()
                progress.train_loss, progress.num_skipped = taken.loss, 0
            clear_gradients(self._network.model, optimizer)
            progress.outcome.count(window, time.perf_counter() - started, len(self._rows))
            progress.advance(steps_per_epoch(len(self._rows), self._plan))
            return self._report(taken)

    def _gradient(self) -> tuple[list[PackedBatch], Step | None]:
        """The next window and its gradient; without one when the step is to be skipped."""
        try:
            return self._in_memory(self._gradient_at_once)
        except NonFiniteError as error:
            return self._meet_nonfinite(error), None

    def _in_memory(self, attempt: Callable[[], Made]) -> Made:
        """What the attempt makes. Out of memory: once more with each batch in two parts, which has the same gradient;
        from then on so."""
        plan, progress, step = self._plan, self._state.progress, self._state.step + 1
        while True:
            try:
                return attempt()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            if plan.device.type == "cuda":
                torch.cuda.empty_cache()
            # In parts would be twice, for weights that have moved in the backward pass.
            if progress.num_parts > 1 or plan.batch_size == 1 or plan.optimizer_in_backward:
                raise out_of_memory(step, plan, self._rows)
            progress.num_parts = 2
            say(f"step {step}: out of memory; from here on each batch runs in two parts")

    def _gradient_at_once(self) -> tuple[list[PackedBatch], Step]:
        state, window = self._state, self._windows.at(self._state)
        with self._undone():
            taken = accumulate(self._network, window, state.parameters, self._plan, state.step, state.optimizer)
            return window, taken

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Whatever breaks off inside leaves generators and gradients as if it had never begun."""
        before = generators.capture(self._plan.device)
        try:
            yield
        except BaseException:
            self._undo(before)
            raise

    def _undo(self, before: generators.States) -> None:
        generators.restore(before, self._plan.device)
        clear_gradients(self._network.model, self._state.optimizer)

    def _rehearse(self) -> None:
        """The batch with the most tokens, before all others and without an update: what does not fit into memory shows
        now and not hours later. Everything is afterwards as it was."""
        before = generators.capture(self._plan.device)
        try:
            with suppress(NonFiniteError):  # met, and told, at its own step
                accumulate(self._network, self._windows.longest(self._state), self._state.parameters, self._plan, 0)
        finally:
            self._undo(before)

    def _meet_nonfinite(self, error: NonFiniteError) -> list[PackedBatch]:
        """Stops with everything on disk that one needs to look at it, or lets the window pass by."""
        progress, watch = self._state.progress, self._watch
        if self._plan.on_nonfinite == "skip" and progress.num_skipped < MOST_SKIPPED:
            progress.num_skipped += 1
            progress.outcome.skipped_steps += 1
            say(f"step {error.step}: loss {error.taken.loss}, gradient norm {error.taken.grad_norm}; step skipped")
            return self._windows.at(self._state)
        guilty = find_nonfinite_rows(self._network, [row for row in self._rows if row.row in error.rows], self._plan)
        with shielded():
            self._saver.save(self._state)
            raise report_nonfinite(error, guilty, watch.name_row, watch.checkpoints.parent, watch.mend)

    def _report(self, step: Step | None) -> str:
        """Writes a step down; a skipped one has no loss."""
        outcome = self._state.progress.outcome
        memory = current_memory(self._plan.device)
        self._watch.log.write(
            step=outcome.steps,
            epoch=round(outcome.epochs, 4),
            loss=math.nan if step is None else step.loss,
            learning_rate=self._rate,
            grad_norm=math.nan if step is None else step.grad_norm,
            tokens=outcome.num_tokens,
            tokens_per_second=outcome.tokens_per_second,
            memory=memory,
            **({"kl_to_base": step.kl} if step is not None and step.kl is not None else {}),
        )
        loss = "skipped" if step is None else f"loss {step.loss:.3f}"
        return f"{loss}  {outcome.tokens_per_second:,.0f} tokens/s  {describe_bytes(memory)}"


class _Windows:
    """The packed batches of each optimizer step, found by epoch and window."""

    def __init__(self, network: Network, rows: Sequence[TokenizedExample], plan: Plan) -> None:
        self._rows, self._plan, self._network = rows, plan, network
        self._epoch, self._batches = -1, [[0]]

    def at(self, state: State) -> list[PackedBatch]:
        progress, plan = state.progress, self._plan
        if self._epoch != progress.epoch:  # shuffled once an epoch, not once a step
            self._epoch = progress.epoch
            self._renew(progress.epoch)
            self._batches = epoch_batches(len(self._rows), plan.batch_size, plan.seed, progress.epoch)
        start = progress.window * plan.accumulation
        parts = [
            part
            for batch in self._batches[start : start + plan.accumulation]
            for part in _split(batch, progress.num_parts)
        ]
        return self._pack(parts)

    def longest(self, state: State) -> list[PackedBatch]:
        """The batch with the most tokens of this epoch, in as many parts as it runs in."""
        self._renew(state.progress.epoch)
        batches = epoch_batches(len(self._rows), self._plan.batch_size, self._plan.seed, state.progress.epoch)
        return self._pack(_split(find_longest(self._rows, batches), state.progress.num_parts))

    def _renew(self, epoch: int) -> None:
        if isinstance(self._rows, Renewed):
            self._rows = self._rows.in_epoch(epoch)

    def _pack(self, parts: Sequence[list[int]]) -> list[PackedBatch]:
        network = self._network
        return [pack([self._rows[i] for i in part], network.num_virtual, share=network.is_decoder) for part in parts]


def _split(batch: list[int], num_parts: int) -> list[list[int]]:
    size = -(-len(batch) // num_parts)
    return [batch[start : start + size] for start in range(0, len(batch), size)]
