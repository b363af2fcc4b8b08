"""A learning rate for a method, chosen on validation rows by successive halving within a time that was stated.

Each rate trains for a share of the steps; the better half goes on to twice as many, until one is left (Jamieson &
Talwalkar 2016, arXiv 1502.07240, figure 2). Trainings wait at such a rung and go on exactly from there, under the
schedule of the whole training, so the chosen one ends as if there had been no search.

Nothing here trains: `seek` is given what does, and a clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

from tunesmith.terminal import describe_seconds
from tunesmith.train.course import Limit

# Times the method's own rate, in the order in which a small budget takes them.
FACTORS = (1.0, 3.0, 1 / 3, 10.0)
# Steps of the first rung, as a share of all: earlier the order of rates is not that of the end (docs/log.md).
LEAST_SHARE = 1 / 4
# Of the time left, what a plan does not use: steps are not all alike.
RESERVE = 0.1


@dataclass
class Trial:
    """One learning rate. `losses` are the lowest validation losses so far, by steps taken; `error` why it ended."""

    rate: float
    losses: dict[int, float] = field(default_factory=dict)
    error: str = ""


@dataclass
class Search:
    """The search for one method's learning rate: what may be spent, what was tried, what came out.

    seconds       its share of the budget; `spent` of it
    num_steps     of the whole training; `rungs` after how many of them the worse half goes
    step_seconds  of one optimizer step, and `visit_seconds` of what each visit costs besides: loading, judging, saving
    trials        in the order tried; `left_out` rates for which the time was too short
    chosen        None where the method's own rate is taken for want of a comparison
    note          what a reader must know of how it was chosen
    """

    seconds: float
    spent: float = 0.0
    num_steps: int = 0
    rungs: tuple[int, ...] = ()
    step_seconds: float = 0.0
    visit_seconds: float = 0.0
    trials: list[Trial] = field(default_factory=list)
    left_out: tuple[float, ...] = ()
    chosen: float | None = None
    is_over: bool = False
    note: str = ""

    @classmethod
    def from_mapping(cls, plain: Mapping[str, Any]) -> Search:
        values = {each.name: plain[each.name] for each in fields(cls)}
        trials = [
            Trial(one["rate"], {int(step): loss for step, loss in one["losses"].items()}, one["error"])
            for one in plain["trials"]
        ]
        return cls(**values | {"trials": trials, "rungs": tuple(plain["rungs"]), "left_out": tuple(plain["left_out"])})

    def to_mapping(self) -> dict[str, Any]:
        """For readers: each trial, and each rate that was left out, with its `outcome` in words."""
        tried = [asdict(trial) | {"outcome": _tell(self, trial)} for trial in self.trials]
        left_out = [asdict(Trial(rate)) | {"outcome": "no time for it"} for rate in self.left_out]
        return asdict(self) | {"trials": [*tried, *left_out]}


@dataclass(frozen=True, slots=True)
class Visit:
    """A training after some more of its steps. `loss` is None where time was up before it came to its limit."""

    rate: float
    steps: int
    num_steps: int
    train_seconds: float
    loss: float | None
    is_finished: bool = False


class Trials(Protocol):
    """The trainings of a search, by number."""

    def visit(self, number: int, rate: float | None, limit: Limit | None) -> Visit:
        """Trains up to the limit; without one for some steps, from which one can tell how long the others take.

        `rate` is None for the method's own.
        """

    def drop(self, number: int) -> None:
        """Forgets a training that will not go on."""


def seek(
    search: Search,
    trials: Trials,
    warmup_ratio: float,
    save: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Tries learning rates until one is left or the time is up; what is in `search` already is not tried again.

    `save` is called after each visit, and when something breaks off.
    """
    started, before = clock(), search.spent
    seeker = _Seeker(search, trials, clock, started + search.seconds - before)

    def keep() -> None:
        search.spent = before + clock() - started
        save()

    try:
        if not search.trials:
            seeker.begin(warmup_ratio)
            keep()
        for _ in seeker.climb():
            keep()
        search.chosen, search.is_over = choose(search), True
        search.note = describe(search, warmup_ratio)
    finally:
        keep()


class _Seeker:
    def __init__(self, search: Search, trials: Trials, clock: Callable[[], float], moment: float) -> None:
        self._search, self._trials, self._clock, self._moment = search, trials, clock, moment

    def begin(self, warmup_ratio: float) -> None:
        """The method's own rate for a few steps, by which the rungs are laid."""
        search, started = self._search, self._clock()
        made = self._trials.visit(0, None, None)
        search.num_steps, search.step_seconds = made.num_steps, made.train_seconds / max(1, made.steps)
        search.visit_seconds = max(0.0, self._clock() - started - made.train_seconds)
        rates = [made.rate, *(float(f"{made.rate * factor:.2g}") for factor in FACTORS[1:])]
        # What it has trained counts on.
        left = (self._moment - self._clock()) * (1 - RESERVE) + made.train_seconds
        count, search.rungs = lay_rungs(search, left, warmup_ratio)
        search.trials = [Trial(rate) for rate in rates[:count]]
        search.left_out = tuple(rates[count:])

    def climb(self) -> Iterator[None]:
        """Yields after each visit."""
        for at, rung in enumerate(self._search.rungs):
            runners, all_of = contenders(self._search, at), self._search.trials
            for number, trial in enumerate(all_of):
                if trial not in runners:
                    self._trials.drop(number)
            for trial in runners:  # the better ones first: what they train is not lost when the time is up
                if rung in trial.losses or trial.error:
                    continue
                if not self._fits(trial, rung):
                    return
                self._visit(all_of.index(trial), trial, rung)
                yield

    def _fits(self, trial: Trial, rung: int) -> bool:
        search = self._search
        seconds = search.visit_seconds + (rung - max(trial.losses, default=0)) * search.step_seconds
        return self._clock() + seconds <= self._moment

    def _visit(self, number: int, trial: Trial, rung: int) -> None:
        try:
            made = self._trials.visit(number, trial.rate, Limit(rung, self._moment))
        except Exception as error:  # a rate that is too high for it does not end the search
            trial.error = str(error).splitlines()[0] if str(error) else type(error).__name__
            return
        if made.loss is None:
            return
        if not math.isfinite(made.loss):
            trial.error = f"its validation loss is {made.loss} after {made.steps} steps"
            return
        # One that ended early stays as good as it is.
        for there in self._search.rungs if made.is_finished else (rung,):
            trial.losses.setdefault(there, made.loss)


def halving(count: int) -> list[int]:
    """How many go up to each rung: 4 -> [4, 2], 3 -> [3, 2], 2 -> [2]."""
    sizes = []
    while count > 1:
        sizes.append(count)
        count = math.ceil(count / 2)
    return sizes


def price(count: int, first: int, search: Search) -> float:
    """Seconds of `count` rates whose first rung is at `first` steps; each further rung doubles the steps."""
    sizes = halving(count)
    steps = sum(size * first * (2 ** (at - 1) if at else 1) for at, size in enumerate(sizes))
    return sum(sizes) * search.visit_seconds + steps * search.step_seconds


def lay_rungs(search: Search, seconds: float, warmup_ratio: float) -> tuple[int, tuple[int, ...]]:
    """How many rates fit into so many seconds, and their rungs: as many rates as can be, then as many steps."""
    for count in range(len(FACTORS), 1, -1):
        num_rungs = len(halving(count))
        fixed, each = price(count, 0, search), price(count, 1, search) - price(count, 0, search)
        first = min(search.num_steps // 2 ** (num_rungs - 1), math.floor((seconds - fixed) / each))
        if first >= least_rung(search.num_steps, warmup_ratio):
            return count, tuple(first * 2**at for at in range(num_rungs))
    return 1, ()


def least_rung(num_steps: int, warmup_ratio: float) -> int:
    """Beyond the warm-up, in which all rates are low."""
    return max(1, math.ceil(num_steps * LEAST_SHARE), 2 * math.ceil(num_steps * warmup_ratio))


def contenders(search: Search, at: int) -> list[Trial]:
    """Who goes up to a rung: all to the first, then the better half of those before."""
    runners = list(search.trials)
    for rung in search.rungs[:at]:
        half, there = math.ceil(len(runners) / 2), [trial for trial in runners if rung in trial.losses]
        runners = sorted(there, key=lambda trial: trial.losses[rung])[:half]
    return runners


def choose(search: Search) -> float | None:
    """The best of the highest rung at which two can be compared, or at which all others failed; None where none is."""
    for at in range(len(search.rungs) - 1, -1, -1):
        runners, rung = contenders(search, at), search.rungs[at]
        ranked = [trial for trial in runners if rung in trial.losses and not trial.error]
        if len(ranked) > 1 or (ranked and all(trial in ranked or trial.error for trial in runners)):
            return min(ranked, key=lambda trial: trial.losses[rung]).rate
    return None


def describe(search: Search, warmup_ratio: float) -> str:
    """What a reader must know of how a rate was chosen."""
    own = f"the method's own rate, {search.trials[0].rate:g}"
    if not search.rungs:
        counts_on = search.spent - search.visit_seconds
        more = price(2, least_rung(search.num_steps, warmup_ratio), search) - counts_on
        needed = search.spent + more / (1 - RESERVE)
        return (
            f"{own}: {describe_seconds(search.seconds)} are too few to compare it with another, which takes about "
            f"{describe_seconds(needed)}"
        )
    said = [_outcome(search, own)]
    if search.left_out:
        said.append("no time for " + ", ".join(f"{rate:g}" for rate in search.left_out))
    missing = [
        f"{trial.rate:g} had taken {rung} steps"
        for at, rung in enumerate(search.rungs)
        for trial in contenders(search, at)
        if rung not in trial.losses and not trial.error
    ]
    if missing:
        said.append("the time was up before " + " and ".join(missing))
    return "; ".join(said)


def _tell(search: Search, trial: Trial) -> str:
    if trial.error:
        return f"failed: {trial.error}"
    if search.chosen == trial.rate:
        return "chosen"
    last = max((at for at in range(len(search.rungs)) if trial in contenders(search, at)), default=None)
    if last is None:
        return "taken, not compared"
    return f"dropped after {search.rungs[last]} steps" if search.rungs[last] in trial.losses else "the time was up"


def _outcome(search: Search, own: str) -> str:
    if search.chosen is None:
        return f"{own}: no two could be compared"
    factor = search.chosen / search.trials[0].rate
    text = f"{search.chosen:g}, {'' if factor == 1 else f'{factor:.2g} times '}the method's own"
    tried = [trial.rate for trial in search.trials if trial.losses]
    if len(tried) > 1 and search.chosen in (min(tried), max(tried)):
        text += f", the {'lowest' if search.chosen == min(tried) else 'highest'} that was tried"
    return text


def share(budget: float, searches: Sequence[Search | None]) -> float:
    """Seconds for the next search: what the finished ones left, divided evenly over the others."""
    spent = sum(search.spent for search in searches if search is not None and search.is_over)
    left = sum(search is None or not search.is_over for search in searches)
    return max(0.0, budget - spent) / max(1, left)
