"""Three families of models on nine tasks, with full tuning beside methods that train little: what each learns.

    python examples/families_and_tasks.py FOLDER [--tasks tactics,ratings] [--methods lora]

Models and data are the catalogue's. What is finished in FOLDER is not run again, so it may be stopped and gone on with,
or begun with some methods and gone on with more.
LoRA has rank 4 for the encoder, so that it trains less than 2 % of the parameters with the new head.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tunesmith
from tunesmith.assets import dataset_file

Row = dict[str, Any]
ENCODER = {"model": "minilm-l6", "methods": ["full", "lora", "parallel"], "lora_r": 4, "num_train_epochs": 4}
ENCODER |= {"max_train_samples": 1000, "max_validation_samples": 200, "max_test_samples": 1000}
WRITER = {"model": "smollm2-135m-instruct", "methods": ["full", "last-layers", "lora"], "baselines": ["zero-shot"]}
WRITER |= {"max_train_samples": 240, "max_validation_samples": 24, "max_test_samples": 64, "max_generated": 64}


def one_tactic(rows: Sequence[Row]) -> list[Row]:
    """The sentences with one tactic, as something to classify."""
    return [{"text": row["text"], "label": row["labels"][0]} for row in rows if len(row["labels"]) == 1]


def question_of(rows: Sequence[Row]) -> list[Row]:
    """Each answer, and in place of a summary the question that it answers."""
    return [{"source": row["completion"], "target": row["prompt"]} for row in rows]


def who_does_what(rows: Sequence[Row]) -> list[Row]:
    """Passages of four sentences, each about an actor of its own. A question has the three longest words of a sentence,
    the answer is its actor's name where it stands there; one question in five is of a sentence that is not there."""
    draw = random.Random(0)
    known = [row for row in rows if row["actor"] in row["text"]]
    made = []
    for number in range(1200):
        chosen: list[Row] = []
        while len(chosen) < 5:
            row = draw.choice(known)
            if all(row["actor"] not in other["text"] and other["actor"] not in row["text"] for other in chosen):
                chosen.append(row)
        context = " ".join(row["text"] for row in chosen[:4])
        for row in draw.sample(chosen[:4], 2) + chosen[4:] * (number % 2):
            words = sorted(
                set(re.findall(r"\w+", row["text"].replace(row["actor"], " "))), key=lambda word: (len(word), word)
            )[-3:]
            place = context.find(row["text"])
            answers = [] if place < 0 else [row["actor"]]
            starts = [context.index(actor, place) for actor in answers]
            question = f"Who or what: {', '.join(words)}?"
            made.append(
                {"context": context, "question": question, "answers": {"text": answers, "answer_start": starts}}
            )
    return made


# Name: settings of the comparison; where rows are made of others, of which and how.
TASKS: dict[str, tuple[Row, str, Callable[[Sequence[Row]], list[Row]] | None]] = {
    "tactics": (ENCODER | {"data": "attack-procedures"}, "multi-label", one_tactic),
    "all-tactics": (ENCODER | {"data": "attack-procedures", "task": "multi-label"}, "", None),
    "ratings": (ENCODER | {"data": "vader-movies", "task": "regression"}, "", None),
    "names": (ENCODER | {"data": "attack-procedures", "task": "token-classification"}, "", None),
    "spans": (
        ENCODER
        | {"data": "attack-procedures", "task": "extractive-qa", "methods": ["full", "lora"], "lora_r": 16}
        | {"max_train_samples": 1500, "max_validation_samples": 100, "max_test_samples": 300},
        "multi-label",
        who_does_what,
    ),
    "answers": (
        WRITER
        | {"data": "construction-faq", "methods": ["last-layers", "lora", "bottleneck"], "num_train_epochs": 2}
        | {"max_train_samples": 96, "max_test_samples": 32},
        "",
        None,
    ),
    "translation": (
        WRITER | {"data": "construction-translation", "num_train_epochs": 2, "max_train_samples": 160},
        "",
        None,
    ),
    "headlines": (
        WRITER
        | {
            "model": "bert2bert",
            "methods": ["full", "cross-attention", "bottleneck", "lora"],
            "baselines": ["zero-shot", "lead", "nearest"],
        }
        | {"data": "attack-headlines", "num_train_epochs": 6, "lora_r": 32}
        | {"max_train_samples": 4000, "max_validation_samples": 100, "max_test_samples": 300, "max_generated": 300},
        "",
        None,
    ),
    "questions": (
        WRITER
        | {
            "model": "bert2bert",
            "methods": ["full", "cross-attention"],
            "data": "construction-faq",
            "num_train_epochs": 10,
        },
        "generation",
        question_of,
    ),
}


def prepared(name: str, folder: Path) -> Row:
    """The settings of a task, its rows written where they are not the catalogue's own."""
    settings, source, make = TASKS[name]
    if make is None:
        return settings
    with Path(dataset_file(settings["data"], source)).open(encoding="utf-8") as file:  # type: ignore[arg-type]
        rows = make([json.loads(line) for line in file])
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return settings | {"data": str(path)}


def as_markdown(systems: Sequence[Mapping[str, Any]]) -> str:
    names = list(next(one["metrics"] for one in systems if one["metrics"]))
    lines = [f"| | {' | '.join(names)} | trained | seconds | peak MB |", "|---" * (len(names) + 4) + "|"]
    for one in systems:
        values = [one["metrics"].get(name) for name in names]
        cells = [
            "" if v is None or v["value"] is None else f"{v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]"
            for v in values
        ]
        share = one["trainable_parameters"] / one["total_parameters"] if one["total_parameters"] else 0
        cells += [
            f"{share:.2%}" if share else "",
            f"{one['train_seconds'] or 0:.0f}",
            f"{one['peak_memory'] / 1e6:.0f}",
        ]
        lines.append(f"| `{one['name']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--methods", help="instead of those of each task")
    asked = parser.parse_args()
    chosen = {"methods": asked.methods.split(",")} if asked.methods else {}
    asked.folder.mkdir(parents=True, exist_ok=True)
    for task in asked.tasks.split(","):
        output = asked.folder / task
        tunesmith.compare(**prepared(task, asked.folder) | chosen, output=output, check=False)
        systems = json.loads((output / "comparison.json").read_text(encoding="utf-8"))["systems"]
        print(f"\n## {task}\n\n{as_markdown(systems)}", flush=True)


if __name__ == "__main__":
    main()
