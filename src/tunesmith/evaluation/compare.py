"""Stage: one split, many methods and baselines -> one table, one page, one recommendation.

Each system runs in a process of its own: its peak memory is its own, and one that fails or is killed
does not lose the others. What is finished is not run again when the command is repeated.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import isnan
from pathlib import Path
from typing import Any

from tunesmith.config_compare import CompareConfig
from tunesmith.data.parts import load_split
from tunesmith.errors import InputError
from tunesmith.evaluation.baselines import BASELINES, BOUND, find_baseline
from tunesmith.evaluation.beside import count_confusions, set_beside
from tunesmith.evaluation.forgetting import load_second
from tunesmith.evaluation.jobs import PREDICTIONS, Job, run_all, run_or_reuse, start_server
from tunesmith.evaluation.metrics import METRICS, paired_difference
from tunesmith.evaluation.predictions import Predictions
from tunesmith.evaluation.report import write_report
from tunesmith.evaluation.retrieval import read_passages
from tunesmith.evaluation.systems import WITH_RAG
from tunesmith.evaluation.written import spread_text
from tunesmith.methods.table import choose_methods
from tunesmith.models.heads import is_encoder
from tunesmith.models.load import load_config, resolve_model
from tunesmith.outcomes import Interval, System, Verdict
from tunesmith.records import Split
from tunesmith.runs.folder import FROZEN, locked, look
from tunesmith.runtime import choose_device, choose_precision, describe_machine, versions
from tunesmith.signals import listening
from tunesmith.storage import explained, to_plain, write_json, write_text
from tunesmith.terminal import say
from tunesmith.tuning import find_max_length

RESULT = "comparison.json"
# Keys that no single system's result depends on, or only by its own entry.
NO_INPUTS = {"output", "methods", "baselines", "learning_rates", "save_steps", "save_minutes", "check", "report_to"}
NO_INPUTS |= {"budget", "seeds"}
REPORT = "report.html"


@dataclass(frozen=True)
class Comparison:
    """What was compared, and what came out: `systems` with baselines first, in the order asked for."""

    folder: Path
    content: Mapping[str, Any]
    systems: tuple[System, ...]
    verdict: Verdict

    @property
    def report(self) -> Path:
        return self.folder / REPORT

    def to_pandas(self) -> Any:
        """One row per system: metrics with the ends of their intervals, cost, error."""
        import pandas as pd  # comes with `datasets`; slow to import and only needed here

        rows = []
        for system in self.systems:
            row: dict[str, Any] = {"system": system.name, "kind": system.kind, "family": system.family}
            for name, interval in system.metrics.items():
                row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
            row |= {
                "trainable_parameters": system.trainable_parameters,
                "peak_memory": system.peak_memory,
                "train_seconds": system.train_seconds,
                "prompt_tokens": system.prompt_tokens,
                "answer_seconds": system.answer_seconds,
                "stored_bytes": system.stored_bytes,
                "learning_rate": system.learning_rate,
                "error": system.error,
            }
            if system.seeds:
                row |= {f"{name}_seeds": [one["metrics"].get(name) for one in system.seeds] for name in system.metrics}
            for one in system.forgotten:
                row[f"forgotten_{one['measure']}_{one['metric']}"] = one["change"]["value"]
            rows.append(row)
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        html: str = self.to_pandas().to_html(index=False, float_format="%.3f", border=0)
        return f"<p>{self.verdict.reason}</p>{html}"


def compare(config: CompareConfig, parts: Split | None = None) -> Comparison:
    """Runs what is not finished yet and judges all systems on the same test rows.

    `parts` is the data already divided; else it is read from `config.data`.

    Raises:
        InputError: before any compute is spent, for a wrong model, data, method or baseline.
    """
    with listening(), _told_how_to_go_on():
        return _compare(config, parts)


def _compare(config: CompareConfig, parts: Split | None) -> Comparison:
    started = time.monotonic()
    folder = config.output or Path("runs") / f"compare-{Path(config.model).name}-{Path(config.data).stem}"
    choose_methods(config.methods, config.method_options)
    source = resolve_model(config.model)
    load_config(source, config.model)
    find_max_length(config)
    start_server()
    parts = load_split(config) if parts is None else parts
    if config.documents is not None:
        read_passages(Path(config.documents).expanduser())
    if config.also_keep is not None:
        load_second(config.also_keep, parts.train.task)  # what is wrong with it is said before anything is trained
    jobs = _make_jobs(config, folder, parts)
    if look(folder) == "files":
        raise InputError(f"output '{folder}' holds files that are no comparison. Give another --output")
    with locked(folder):
        with explained("The comparison", folder):
            write_text(folder / "config.yaml", config.to_yaml())
        _announce(config, parts, jobs)
        systems = run_all(jobs)
        if config.seeds > 1:
            systems = [_with_seeds(job, system) for job, system in zip(jobs, systems, strict=True)]
        shutil.rmtree(folder / FROZEN, ignore_errors=True)
        return _conclude(config, folder, parts, systems, time.monotonic() - started)


@contextmanager
def _told_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stopped:
        stopped.add_note("The same command goes on: what is finished is not run again")
        raise


def _make_jobs(config: CompareConfig, folder: Path, parts: Split) -> list[Job]:
    task = parts.train.task
    is_decoder = not is_encoder(load_config(resolve_model(config.model), config.model))
    fitting = [name for name, baseline in BASELINES.items() if not baseline.why_not(task, is_decoder)]
    wanted = fitting if config.baselines is None else list(config.baselines)
    for name in wanted:
        reason = find_baseline(name).why_not(task, is_decoder)
        if reason:
            raise InputError(f"baseline '{name}': {reason}. Fitting here: {', '.join(fitting)}")
    readers = [name + WITH_RAG for name in config.methods] if config.with_rag else []
    if readers and (task != "generation" or not is_decoder):
        raise InputError("with_rag is for a decoder that answers questions. Leave it out")
    named = [("baseline", name) for name in wanted] + [("method", name) for name in (*config.methods, *readers)]
    return [
        Job(name, kind, folder / f"{kind}s" / name, config, parts, _key(config, parts, kind, name), name in readers)
        for kind, name in named
    ]


def _with_seeds(job: Job, system: System) -> System:
    """The same method at the same rate with other seeds, beside the one that stands for it."""
    if job.kind != "method" or job.is_reader or system.error:
        return system
    found = [(job.config.seed, system)]
    for seed in range(job.config.seed + 1, job.config.seed + job.config.seeds):
        same = {"learning_rates": {job.name: system.learning_rate}, "forgetting": False, "also_keep": None}
        config = job.config.model_copy(update={"seed": seed, **same})
        folder = job.folder.with_name(f"{job.name}-seed-{seed}")
        other = Job(job.name, job.kind, folder, config, job.parts, _key(config, job.parts, job.kind, job.name))
        found.append((seed, run_or_reuse(other, f"{job.name}, seed {seed}")))
    values = [
        {"seed": seed, "metrics": {name: one.value for name, one in made.metrics.items()}, "error": made.error}
        for seed, made in found
    ]
    return replace(system, seeds=tuple(values))


def _key(config: CompareConfig, parts: Split, kind: str, name: str) -> str:
    """sha256 over the configuration that bears on this system and over its data."""
    relevant = config.model_dump(mode="json", exclude=NO_INPUTS)
    rate = config.learning_rates.get(name.removesuffix(WITH_RAG))
    relevant |= {"kind": kind, "name": name, "learning_rate": rate}
    if config.budget is not None and kind == "method" and rate is None:
        relevant |= {"budget": config.budget}
    relevant |= {"data": [part.fingerprint for part in (parts.train, parts.validation, parts.test)]}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def _announce(config: CompareConfig, parts: Split, jobs: Sequence[Job]) -> None:
    device = choose_device(config.device)
    machine = describe_machine(device, choose_precision(config.precision, device))
    say(f"{config.model} on {config.data}: {len(jobs)} systems", style="bold")
    say(f"data     {parts.train.recognised}")
    if parts.checked:
        say(f"check    {parts.checked}")
    say(f"split    {parts.note}")
    say(f"machine  {machine['device']}, {machine['threads']} threads, {machine['precision']}")


def _conclude(
    config: CompareConfig, folder: Path, parts: Split, systems: Sequence[System], seconds: float
) -> Comparison:
    task = parts.train.task
    known = {name for system in systems for name in system.metrics}
    primary = next((metric for metric in METRICS[task] if metric.name in known), METRICS[task][0])
    judge = _Judge(folder, systems, primary.name, primary.higher_is_better, config.seed)
    judged = tuple(judge.with_difference(system) for system in systems)
    verdict = judge.verdict(judged)
    device = choose_device(config.device)
    said = {system.name: judge.predictions(system) for system in judged if not system.error}
    content = to_plain(
        {
            "model": {"name": config.model, "total_parameters": max(s.total_parameters for s in judged)},
            "data": _describe_data(config, parts),
            "primary": primary.name,
            "higher_is_better": primary.higher_is_better,
            "systems": judged,
            "verdict": verdict,
            "confusions": {name: count_confusions(one, len(parts.test.class_names)) for name, one in said.items()},
            "beside": set_beside(parts.test, judged, verdict, said),
            "versions": versions(),
            "machine": describe_machine(device, choose_precision(config.precision, device)),
            "seconds": seconds,
            "command": shlex.join(["tunesmith", *sys.argv[1:]]),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    write_json(folder / RESULT, content)
    write_report(folder / REPORT, content)
    return Comparison(folder, content, judged, verdict)


def _describe_data(config: CompareConfig, parts: Split) -> dict[str, Any]:
    return {
        "name": config.data,
        "task": parts.train.task,
        "class_names": parts.train.class_names,
        "recognised": parts.train.recognised,
        "note": parts.note,
        "checked": parts.checked,
        "num_train": len(parts.train.rows),
        "num_validation": len(parts.validation.rows),
        "num_test": len(parts.test.rows),
    }


def _value(system: System, metric: str) -> float:
    return system.metrics[metric].value if metric in system.metrics else float("nan")


class _Judge:
    """Ranks systems by the primary metric and weighs a gain against its cost."""

    def __init__(self, folder: Path, systems: Sequence[System], metric: str, higher_is_better: bool, seed: int) -> None:
        self._folder, self._metric, self._seed = folder, metric, seed
        self._sign = 1 if higher_is_better else -1
        self._ranked = sorted(
            (one for one in systems if one.family != BOUND and not isnan(_value(one, metric))),
            key=lambda system: -self._sign * system.metrics[metric].value,
        )
        self._best_baseline = next((system for system in self._ranked if system.kind == "baseline"), None)

    def with_difference(self, system: System) -> System:
        """The system with its gap to the strongest baseline filled in."""
        if self._best_baseline is None or self._metric not in system.metrics or system == self._best_baseline:
            return system
        return replace(system, difference=self._difference(system, self._best_baseline))

    def verdict(self, systems: Sequence[System]) -> Verdict:
        if not self._ranked:
            return Verdict("", "", f"No system finished, so nothing can be said of {self._metric}.")
        best = self._ranked[0]
        # As good as the best, as far as these test rows can tell.
        peers = [system for system in self._ranked if system == best or not self._is_worse(system, best)]
        chosen = min(peers, key=lambda system: (system.kind == "method", system.total_seconds))
        return Verdict(best.name, chosen.name, self._reason(best, chosen))

    def _reason(self, best: System, chosen: System) -> str:
        value = best.metrics[self._metric]
        text = f"{best.name} has the best {self._metric}, {value}."
        if chosen != best:
            text += (
                f" {chosen.name} ({chosen.metrics[self._metric]}) cannot be told from it on these test rows and "
                f"takes {chosen.total_seconds:.0f} s instead of {best.total_seconds:.0f} s."
            )
        text += self._over_seeds(chosen)
        baseline = self._best_baseline
        if baseline is None:
            return text
        if chosen.kind == "baseline":
            return text + " On this data, tuning is not worth its cost." + self._cost_of_use(chosen)
        gap = self._difference(chosen, baseline)
        verb = "beats" if self._is_better(gap) else "does not clearly beat"
        return text + f" It {verb} the strongest baseline, {baseline.name}: difference {gap}."

    def _over_seeds(self, chosen: System) -> str:
        """The ranking is that of the first seed; how far others differ is said beside it."""
        if not chosen.seeds:
            return ""
        spread = spread_text({"seeds": chosen.seeds}, self._metric)
        return f" Over {len(chosen.seeds)} seeds {chosen.name} has {spread} (mean and standard deviation)."

    def _cost_of_use(self, chosen: System) -> str:
        """What a baseline that needs no tuning asks for each answer instead, beside the best tuned system."""
        tuned = next((system for system in self._ranked if system.kind == "method"), None)
        if tuned is None or not tuned.prompt_tokens or not chosen.prompt_tokens:
            return ""
        if chosen.prompt_tokens < 1.5 * tuned.prompt_tokens:
            return ""
        return (
            f" But it reads {chosen.prompt_tokens:.0f} tokens for each answer where {tuned.name} reads "
            f"{tuned.prompt_tokens:.0f}: whoever asks often pays for that."
        )

    def _is_worse(self, system: System, best: System) -> bool:
        gap = self._difference(system, best)
        return gap.high < 0 if self._sign > 0 else gap.low > 0

    def _is_better(self, gap: Interval) -> bool:
        return gap.low > 0 if self._sign > 0 else gap.high < 0

    def _difference(self, system: System, other: System) -> Interval:
        return paired_difference(self.predictions(system), self.predictions(other), self._metric, self._seed)

    def predictions(self, system: System) -> Predictions:
        path = self._folder / f"{system.kind}s" / system.name / PREDICTIONS
        return Predictions.from_mapping(json.loads(path.read_text(encoding="utf-8")))
