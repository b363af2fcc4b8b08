"""A training by trial as one self-contained page: its curves, what its alarms found, and its answers over time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tunesmith.config_align import AlignConfig
from tunesmith.evaluation.plots import Line, plot_lines
from tunesmith.pages import write_page
from tunesmith.rl.alarms import find_alarms
from tunesmith.runs.folder import METRICS, PAGE

# What is drawn of each step, and of each evaluation beside it; what it is measured in.
CURVES: tuple[tuple[str, str, str | None], ...] = (
    ("reward", "objective/scores", "validation_reward"),
    ("divergence of an answer from the start, nats", "objective/kl", "validation_kl"),
    ("entropy of an answer, nats", "objective/entropy", None),
    ("length of an answer, tokens", "response_length", "validation_length"),
)
Lines = Sequence[Mapping[str, Any]]


def write_report(folder: Path, config: AlignConfig) -> None:
    """Writes the page of a run from its log."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "objective/scores" in line]
    evaluations = [line for line in lines if "validation_reward" in line]
    values = {
        "model": config.model,
        "algorithm": config.algorithm,
        "rewards": config.reward,
        "gold": config.gold_reward,
        "pictures": [(title, Markup(svg)) for title, svg in draw(steps, evaluations)],  # noqa: S704 (escaped in plots)
        "evaluations": evaluations,
        "alarms": alarms_of(steps),
        "samples": samples_of(lines),
    }
    write_page(folder / PAGE, "tunesmith.rl", "page.html.j2", values)


def draw(steps: Lines, evaluations: Lines) -> list[tuple[str, str]]:
    """The pictures with their titles; those with nothing to show are left out."""
    pictures = [
        (
            title,
            plot_lines(
                [
                    Line("drawn in training", over("step", drawn, steps), "step"),
                    Line("held out", over("step", held, evaluations) if held else [], "held", marked=True),
                ],
                title,
                "step",
            ),
        )
        for title, drawn, held in CURVES
    ]
    title = "reward against the square root of the divergence, deviations of the start"
    found = [
        Line("reward", against_divergence("validation_reward", evaluations), "held", marked=True),
        Line("outside judge", against_divergence("validation_gold", evaluations), "gold", marked=True),
    ]
    pictures.append((title, plot_lines(found, title, "square root of the divergence")))
    return [(title, svg) for title, svg in pictures if svg]


def over(across: str, key: str, lines: Lines) -> list[tuple[float, float]]:
    """Points of two numbers of each line, where both are known."""
    return [(line[across], line[key]) for line in lines if line.get(key) is not None]


def against_divergence(key: str, evaluations: Lines) -> list[tuple[float, float]]:
    """(sqrt(KL), change of a score since the first evaluation by its deviation there), as Gao et al. 2022 (arXiv
    2210.10760) plot over-optimisation: a learned reward goes on rising where an outside judge begins to fall."""
    known = [line for line in evaluations if line.get(key) is not None]
    if not known:
        return []
    first, deviation = known[0][key], known[0].get(f"{key}_std") or 1.0
    return [(max(0.0, line["validation_kl"]) ** 0.5, (line[key] - first) / deviation) for line in known]


def alarms_of(steps: Lines) -> list[dict[str, Any]]:
    """Each alarm with its advice and the step at which it sounded first."""
    found: dict[str, dict[str, Any]] = {}
    for line in steps:
        for alarm in find_alarms(steps[0], line):
            found.setdefault(alarm.name, {"step": line["step"], "name": alarm.name, "advice": alarm.advice})
    return list(found.values())


def samples_of(lines: Lines) -> list[dict[str, Any]]:
    """Each prompt of the samples with its answers at every evaluation, and how far their log-probability has moved."""
    shown = [line for line in lines if "samples" in line]
    return [
        {
            "prompt": first["prompt"],
            "answers": [
                {"step": line["step"], **line["samples"][place], "moved": sum(line["samples"][place]["log_ratio"])}
                for line in shown
            ],
        }
        for place, first in enumerate(shown[0]["samples"] if shown else ())
    ]
