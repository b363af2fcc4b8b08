"""What `tunesmith plan` foretells beside what happens: peak memory and time of each method, on real models and data.

    python benchmarks/plan.py [--only METHOD,METHOD] [--case classification|chat] [--json FILE]

One plan for all methods, then a training by each in a process of its own. Exit code 1 when memory is more than 10 % or
time more than 20 % apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

METHODS = ("full", "last-layers", "bitfit", "norms", "head-only", "bottleneck", "prompt", "lora", "dora")
CASES = {
    "classification": ["--model", "minilm-l6", "--data", "vader-movies", "--max-train-samples", "1000"],
    "chat": ["--model", "smollm2-135m-instruct", "--data", "construction-faq", "--max-train-samples", "96"],
}
SAME = ["--early-stopping-patience", "100", "--num-train-epochs", "1", "--max-validation-samples", "60"]
MOST_APART = {"memory": 0.10, "time": 0.20}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names of methods, with commas")
    parser.add_argument("--case", default="classification", choices=CASES)
    parser.add_argument("--json", type=Path, help="write all results there")
    options = parser.parse_args()
    methods = options.only.split(",") if options.only else METHODS
    settings = [*CASES[options.case], *SAME]
    foretold = {one["method"]: one for one in run("plan", *settings, "--methods", ",".join(methods), "--json")}
    found = {}
    for method in methods:
        if not foretold[method]["num_steps"]:
            print(f"{method}: {foretold[method]['advice']}", file=sys.stderr)
            continue
        print(f"{method} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run("tune", *settings, "--method", method, "--output", f"{folder}/run", "--json")
            found[method] = json.loads((Path(folder) / "run" / "manifest.json").read_text())
    if options.json:
        options.json.write_text(json.dumps({"foretold": foretold, "found": found}, indent=1))
    return report({method: (foretold[method], found[method]) for method in found}, options.case)


def run(*arguments: str) -> Any:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("tunesmith")), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"tunesmith {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)


def report(pairs: dict[str, tuple[Any, Any]], case: str) -> int:
    table = Table(box=None, pad_edge=False, header_style="bold", title=f"plan and run: {case}", title_justify="left")
    table.add_column("method")
    for title in ("peak foretold", "found", "apart", "time foretold", "found", "apart"):
        table.add_column(title, justify="right")
    gaps: dict[str, list[float]] = {kind: [] for kind in MOST_APART}
    for method, (foretold, found) in pairs.items():
        memory, seconds = found["peak_memory"], found["outcome"]["seconds"]
        gaps["memory"].append(foretold["peak"] / memory - 1)
        gaps["time"].append(foretold["seconds"] / seconds - 1)
        cells = [f"{foretold['peak'] / 1e6:,.0f} MB", f"{memory / 1e6:,.0f} MB", f"{gaps['memory'][-1]:+.1%}"]
        cells += [f"{foretold['seconds']:.1f} s", f"{seconds:.1f} s", f"{gaps['time'][-1]:+.1%}"]
        table.add_row(method, *cells)
    console = Console(width=110)
    console.print(table)
    for kind, values in gaps.items():
        away = [abs(value) for value in values]
        within = sum(value <= MOST_APART[kind] for value in away)
        console.print(
            f"{kind}: {within} of {len(away)} within {MOST_APART[kind]:.0%}, median {statistics.median(away):.1%}"
        )
    return int(any(abs(value) > MOST_APART[kind] for kind, values in gaps.items() for value in values))


if __name__ == "__main__":
    sys.exit(main())
