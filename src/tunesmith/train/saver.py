"""When a checkpoint is made: at a new best evaluation, every `save_steps`, and at least now and then."""

from __future__ import annotations

import time
from pathlib import Path

from tunesmith.runtime import MetricsLog
from tunesmith.train.checkpoint import State, save_checkpoint

# Saving takes at most a twentieth of the time, however slow the disk.
LEAST_PAUSE = 20


class Saver:
    """Makes the checkpoints of one training. `mend` says how to go on when the disk refuses one."""

    def __init__(self, folder: Path, log: MetricsLog, save_steps: int | None, save_minutes: float, mend: str) -> None:
        self._folder, self._log, self._mend = folder, log, mend
        self._save_steps, self._pause = save_steps, 60 * save_minutes
        self._saved: tuple[int, int] | None = None
        self._last, self._cost = time.monotonic(), 0.0

    def is_due(self, state: State) -> bool:
        step, progress = state.step, state.progress
        if self._has_nothing_new(state):
            return False
        is_best = progress.evaluated == progress.outcome.best_step == step
        is_turn = self._save_steps is not None and step % self._save_steps == 0
        return is_best or is_turn or time.monotonic() - self._last > max(self._pause, LEAST_PAUSE * self._cost)

    def save(self, state: State) -> None:
        """Nothing to do when this very moment is saved already, or nothing was trained yet.

        Raises:
            InputError: the disk is full or refuses.
        """
        if self._has_nothing_new(state):
            return
        started = time.monotonic()
        self._log.sync()  # no checkpoint knows of lines that a power cut could take
        state.progress.log_offset, state.progress.log_seconds = self._log.offset, self._log.seconds
        save_checkpoint(self._folder, state, self._mend)
        self.note_saved(state)
        self._cost = self._last - started

    def note_saved(self, state: State) -> None:
        self._saved, self._last = self._moment(state), time.monotonic()

    def _has_nothing_new(self, state: State) -> bool:
        return state.step == 0 or self._saved == self._moment(state)

    @staticmethod
    def _moment(state: State) -> tuple[int, int]:
        return state.step, state.progress.evaluated
