"""Every method on one classification, one regression and one prompt-response task, at several learning rates.

    python examples/methods_study.py FOLDER [--tasks classification,regression,answers] [--methods lora,full]

The rate is chosen on validation rows alone; the table shows the test rows at that rate. What is finished in FOLDER is
not run again, so the study may be stopped and gone on with. On two CPU cores all methods take hours; a task or a few
methods may be asked for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tunesmith
from tunesmith.survey import survey

FACTORS = (0.3, 1.0, 3.0)  # of the table's default rate
TASKS: dict[str, dict[str, Any]] = {
    "classification": {
        "model": "minilm-l6",
        "data": "vader-movies",
        "baselines": ["tf-idf"],
        "num_train_epochs": 2,
        "max_train_samples": 320,
        "max_validation_samples": 160,
        "max_test_samples": 500,
    },
    "regression": {
        "model": "minilm-l6",
        "data": "vader-tweets",
        "task": "regression",
        "baselines": ["majority", "tf-idf"],
        "num_train_epochs": 2,
        "max_train_samples": 320,
        "max_validation_samples": 160,
        "max_test_samples": 500,
    },
    "answers": {
        "model": "smollm2-135m-instruct",
        "data": "construction-faq",
        "baselines": ["zero-shot"],
        "num_train_epochs": 2,
        "max_train_samples": 96,
        "max_validation_samples": 32,
        "max_test_samples": 64,
        "max_generated": 0,
    },
}


def study(task: str, methods: Sequence[str], folder: Path) -> list[Mapping[str, Any]]:
    """One comparison for each factor; of each method the one whose best validation loss is the lowest."""
    given = TASKS[task]
    rates = {row["name"]: row["learning_rate"] for row in survey(given["model"]) if not row["refusal"]}
    rates = {name: rate for name, rate in rates.items() if name in methods}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for factor in FACTORS:
        output = folder / f"{task}-{factor:g}"
        asked = {name: float(f"{rate * factor:.2g}") for name, rate in rates.items()}
        tunesmith.compare(**given, methods=list(asked), learning_rates=asked, output=output, check=False)
        for system in json.loads((output / "comparison.json").read_text(encoding="utf-8"))["systems"]:
            if system["kind"] == "method" and not system["error"]:
                found.setdefault(system["name"], []).append(system | {"factor": factor})
    return [min(systems, key=_best_validation_loss) for systems in found.values()]


def _best_validation_loss(system: Mapping[str, Any]) -> float:
    return min(point["validation_loss"] for point in system["curve"])


def as_markdown(systems: Sequence[Mapping[str, Any]]) -> str:
    metric = next(iter(systems[0]["metrics"]))
    lines = [
        f"| method | {metric} | validation loss | rate | trained | seconds | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for system in sorted(systems, key=_best_validation_loss):
        value = system["metrics"][metric]
        cells = (
            f"`{system['name']}`",
            f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]",
            f"{_best_validation_loss(system):.3f}",
            f"{system['learning_rate']:g} ({system['factor']:g} x)",
            f"{system['trainable_parameters'] / system['total_parameters']:.2%}",
            f"{system['train_seconds']:.0f}",
            f"{system['peak_memory'] / 1e6:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--methods", default="")
    asked = parser.parse_args()
    for task in asked.tasks.split(","):
        known = [row["name"] for row in survey(TASKS[task]["model"]) if not row["refusal"]]
        methods = asked.methods.split(",") if asked.methods else known
        table = as_markdown(study(task, methods, asked.folder))
        (asked.folder / f"{task}.md").write_text(f"{table}\n", encoding="utf-8")
        print(f"\n## {task}\n\n{table}")


if __name__ == "__main__":
    main()
