"""A million rows of chat read, checked and tokenized beside `datasets`: rows/s, MB/s and peak memory.

    python benchmarks/data.py [--rows 250000,1000000] [--only NAME,NAME] [--json FILE]

tunesmith        reads, recognises and tokenizes with the signal's masks; then checks the rows
tunesmith-check  the same rows looked at by every check of `tunesmith data check`
datasets         load_dataset and a batched map with the chat template and the tokenizer, ids only, two processes

Every contestant runs in a process of its own, with caches that are empty when it begins.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

MODEL = "smollm2-135m-instruct"
CONTESTANTS = ("tunesmith", "datasets", "tunesmith-check")
WORDS = 130  # of an answer, on average: a row has about a kilobyte


def write_rows(path: Path, count: int) -> None:
    """Questions and answers of words with the frequencies of a language: the n-th word 1/n times as often."""
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar", "en", "is", "ol", "un")]
    words = ["".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3)))) for _ in range(20_000)]
    odds = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(words))))
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            question = " ".join(draw.choices(words, cum_weights=odds, k=draw.randrange(8, 40)))
            answer = " ".join(draw.choices(words, cum_weights=odds, k=draw.randrange(40, 2 * WORDS - 40)))
            turns = [
                {"role": "user", "content": f"{question.capitalize()}?"},
                {"role": "assistant", "content": f"{answer.capitalize()}."},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")


def run_ours(file: Path) -> dict[str, Any]:
    from tunesmith.data import sources, tokens
    from tunesmith.data.tokenize import tokenize
    from tunesmith.models.load import load_tokenizer, resolve_model

    # Nothing is kept from an earlier run, and what is kept is written.
    tokens.cache_root = lambda: Path(os.environ["TMPDIR"])
    started = time.perf_counter()
    examples = sources.load(file)
    read = time.perf_counter()
    tokenizer = load_tokenizer(resolve_model(MODEL), MODEL, "generation")
    rows = tokenize(examples, tokenizer, 8192)
    return {
        "read": read - started,
        "tokenize": time.perf_counter() - read,
        "rows": len(rows),
        "tokens": rows.signal.num_tokens,
    }


def run_check(file: Path) -> dict[str, Any]:
    from tunesmith.data import sources
    from tunesmith.data.quality.report import check

    started = time.perf_counter()
    examples = sources.load(file)
    read = time.perf_counter()
    report = check(examples)
    return {
        "read": read - started,
        "check": time.perf_counter() - read,
        "rows": len(examples.rows),
        "findings": [f"{one.check}: {one.count}" for one in report.findings],
    }


def run_datasets(file: Path) -> dict[str, Any]:
    import datasets
    from transformers import AutoTokenizer

    from tunesmith import assets

    started = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=str(file), split="train")
    read = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(assets.model_folder(MODEL))

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        texts = tokenizer.apply_chat_template(batch["messages"], tokenize=False)
        return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}

    made = rows.map(encode, batched=True, remove_columns=["messages"], num_proc=2)
    seconds = time.perf_counter() - read
    tokens = sum(made.data.column("input_ids").combine_chunks().value_lengths().to_pylist())
    return {"read": read - started, "tokenize": seconds, "rows": len(made), "tokens": tokens}


RUNS = {"tunesmith": run_ours, "tunesmith-check": run_check, "datasets": run_datasets}


def measure(name: str, file: Path, work: Path) -> dict[str, Any]:
    """Runs a contestant and watches the memory of all its processes: what is theirs alone, in bytes."""
    cache = Path(tempfile.mkdtemp(dir=work))
    settings = {"HF_DATASETS_CACHE": str(cache), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TMPDIR": str(cache)}
    command = [sys.executable, __file__, "--child", name, "--file", str(file)]
    process = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True)
    peak = [0]
    watch = threading.Thread(target=_watch, args=(psutil.Process(process.pid), peak))
    watch.start()
    output, _ = process.communicate()
    watch.join()
    if process.returncode:
        raise SystemExit(f"{name} failed")
    return {**json.loads(output.splitlines()[-1]), "peak": peak[0]}


def _watch(process: psutil.Process, peak: list[int]) -> None:
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        total = 0
        try:
            for one in [process, *process.children(recursive=True)]:
                total += one.memory_info().rss
        except psutil.Error:
            pass
        peak[0] = max(peak[0], total)
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="250000,1000000")
    parser.add_argument("--only", default=",".join(CONTESTANTS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=CONTESTANTS)
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    if given.child:
        return print(json.dumps(RUNS[given.child](given.file)))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for count in map(int, given.rows.split(",")):
            file = Path(folder) / f"{count}.jsonl"
            write_rows(file, count)
            for name in given.only.split(","):
                print(f"{count:,} rows: {name} ...", file=sys.stderr, flush=True)
                result = measure(name, file, Path(folder))
                found.append({"contestant": name, "bytes": file.stat().st_size, **result})
            file.unlink()
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    report(found)


def report(found: list[dict[str, Any]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("contestant", "rows", "MB", "read s", "tokenize or check s", "rows/s", "MB/s", "peak memory MB"):
        table.add_column(title, justify="left" if title == "contestant" else "right")
    for one in found:
        work = one.get("tokenize", one.get("check", 0.0))
        seconds = one["read"] + work
        cells = (f"{one['rows']:,}", f"{one['bytes'] / 1e6:,.0f}", f"{one['read']:.1f}", f"{work:.1f}")
        rates = (f"{one['rows'] / seconds:,.0f}", f"{one['bytes'] / 1e6 / seconds:.1f}", f"{one['peak'] / 1e6:,.0f}")
        table.add_row(one["contestant"], *cells, *rates)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
