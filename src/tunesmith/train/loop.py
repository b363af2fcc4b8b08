"""The training loop: batches in, a tuned model out. One way for every method and task.

Each optimizer step takes a window of `gradient_accumulation_steps` packed batches. The losses of the
window are summed and divided once by all places judged in it (trained tokens, or rows), so splitting
a batch over several passes changes nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from tunesmith.data.pack import epoch_batches, pack
from tunesmith.models.embedding import clear_gradients
from tunesmith.models.load import Network
from tunesmith.records import PackedBatch, TokenizedExample
from tunesmith.runtime import MetricsLog, Trimmer, autocast, current_memory
from tunesmith.terminal import Bar, describe_bytes
from tunesmith.train.checkpoint import Named, load_checkpoint, save_checkpoint
from tunesmith.train.objective import judged_losses
from tunesmith.train.optim import Schedule, learning_rate_factor, make_adamw


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train. Steps are optimizer steps; `eval_steps` None means once an epoch."""

    learning_rate: float
    num_epochs: float = 3.0
    batch_size: int = 16
    accumulation: int = 1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_ratio: float = 0.06
    schedule: Schedule = "linear"
    eval_steps: int | None = None
    patience: int | None = 2
    max_steps: int | None = None
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32


@dataclass
class Outcome:
    """What a finished training says of itself. `curve` has one entry per evaluation."""

    steps: int = 0
    epochs: float = 0.0
    train_seconds: float = 0.0
    num_tokens: int = 0
    best_step: int = 0
    stopped_early: bool = False
    curve: list[dict[str, float]] = field(default_factory=list)

    def count(self, window: Sequence[PackedBatch], seconds: float, num_rows: int) -> None:
        """Takes note of a finished step."""
        self.steps += 1
        self.train_seconds += seconds
        self.num_tokens += sum(batch.num_tokens for batch in window)
        self.epochs += sum(len(batch.rows) for batch in window) / num_rows

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.train_seconds if self.train_seconds else 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """Mean loss over all judged places of the window, and the gradient norm before clipping."""

    loss: float
    grad_norm: float


class NonFiniteError(RuntimeError):
    """Loss or gradient became NaN or infinite; raised before the weights were touched."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What looks on: `evaluate` gives validation metrics, first of all "validation_loss", which decides
    what is best and when to stop; the best weights are kept in `checkpoints`."""

    evaluate: Callable[[], Mapping[str, float]]
    log: MetricsLog
    checkpoints: Path
    label: str = "training"
    quiet: bool = False


def trainable(network: Network) -> list[tuple[str, nn.Parameter]]:
    """Name and tensor of everything that requires a gradient."""
    root = network.wrapper if network.wrapper is not None else network.model
    return [(name, parameter) for name, parameter in root.named_parameters() if parameter.requires_grad]


def fit(network: Network, rows: Sequence[TokenizedExample], plan: Plan, watch: Watch) -> Outcome:
    """Trains what requires a gradient and leaves the weights of the best evaluation in the model.

    Raises:
        NonFiniteError: with the step and the rows of the window; the weights are as before that step.
    """
    parameters = trainable(network)
    optimizer = make_adamw(parameters, plan.learning_rate, plan.weight_decay)
    num_steps = count_steps(len(rows), plan)
    outcome, best = Outcome(), _Best(watch.checkpoints, plan.patience)
    windows, trimmer = _windows(rows, plan, network.num_virtual), Trimmer()
    _evaluate(outcome, math.nan, watch, network)
    with Bar(watch.label, num_steps, watch.quiet) as bar:
        for step in range(num_steps):
            started = time.perf_counter()
            set_learning_rate(optimizer, plan, step, num_steps)
            window = next(windows)
            taken = take_step(network, window, parameters, optimizer, plan, step)
            trimmer.trim_if_due()
            outcome.count(window, time.perf_counter() - started, len(rows))
            learning_rate = optimizer.param_groups[0]["lr"]
            bar.advance(_report(outcome, taken, learning_rate, current_memory(plan.device), watch.log))
            if _is_time_to_evaluate(step + 1, num_steps, len(rows), plan):
                scores = _evaluate(outcome, taken.loss, watch, network)
                if best.is_over(step + 1, scores["validation_loss"], parameters):
                    outcome.stopped_early = step + 1 < num_steps
                    break
    best.restore(parameters)
    outcome.best_step = best.step
    network.model.eval()
    return outcome


def set_learning_rate(optimizer: torch.optim.Optimizer, plan: Plan, step: int, num_steps: int) -> None:
    num_warmup = math.ceil(num_steps * plan.warmup_ratio)
    factor = learning_rate_factor(step, num_steps, num_warmup, plan.schedule)
    for group in optimizer.param_groups:
        group["lr"] = plan.learning_rate * factor


def _report(outcome: Outcome, step: Step, learning_rate: float, memory: int, log: MetricsLog) -> str:
    """Writes a step down; returns what the progress bar shows."""
    log.write(
        step=outcome.steps,
        epoch=round(outcome.epochs, 4),
        loss=step.loss,
        learning_rate=learning_rate,
        grad_norm=step.grad_norm,
        tokens=outcome.num_tokens,
        tokens_per_second=outcome.tokens_per_second,
        memory=memory,
    )
    return f"loss {step.loss:.3f}  {outcome.tokens_per_second:,.0f} tokens/s  {describe_bytes(memory)}"


def _is_time_to_evaluate(step: int, num_steps: int, num_rows: int, plan: Plan) -> bool:
    return step == num_steps or step % (plan.eval_steps or steps_per_epoch(num_rows, plan)) == 0


def _evaluate(outcome: Outcome, loss: float, watch: Watch, network: Network) -> dict[str, float]:
    network.model.eval()
    scores = dict(watch.evaluate())
    network.model.train()
    where = {"step": outcome.steps, "epoch": round(outcome.epochs, 4)}
    watch.log.write(**where, **scores)
    outcome.curve.append({**where, "train_loss": loss, **scores})
    return scores


def steps_per_epoch(num_rows: int, plan: Plan) -> int:
    return math.ceil(num_rows / (plan.batch_size * plan.accumulation))


def count_steps(num_rows: int, plan: Plan) -> int:
    """Optimizer steps of the whole run; the last window of an epoch may be smaller."""
    steps = math.ceil(steps_per_epoch(num_rows, plan) * plan.num_epochs)
    return min(steps, plan.max_steps) if plan.max_steps else steps


def take_step(
    network: Network,
    window: Sequence[PackedBatch],
    parameters: Named,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    step: int,
) -> Step:
    """One optimizer step over a window of batches."""
    num_judged = sum(len(batch.targets) for batch in window)
    total = torch.zeros((), device=plan.device)
    for batch in window:
        total += backward(network, batch.to(plan.device), num_judged, plan.dtype)
    norm = nn.utils.clip_grad_norm_([parameter for _, parameter in parameters], plan.max_grad_norm)
    loss, grad_norm = total.item(), norm.item()
    if not math.isfinite(loss) or not math.isfinite(grad_norm):
        rows = sorted(row for batch in window for row in batch.rows)
        raise NonFiniteError(
            f"step {step + 1}: loss {loss}, gradient norm {grad_norm}; the weights were left as they were. "
            f"Rows of this step (0-based in the training part): {rows}. Lower --learning-rate or look at these rows"
        )
    optimizer.step()
    clear_gradients(network.model, optimizer)
    return Step(loss, grad_norm)


def backward(network: Network, batch: PackedBatch, num_judged: int, dtype: torch.dtype) -> torch.Tensor:
    """Adds the gradient of sum(loss) / num_judged; returns that share of the window's loss."""
    with autocast(batch.input_ids.device, dtype):
        losses_N, _ = judged_losses(network, batch)
    loss = losses_N.sum() / num_judged
    loss.backward()
    return loss.detach()


def _windows(rows: Sequence[TokenizedExample], plan: Plan, num_virtual: int) -> Iterator[list[PackedBatch]]:
    """Endless windows of packed batches, epoch after epoch."""
    epoch = 0
    while True:
        batches = epoch_batches(len(rows), plan.batch_size, plan.seed, epoch)
        for start in range(0, len(batches), plan.accumulation):
            chosen = batches[start : start + plan.accumulation]
            yield [pack([rows[index] for index in batch], num_virtual) for batch in chosen]
        epoch += 1


class _Best:
    """Keeps the trained weights of the best evaluation, as a checkpoint."""

    def __init__(self, folder: Path, patience: int | None) -> None:
        self._folder, self._patience, self._waited = folder, patience, 0
        self._loss, self._checkpoint, self._is_newest = math.inf, folder, False
        self.step = 0

    def is_over(self, step: int, loss: float, parameters: Named) -> bool:
        """Takes note of an evaluation; True when patience has run out."""
        self._is_newest = loss < self._loss
        if self._is_newest:
            self._loss, self._waited, self.step = loss, 0, step
            self._checkpoint = save_checkpoint(self._folder, step, parameters, loss)
            return False
        self._waited += 1
        return self._patience is not None and self._waited >= self._patience

    def restore(self, parameters: Named) -> None:
        if self.step and not self._is_newest:
            load_checkpoint(self._checkpoint, parameters)
