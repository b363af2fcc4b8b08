"""Contestants on one job, each in a process of its own, in turn, round after round, so that what else the machine
does falls on all of them. Medians of the rounds, ratios within them, and a check that all did the same work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tunesmith.__main__ import SETTINGS, TUNABLES


@dataclass
class Result:
    """What a contestant says of itself. `seen` is a digest of all that it was given to learn, step by step, and `made`
    of what it wrote, where those whose losses are compared must write the same."""

    losses: list[float]
    tokens: int
    seconds: float
    peak_bytes: int
    seen: str
    made: str = ""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Contestant:
    """`run` is given the folder that `prepare` has filled. `dtype` is what it multiplies in."""

    name: str
    note: str
    run: Callable[[Path], Result]
    dtype: str = "float32"
    is_ours: bool = False


@dataclass(frozen=True)
class Job:
    """`prepare` writes into a folder what all contestants read: rows and initial weights.

    The losses of the contestants in `alike` must agree step by step to `tolerance`, relative to the loss. `remark` says
    what else follows from the results, a line each.
    """

    name: str
    title: str
    prepare: Callable[[Path], None]
    contestants: tuple[Contestant, ...]
    alike: tuple[str, str]
    tolerance: float
    remark: Callable[[dict[str, list[Result]]], list[str]] | None = None


def main(jobs: Sequence[Job], description: str) -> int:
    """The command line of a benchmark; returns its exit code: 1 when contestants did not do the same work."""
    options = _parse(jobs, description)
    job = next(job for job in jobs if job.name == options.job)
    if options.child:
        contestant = next(one for one in job.contestants if one.name == options.child)
        print(json.dumps(asdict(contestant.run(Path(options.work)))))
        return 0
    with tempfile.TemporaryDirectory() as work:
        job.prepare(Path(work))
        chosen = _choose(job, options.only)
        results: dict[str, list[Result]] = {one.name: [] for one in chosen}
        for number in range(options.repeats):
            for one in _in_the_running(chosen, results) if number else chosen:
                print(f"{job.name}, round {number + 1}/{options.repeats}: {one.name} ...", file=sys.stderr, flush=True)
                results[one.name].append(_run_child(job, one, work))
                if options.json:  # after each: rounds take long, and one may be cut off
                    _write(options.json, job, results)
    return _report(job, chosen, results)


def _in_the_running(chosen: Sequence[Contestant], results: dict[str, list[Result]]) -> list[Contestant]:
    """Who goes on after the first round: ours at our defaults' precision, and of a peer's settings those that were the
    fastest or took the least memory. The others have lost to their own side, which more rounds would not change."""
    ours = [one for one in chosen if one.is_ours]
    peers = [one for one in chosen if not one.is_ours]
    fastest = max(peers, key=lambda one: results[one.name][0].tokens_per_second, default=None)
    smallest = min(peers, key=lambda one: results[one.name][0].peak_bytes, default=None)
    return [one for one in chosen if one in (fastest, smallest) or (one.is_ours and one.dtype == ours[0].dtype)]


def _write(path: Path, job: Job, results: dict[str, list[Result]]) -> None:
    plain = {name: [asdict(one) for one in runs] for name, runs in results.items()}
    path.write_text(json.dumps({"job": job.name, "results": plain}, indent=1))


def _parse(jobs: Sequence[Job], description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--job", default=jobs[0].name, choices=[job.name for job in jobs])
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the median counts")
    parser.add_argument("--only", default="", help="names of contestants, with commas")
    parser.add_argument("--json", type=Path, help="write all results there")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def _choose(job: Job, only: str) -> list[Contestant]:
    """Those asked for; else all that make sense here. A chip that emulates bfloat16 would take hours for it. One that
    has it is slower in float32 (1.7x to 2.8x, whoever computes), so only those run in it whose losses are compared.
    """
    from tunesmith.runtime import choose_device, choose_precision

    if only:
        return [one for one in job.contestants if one.name in only.split(",")]
    if all(one.dtype == "float32" for one in job.contestants):
        return list(job.contestants)
    if choose_precision("auto", choose_device()) == torch.bfloat16:
        return [one for one in job.contestants if one.dtype == "bfloat16" or one.name in job.alike]
    print("this chip has no fast bfloat16: contestants that compute in it are left out", file=sys.stderr)
    return [one for one in job.contestants if one.dtype == "float32"]


def _run_child(job: Job, one: Contestant, work: str) -> Result:
    command = [sys.executable, sys.argv[0], "--job", job.name, "--child", one.name, "--work", work]
    # As our command begins; peers begin as they do.
    environment = os.environ | ({TUNABLES: SETTINGS} if one.is_ours else {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{one.name} failed:\n{done.stderr[-3000:]}")
    return Result(**json.loads(done.stdout.strip().splitlines()[-1]))


def _report(job: Job, chosen: Sequence[Contestant], results: dict[str, list[Result]]) -> int:
    """Ratios are to the first of ours; each is the median of a round's own ratio over the rounds that a peer was in."""
    console = Console(width=118)
    table = Table(box=None, pad_edge=False, header_style="bold", title=job.title, title_justify="left")
    for title in ("contestant", "settings"):
        table.add_column(title)
    for title in ("rounds", "tokens/s", "seconds", "peak memory", "ours: speed", "memory"):
        table.add_column(title, justify="right")
    ours = next((one.name for one in chosen if one.is_ours), None)
    for one in chosen:
        runs = results[one.name]
        speed = statistics.median(run.tokens_per_second for run in runs)
        peak = statistics.median(run.peak_bytes for run in runs)
        ratios = ["", ""]
        if ours and not one.is_ours:
            pairs = list(zip(results[ours], runs, strict=False))
            ratios = [f"{statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in pairs):.2f}x"]
            ratios.append(f"{statistics.median(a.peak_bytes / b.peak_bytes for a, b in pairs):.2f}x")
        seconds = statistics.median(run.seconds for run in runs)
        row = (one.name, one.note, f"{len(runs)}", f"{speed:,.0f}", f"{seconds:.1f}", f"{peak / 1e6:,.0f} MB")
        table.add_row(*row, *ratios)
    console.print(table)
    for line in job.remark(results) if job.remark else []:
        console.print(line, highlight=False)
    return _judge(job, results, console)


def _judge(job: Job, results: dict[str, list[Result]], console: Console) -> int:
    if len({one.seen for runs in results.values() for one in runs}) != 1:
        console.print("FAILED: the contestants were not given the same rows")
        return 1
    console.print("all contestants were given the same rows in the same order")
    if not set(job.alike) <= results.keys():
        return 0
    if len({one.made for name in job.alike for one in results[name]}) != 1:
        console.print("FAILED: the contestants did not write the same")
        return 1
    ours, theirs = (results[name][0].losses for name in job.alike)
    apart = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    console.print(f"{len(ours)} losses of {' and '.join(job.alike)}: from {ours[0]:.5f} to {ours[-1]:.5f}, ", end="")
    console.print(f"largest relative difference {apart:.1e}, allowed {job.tolerance:.0e}")
    if apart > job.tolerance:
        console.print("FAILED: the loss curves part")
        return 1
    return 0
