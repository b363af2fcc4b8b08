"""Made-up comparisons for the page: `python -m tests.evaluation.comparisons FOLDER` writes their pages."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.evaluation.metrics import METRICS
from tunesmith.evaluation.report import write_report
from tunesmith.outcomes import Interval, System, Verdict
from tunesmith.records import TASKS, Task
from tunesmith.storage import to_plain

TOTAL = 22_713_984
BASELINES = {
    "classification": (("majority", "guess", 0.50), ("tf-idf", "classical", 0.73), ("linear-probe", "classical", 0.79)),
    "regression": (("majority", "guess", 0.50), ("tf-idf", "classical", 0.73), ("linear-probe", "classical", 0.79)),
    "multi-label": (("majority", "guess", 0.40), ("tf-idf", "classical", 0.71)),
    "token-classification": (("majority", "guess", 0.00), ("usual-tag", "classical", 0.55)),
    "extractive-qa": (("majority", "guess", 0.20), ("sliding-window", "classical", 0.40)),
    "ranking": (("longer-wins", "guess", 0.55),),
    "generation": (("nearest", "retrieval", None), ("zero-shot", "prompting", 0.55)),
}
METHODS = (
    ("full", "full", 0.842, TOTAL),
    ("last-layers", "selective", 0.823, 3_697_538),
    ("bitfit", "selective", 0.810, 174_338),
    ("head-only", "selective", 0.720, 148_610),
    ("bottleneck", "additive", 0.833, 446_210),
    ("prompt", "additive", 0.780, 7_680),
    ("lora", "reparameterised", 0.838, 812_162),
    ("dora", "reparameterised", 0.839, 826_754),
)
SAMPLE = {"input": "a <s> that ends </s> & <script>alert(1)</script>", "expected": "<s>", "output": "neg & pos"}


def make_comparison(task: Task = "classification") -> dict[str, Any]:
    """As it stands in comparison.json: eight methods, of which dora failed and prompt has no curve."""
    baselines = [
        System(name, "baseline", family, _metrics(task, skill), total_seconds=2.5 + index, peak_memory=4 * 10**8)
        for index, (name, family, skill) in enumerate(BASELINES[task])
    ]
    methods = [_method(task, *row) for row in METHODS]
    primary = METRICS[task][0]
    systems = (*baselines, *methods)
    return to_plain(
        {
            "model": {"name": "minilm-l6", "family": "encoder", "total_parameters": TOTAL},
            "data": {
                "name": "reviews.csv",
                "task": task,
                "class_names": ["<s>", "neg & pos"] if task == "classification" else [],
                "recognised": "CSV with the columns text and label",
                "note": "train 1,500, validation 300, test 1,000",
                "num_train": 1500,
                "num_validation": 300,
                "num_test": 1000,
            },
            "primary": primary.name,
            "higher_is_better": primary.higher_is_better,
            "systems": systems,
            "verdict": Verdict("full", "lora", "full is best. lora cannot be told from it and takes 62 s, not 69 s."),
            "machine": {"device": "cpu", "cores": "2"},
            "seconds": 412.0,
            "command": "tunesmith compare --model minilm-l6 --data reviews.csv",
            "created": "2026-01-31T12:00:00+00:00",
        }
    )


def _method(task: Task, name: str, family: str, skill: float, trainable: int) -> System:
    if name == "dora":
        return System(name, "method", "", error="RuntimeError: out of <memory>\nTraceback: line two")
    curve = [
        {"step": epoch * 90, "epoch": float(epoch), "validation_loss": 0.9 - skill / 2 + 0.3 / epoch + 0.02 * epoch}
        for epoch in range(1, 5)
    ]
    return System(
        name,
        "method",
        family,
        _metrics(task, skill),
        difference=Interval(skill - 0.79, skill - 0.81, skill - 0.77),
        trainable_parameters=trainable,
        total_parameters=TOTAL,
        peak_memory=int(5e8 + 30 * trainable),
        train_seconds=25 + 30 * skill,
        total_seconds=30 + 40 * skill,
        learning_rate=1e-3,
        curve=() if name == "prompt" else tuple(curve),
        samples=(SAMPLE, SAMPLE),
    )


def _metrics(task: Task, skill: float | None) -> Mapping[str, Interval]:
    """Values that a system of this skill (0 to 1) might have; None: it has no loss."""
    if skill is None:
        return {"rouge_l": Interval(0.31, 0.27, 0.35)}
    made = {}
    for metric in METRICS[task]:
        value = skill if metric.higher_is_better else 4 * (1 - skill)
        value = math.exp(4 * (1 - skill)) if metric.name == "perplexity" else value
        made[metric.name] = Interval(value, value * 0.97, value * 1.03)
    if task == "regression" and skill == 0.50:  # a constant has no rank correlation
        made["spearman"] = made["pearson"] = Interval(math.nan, math.nan, math.nan)
    return made


def with_all(task: Task = "classification") -> dict[str, Any]:
    """The same with what was forgotten, confusions and rows side by side."""
    made = make_comparison(task)
    for at, system in enumerate(system for system in made["systems"] if system["kind"] == "method"):
        if not system["error"]:
            value = -0.02 * at
            made_of = {"measure": "probe", "metric": "accuracy", "higher_is_better": True, "num_rows": 202}
            change = {"value": value, "low": value - 0.02, "high": value + 0.015}
            before, after = ({"value": x, "low": x - 0.05, "high": x + 0.05} for x in (0.6, 0.6 + value))
            counts = {"kept": 110, "lost": 2 * at + 1, "gained": 1}
            system["forgotten"] = [{**made_of, "base": before, "tuned": after, "change": change, **counts}]
    if task == "classification":
        made["confusions"] = {"lora": [[401, 99], [60, 440]], "tf-idf": [[350, 150], [120, 380]]}
    rows = [
        {"input": f"{kind}: {SAMPLE['input']}", "expected": "<s>", "outputs": outputs, "right": right, "kind": kind}
        for kind, outputs, right in (
            ("gained", ["<s>", "neg & pos"], [True, False]),
            ("lost", ["neg & pos", "<s>"], [False, True]),
            ("wrong", ["neg & pos", "neg & pos"], [False, False]),
        )
    ]
    made["beside"] = {"names": ["lora", "linear-probe"], "rows": rows, "num_gained": 61, "num_lost": 13}
    made["versions"] = {"python": "3.12.1", "torch": "2.10.0"}
    return made


if __name__ == "__main__":
    for shown in TASKS:
        write_report(Path(sys.argv[1]) / f"{shown}.html", make_comparison(shown))
    write_report(Path(sys.argv[1]) / "all.html", with_all())
