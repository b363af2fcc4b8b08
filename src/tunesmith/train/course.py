"""The course of a training: step after step, evaluations and checkpoints in between, until it is over or somebody stops
it.

What a step is, is the caller's: a batch of rows (`loop.py`), or answers that were made and judged (`rl/loop.py`). It is
taken whole or not at all, so that a checkpoint made on the way out is one that the training can go on from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.models.load import Network
from tunesmith.runtime import MetricsLog
from tunesmith.signals import Stopped, check, shielded
from tunesmith.terminal import Bar
from tunesmith.train.checkpoint import Start, State, find_checkpoint, load_start, load_weights
from tunesmith.train.progress import Outcome
from tunesmith.train.saver import Saver
from tunesmith.train.step import Plan


@dataclass(frozen=True, slots=True)
class Limit:
    """How far a training goes before it waits: to a step, or to a moment of `time.monotonic`, whichever comes first."""

    step: int
    moment: float = math.inf


class Paused(Exception):  # noqa: N818 (nothing went wrong)
    """A training waits at its limit. A checkpoint is made, from which it goes on as if it had never waited: the
    evaluation at the limit is none of its own, so neither best weights nor early stopping know of it.

    `loss` is the lowest validation loss so far, that at the limit counted in; None where time was up before the step.
    """

    def __init__(self, outcome: Outcome, num_steps: int, loss: float | None) -> None:
        super().__init__(f"waits after step {outcome.steps} of {num_steps}")
        self.outcome, self.num_steps, self.loss = outcome, num_steps, loss


@dataclass(frozen=True, slots=True)
class Watch:
    """What looks on: `evaluate` gives validation metrics, first of all "validation_loss", which decides
    what is best and when to stop; checkpoints are made in `checkpoints`.

    `name_row` says where a row of the training part was read; `mend` how to go on after a stop; `limit` where to wait.
    """

    evaluate: Callable[[], Mapping[str, float]]
    log: MetricsLog
    checkpoints: Path
    label: str = "training"
    quiet: bool = False
    name_row: Callable[[int], str] = str
    mend: str = ""
    limit: Limit | None = None


class Course:
    """One training under way; everything that must outlive an interruption is in `state`.

    `every` is the number of steps between evaluations where the plan does not say; `with_dropout` whether steps are
    taken in training mode.
    """

    def __init__(
        self,
        network: Network,
        plan: Plan,
        watch: Watch,
        state: State,
        length: tuple[int, int],
        with_dropout: bool = True,
    ) -> None:
        """`length`: steps of the whole training, and between two evaluations where the plan does not say."""
        self._network, self._plan, self._watch = network, plan, watch
        self._state, self.num_steps, self._with_dropout = state, length[0], with_dropout
        self._every = plan.eval_steps or length[1]
        self.saver = Saver(watch.checkpoints, watch.log, plan.save_steps, plan.save_minutes, watch.mend)
        self.is_stopped = False  # a step may find that no further one should be taken

    def run(
        self, advance: Callable[[], str], start: Start | None, rehearse: Callable[[], None] | None = None
    ) -> Outcome:
        """Takes steps by `advance`, which says what the bar shows, and leaves the weights of the best evaluation.

        `start` says where to begin; else before the first step, after a rehearsal. When asked to stop, a checkpoint is
        made first.

        Raises:
            Paused: at the limit.
        """
        state, watch = self._state, self._watch
        if start is not None:
            load_start(start, state)
            self.saver.note_saved(state)
        watch.log.cut_back(state.progress.log_offset, state.progress.log_seconds)
        try:
            self._network.model.train(self._with_dropout)
            if state.step == 0 and rehearse is not None:
                rehearse()
            self._take_steps(advance)
        except KeyboardInterrupt as stopped:
            if not (isinstance(stopped, Stopped) and stopped.at_once):
                with shielded():
                    self.saver.save(state)
            raise
        outcome = state.progress.outcome
        best = find_checkpoint(watch.checkpoints, outcome.best_step)
        if best is not None and outcome.best_step != state.step:
            load_weights(best, state.parameters)
        self._network.model.eval()
        return outcome

    def _take_steps(self, advance: Callable[[], str]) -> None:
        with Bar(self._watch.label, self.num_steps, self._watch.quiet, done=self._state.step) as bar:
            while True:
                check()
                if self._is_time_to_evaluate():
                    self._evaluate()
                is_over = self._is_over()
                if is_over or self.saver.is_due(self._state):
                    with shielded():
                        self.saver.save(self._state)
                if is_over:
                    return
                self._wait_at_limit()
                bar.advance(advance())

    def _wait_at_limit(self) -> None:
        limit, progress = self._watch.limit, self._state.progress
        if limit is None or (self._state.step < limit.step and time.monotonic() < limit.moment):
            return
        with shielded():
            self.saver.save(self._state)
        is_there = self._state.step >= limit.step
        raise Paused(progress.outcome, self.num_steps, self._lowest_loss() if is_there else None)

    def _lowest_loss(self) -> float:
        progress = self._state.progress
        if progress.evaluated == self._state.step:
            return progress.best_loss
        self._network.model.eval()
        return min(progress.best_loss, float(self._watch.evaluate()["validation_loss"]))

    def _is_time_to_evaluate(self) -> bool:
        step = self._state.step
        is_turn = step % self._every == 0 or step == self.num_steps or self.is_stopped
        return self._state.progress.evaluated != step and is_turn

    def _is_over(self) -> bool:
        progress, patience = self._state.progress, self._plan.patience
        is_last = self._state.step == self.num_steps
        has_waited = patience is not None and progress.waited >= patience
        progress.outcome.stopped_early = (has_waited or self.is_stopped) and not is_last
        return is_last or has_waited or self.is_stopped

    def _evaluate(self) -> None:
        self._network.model.eval()
        scores = dict(self._watch.evaluate())
        self._network.model.train(self._with_dropout)
        progress = self._state.progress
        where = {"step": self._state.step, "epoch": round(progress.outcome.epochs, 4)}
        with shielded():
            self._watch.log.write(**where, **scores)
            progress.outcome.curve.append({**where, "train_loss": progress.train_loss, **scores})
            progress.note(self._state.step, scores["validation_loss"])
