"""The trainings of a search for a learning rate: each a run of `tune` in a folder of its own that waits and goes on."""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from tunesmith.config import TuneConfig
from tunesmith.evaluation.search import Search, Visit
from tunesmith.methods.method import Method
from tunesmith.models.prefix import cached_prefix
from tunesmith.records import Split
from tunesmith.terminal import say
from tunesmith.train.checkpoint import Start
from tunesmith.train.course import Limit, Paused, Watch
from tunesmith.train.loop import count_steps, fit
from tunesmith.train.progress import Outcome
from tunesmith.tuning import Prepared, prepare, tune

# After so many steps, at most so large a share of all, one can tell how long the others take.
PROBE, PROBE_SHARE = 8, 1 / 8


class Trainings:
    """Under `folder` one run a learning rate. `config` makes the configuration of a training from its folder and its
    rate; states of frozen blocks are kept in `states`."""

    def __init__(
        self, folder: Path, config: Callable[[Path, float | None], TuneConfig], parts: Split, states: Path
    ) -> None:
        self._folder, self._config, self._parts, self._states = folder, config, parts, states
        self._rate = 0.0

    def visit(self, number: int, rate: float | None, limit: Limit | None) -> Visit:
        try:
            run = tune(
                self._config(self._folder / str(number), rate),
                self._parts,
                quiet=True,
                how=partial(self._prepare, limit),
            )
        except Paused as paused:
            made = paused.outcome
            found = Visit(rate or self._rate, made.steps, paused.num_steps, made.train_seconds, paused.loss)
        else:
            ended = run.outcome
            steps, lowest = ended["steps"], min(point["validation_loss"] for point in ended["curve"])
            found = Visit(run.manifest["learning_rate"], steps, steps, ended["train_seconds"], lowest, is_finished=True)
            del run
        gc.collect()  # before the next network is loaded
        if limit is not None:
            told = "the time is up" if found.loss is None else f"validation loss {found.loss:.4f}"
            say(f"learning rate {found.rate:g}: {found.steps} of {found.num_steps} steps, {told}")
        return found

    def _prepare(
        self, limit: Limit | None, config: TuneConfig, method: Method, parts: Split, planned: bool
    ) -> Prepared:
        prepared = prepare(config, method, parts, planned)
        self._rate = prepared.plan.learning_rate
        return replace(prepared, course=partial(self._train, prepared, config.keep_data is not None, limit))

    def _train(
        self, prepared: Prepared, keeps_data: bool, limit: Limit | None, watch: Watch, start: Start | None
    ) -> Outcome:
        network, plan = prepared.network, prepared.plan
        probe = min(PROBE, math.ceil(count_steps(len(prepared.train), plan) * PROBE_SHARE))
        rows = [*prepared.train, *prepared.validation, *(plan.kept.rows if keeps_data else ())]
        with cached_prefix(network, rows, plan.dtype, True, self._states):
            return fit(network, prepared.train, plan, replace(watch, limit=limit or Limit(probe), quiet=False), start)

    def drop(self, number: int) -> None:
        shutil.rmtree(self._folder / str(number), ignore_errors=True)

    def take_over(self, search: Search, place: Path) -> None:
        """The chosen training goes where the method's run is expected, which goes on with it; the others go."""
        rates = [trial.rate for trial in search.trials]
        chosen = self._folder / str(0 if search.chosen is None else rates.index(search.chosen))
        if chosen.is_dir():
            shutil.rmtree(place, ignore_errors=True)
            chosen.rename(place)
        shutil.rmtree(self._folder, ignore_errors=True)
