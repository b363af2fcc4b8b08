"""One optimizer step: forward and backward over a window of packed batches, then the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from tunesmith.errors import InputError
from tunesmith.models.embedding import clear_gradients
from tunesmith.models.load import Network
from tunesmith.records import PackedBatch
from tunesmith.runtime import autocast
from tunesmith.train.checkpoint import Named
from tunesmith.train.early import EarlyUpdates
from tunesmith.train.kept import NOTHING_KEPT, Kept, divergence
from tunesmith.train.losses import PLAIN, Penalty
from tunesmith.train.objective import judged_losses
from tunesmith.train.optim import Optim, Rate, Schedule
from tunesmith.train.preference import Preference


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train. Steps are optimizer steps; `eval_steps` None means once an epoch.

    `rates` are by the parameter's name; the plain one where there is none. `terms` say what the loss is like.
    `attend` puts a method's own work beside the optimizer, for so many steps.
    """

    learning_rate: float
    rates: Mapping[str, Rate] = field(default_factory=dict)
    num_epochs: float = 3.0
    batch_size: int = 16
    accumulation: int = 1
    optim: Optim = "adamw"
    galore_rank: int = 128
    weight_decay: float = 0.0
    l2_sp: float = 0.0
    kept: Kept = NOTHING_KEPT
    terms: Penalty | Preference = PLAIN
    max_grad_norm: float = 1.0
    optimizer_in_backward: bool = False
    warmup_ratio: float = 0.06
    schedule: Schedule = "linear"
    eval_steps: int | None = None
    patience: int | None = 2
    max_steps: int | None = None
    save_steps: int | None = None
    save_minutes: float = 10.0
    on_nonfinite: Literal["stop", "skip"] = "stop"
    attend: Callable[[torch.optim.Optimizer, int], None] | None = None
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, slots=True)
class Step:
    """Mean loss over all judged places of the window, the gradient norm before clipping, and KL(base || tuned) in nats
    a token where a plan holds on to it."""

    loss: float
    grad_norm: float
    kl: float | None = None


class NonFiniteError(InputError):
    """Loss or gradient became NaN or infinite; raised before the weights were touched.

    `rows` are the indices of the window's rows in the training part.
    """

    def __init__(self, step: int, taken: Step, rows: Sequence[int], more: str = "") -> None:
        self.step, self.taken, self.rows = step, taken, tuple(rows)
        told = more or f"Rows of this step (0-based in the training part): {list(rows)}"
        super().__init__(
            f"step {step}: loss {taken.loss}, gradient norm {taken.grad_norm}; the weights were left as they were. "
            f"{told}"
        )


class TornStepError(InputError):
    """Loss or gradient became NaN or infinite after some weights had taken the step in the backward pass: the training
    in memory is lost, its last checkpoint is not."""

    def __init__(self, step: int, taken: Step) -> None:
        super().__init__(
            f"step {step}: loss {taken.loss}, gradient norm {taken.grad_norm}, found in the backward pass when weights "
            "further up had moved already. Go on from the last checkpoint with updates after it: --resume "
            "--optimizer-in-backward false --allow-change optimizer_in_backward"
        )


def take_step(
    network: Network,
    window: Sequence[PackedBatch],
    parameters: Named,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    step: int,
) -> Step:
    """One optimizer step over a window of batches; `step` counts from 0.

    Raises:
        NonFiniteError, TornStepError: as `accumulate`.
    """
    taken = accumulate(network, window, parameters, plan, step, optimizer)
    optimizer.step()
    clear_gradients(network.model, optimizer)
    return taken


def accumulate(
    network: Network,
    window: Sequence[PackedBatch],
    parameters: Named,
    plan: Plan,
    step: int,
    optimizer: torch.optim.Optimizer | None = None,
) -> Step:
    """The gradient of a window, clipped; weights are not touched, unless the plan has the optimizer in the backward
    pass. Then `optimizer` has moved them, and what is left for its own step are rows of large embeddings; without one
    gradients are let go.

    Raises:
        NonFiniteError: loss or gradient is NaN or infinite; the weights are as before.
        TornStepError: the same, but some weights have moved.
    """
    num_judged = sum(len(batch.targets) for batch in window)
    total = torch.zeros((), device=plan.device)
    trained = [parameter for _, parameter in parameters]
    kl = _hold_on(network, plan, step) if plan.kept.kl else None
    early = EarlyUpdates(optimizer, plan.max_grad_norm)
    for number, batch in enumerate(window, start=1):
        is_last = number == len(window)
        with early.updating(trained) if plan.optimizer_in_backward and is_last else nullcontext():
            total += backward(network, batch.to(plan.device), num_judged, plan)
    norm = nn.utils.clip_grad_norm_(trained, plan.max_grad_norm)
    taken = Step(total.item(), math.hypot(norm.item(), *early.norms), kl)
    if not math.isfinite(taken.loss) or not math.isfinite(taken.grad_norm):
        if early.has_moved:
            raise TornStepError(step + 1, taken)
        raise NonFiniteError(step + 1, taken, sorted(row for batch in window for row in batch.rows))
    return taken


def backward(network: Network, batch: PackedBatch, num_judged: int, plan: Plan) -> torch.Tensor:
    """Adds the gradient of sum(loss) / num_judged; returns that share of the window's loss."""
    with autocast(batch.input_ids.device, plan.dtype):
        losses_N, _ = judged_losses(network, batch, plan.terms)
    loss = losses_N.sum() / num_judged
    loss.backward()
    return loss.detach()


def _hold_on(network: Network, plan: Plan, step: int) -> float:
    """Adds the gradient of the weighted KL(base || tuned) of this step's kept rows; returns the KL."""
    with autocast(plan.device, plan.dtype):
        kl_N = divergence(network, plan.kept, step)
    (plan.kept.kl * kl_N.mean()).backward()
    return float(kl_N.detach().mean())
