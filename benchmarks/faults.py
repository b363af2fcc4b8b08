"""Faults planted into real data, and how many of them `tunesmith data check` finds.

    python benchmarks/faults.py [--seed 0] [--json FILE]

vader-movies, 10,605 snippets of film reviews: 5 % of the labels flipped; 3 % of the rows copied to the letter, 3 %
copied and edited (each kind of EDITS in turn); 2 % of the test rows copied into the training data, as they are and
edited.
Recall is the share of the planted faults that was found, precision the share of what was found that was planted; what
the data had of its own before anything was planted is not counted against a check.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tunesmith.data import sources
from tunesmith.data.quality.report import Report, check
from tunesmith.data.split import split
from tunesmith.records import Examples, LabelledText

FLIPPED, COPIED, EDITED, LEAKED = 0.05, 0.03, 0.03, 0.02


def _swap(text: str, draw: random.Random) -> str:
    """Two neighbouring letters in each other's place, twice."""
    letters = list(text)
    for _ in range(2):
        at = draw.randrange(len(letters) - 1)
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


def _without_a_word(text: str, draw: random.Random) -> str:
    words = text.split()
    del words[draw.randrange(len(words))]
    return " ".join(words)


def _with_a_word(text: str, draw: random.Random) -> str:
    words = text.split()
    words.insert(draw.randrange(len(words)), draw.choice(("really", "indeed", "the", "quite", "film")))
    return " ".join(words)


EDITS: dict[str, Callable[[str, random.Random], str]] = {
    "capitals": lambda text, draw: text.upper(),
    "punctuation": lambda text, draw: text.replace(",", " -").replace(".", " ...") + " !",
    "white space": lambda text, draw: "  " + text.replace(" ", "  "),
    "letters swapped": _swap,
    "a word less": _without_a_word,
    "a word more": _with_a_word,
    "markup": lambda text, draw: f"<p>{text}</p>",
}
FEWEST_WORDS = 12  # of a text that is edited: a word of eight is an eighth of what is said


def plant(seed: int) -> tuple[Examples, Examples, dict[str, set[int]], dict[int, str]]:
    """Training and test rows, which training rows have which fault, and how the edited ones were edited."""
    draw = random.Random(seed)
    parts = split(sources.load("vader-movies", "classification"), seed)
    rows = [(row.text, str(row.target)) for row in parts.train.rows if isinstance(row, LabelledText)]
    tested = [(row.text, str(row.target)) for row in parts.test.rows if isinstance(row, LabelledText)]
    names = parts.train.class_names
    long = [index for index, (text, _) in enumerate(rows) if len(text.split()) >= FEWEST_WORDS]
    chosen = draw.sample(long, round((COPIED + EDITED) * len(rows)))
    planted: dict[str, set[int]] = {"label errors": set(draw.sample(range(len(rows)), round(FLIPPED * len(rows))))}
    made = [
        (text, draw.choice([name for name in names if name != label]) if at in planted["label errors"] else label)
        for at, (text, label) in enumerate(rows)
    ]
    planted["exact duplicates"] = set()
    for at in chosen[: round(COPIED * len(rows))]:
        planted["exact duplicates"].add(len(made))
        made.append(made[at])
    planted["near duplicates"] = set()
    edited: dict[int, str] = {}
    for number, at in enumerate(chosen[round(COPIED * len(rows)) :]):
        kind = list(EDITS)[number % len(EDITS)]
        planted["near duplicates"].add(len(made))
        edited[len(made)] = kind
        made.append((EDITS[kind](made[at][0], draw), made[at][1]))
    planted["leakage"], planted["leakage: near"] = set(), set()
    long = [at for at, (text, _) in enumerate(tested) if len(text.split()) >= FEWEST_WORDS]
    for number, at in enumerate(draw.sample(long, 2 * round(LEAKED * len(tested)))):
        text, label = tested[at]
        kind = list(EDITS)[number // 2 % len(EDITS)]
        planted["leakage" if number % 2 else "leakage: near"].add(len(made))
        made.append((text, label) if number % 2 else (EDITS[kind](text, draw), label))
    return _load(made), _load(tested), planted, edited


def _load(rows: list[tuple[str, str]]) -> Examples:
    return sources.load([{"text": text, "label": label} for text, label in rows])


def rows_of(report: Report, *names: str) -> list[int]:
    return [index for finding in report.findings if finding.check in names for index in finding.rows]


def score(seed: int) -> dict[str, Any]:
    train, test, planted, edited = plant(seed)
    report = check(train, test)
    leaks = {"leakage", "leakage: same question", "leakage: near"}
    own = set(rows_of(check(_load(_plain(train, planted)), test), *leaks, "exact duplicates", "near duplicates"))
    found: dict[str, Any] = {}
    for name, wanted in planted.items():
        names = leaks if name == "leakage: near" else {name}
        if name == "near duplicates":
            names = {"near duplicates", "exact duplicates"}  # a copy and its edit are told apart by their order
        hits = [index for index in rows_of(report, *names) if index not in own]
        others = set().union(*(rows for other, rows in planted.items() if other != name and other in names | leaks))
        if name == "label errors":
            hits = rows_of(report, name)[: round(FLIPPED * len(train.rows))]
            others = set()
        right = [index for index in hits if index in wanted]
        wrong = [index for index in hits if index not in wanted and index not in others]
        found[name] = {
            "planted": len(wanted),
            "found": len(right),
            "recall": len(right) / len(wanted),
            "precision": len(right) / max(1, len(right) + len(wrong)),
        }
    hits_near = set(rows_of(report, "near duplicates", "exact duplicates"))
    found["by kind of edit"] = {
        kind: sum(at in hits_near for at, one in edited.items() if one == kind)
        / max(1, list(edited.values()).count(kind))
        for kind in EDITS
    }
    return found


def _plain(train: Examples, planted: dict[str, set[int]]) -> list[tuple[str, str]]:
    added = set().union(*(rows for name, rows in planted.items() if name != "label errors"))
    rows = [row for row in train.rows if isinstance(row, LabelledText)]
    return [(row.text, str(row.target)) for at, row in enumerate(rows) if at not in added]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = score(given.seed)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("check", "planted", "found", "recall", "precision"):
        table.add_column(title, justify="left" if title == "check" else "right")
    edits = found.pop("by kind of edit")
    for name, one in found.items():
        cells = (f"{one['planted']:,}", f"{one['found']:,}", f"{one['recall']:.1%}", f"{one['precision']:.1%}")
        table.add_row(name, *cells)
    Console(width=120).print(table)
    print("edited rows found: " + ", ".join(f"{kind} {share:.0%}" for kind, share in edits.items()))


if __name__ == "__main__":
    main()
