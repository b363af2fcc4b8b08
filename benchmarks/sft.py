"""Supervised tuning by LoRA: tunesmith beside TRL + PEFT, on the same ids, the same trained positions, the same
initial adapter, order of rows and hyper-parameters.

    python benchmarks/sft.py [--model smollm2-135m-instruct] [--steps 8] [--repeats 2] [--only NAME,NAME] [--json FILE]

Every contestant runs in a process of its own, in turn, round after round, so that what else the machine does
falls on all of them. Steps before WARM are not timed. Exit code 1 when contestants saw other ids or when the
two float32 loss curves part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

BATCH_SIZE = 8
LEARNING_RATE = 2e-4
WARM = 2
# Largest difference of a step's loss, float32 against float32, relative to the loss.
TOLERANCE = 2e-4


@dataclass(frozen=True)
class Contestant:
    name: str
    tool: str
    dtype: str
    settings: dict[str, Any]
    note: str


NO_CKPT = {"gradient_checkpointing": False}
BF16_WEIGHTS = NO_CKPT | {"dtype": "bfloat16"}
PACKED = {"padding_free": True}
FP32 = {"bf16": False}
CONTESTANTS = (
    Contestant("tunesmith", "tunesmith", "bfloat16", {}, "its defaults where the chip has bfloat16"),
    Contestant("trl", "trl", "bfloat16", {}, "its defaults: bf16 autocast, checkpointing"),
    Contestant("trl-no-ckpt", "trl", "bfloat16", NO_CKPT, "without checkpointing"),
    Contestant("trl-bf16", "trl", "bfloat16", BF16_WEIGHTS, "+ weights in bf16"),
    Contestant("trl-packed", "trl", "bfloat16", BF16_WEIGHTS | PACKED, "+ padding-free"),
    Contestant("tunesmith-fp32", "tunesmith", "float32", {}, "its defaults elsewhere: float32"),
    Contestant("trl-fp32", "trl", "float32", FP32, "float32, otherwise its defaults: checkpointing"),
    Contestant("trl-fp32-no-ckpt", "trl", "float32", FP32 | NO_CKPT, "without checkpointing"),
    Contestant("trl-fp32-packed", "trl", "float32", FP32 | NO_CKPT | PACKED, "+ padding-free"),
)


@dataclass
class Result:
    """What a contestant says of itself. `seen` is a digest of all ids and trained positions, step by step."""

    losses: list[float]
    tokens_per_second: float
    peak_bytes: int
    seen: str


def main() -> int:
    options = parse()
    if options.child:
        contestant = next(one for one in CONTESTANTS if one.name == options.child)
        run = run_tunesmith if contestant.tool == "tunesmith" else run_trl
        print(json.dumps(asdict(run(contestant, Path(options.work)))))
        return 0
    with tempfile.TemporaryDirectory() as work:
        prepare(options.model, options.steps, Path(work))
        chosen = choose(options.only)
        results: dict[str, list[Result]] = {one.name: [] for one in chosen}
        for number in range(options.repeats):
            for one in chosen:
                print(f"round {number + 1}/{options.repeats}: {one.name} ...", file=sys.stderr, flush=True)
                results[one.name].append(run_child(one.name, work))
    return report(results, options)


def choose(only: str) -> list[Contestant]:
    """Those asked for; else all that make sense here: a chip that emulates bfloat16 would take hours for it."""
    from tunesmith.runtime import choose_precision

    if only:
        return [one for one in CONTESTANTS if one.name in only.split(",")]
    if choose_precision("auto", torch.device("cpu")) == torch.bfloat16:
        return list(CONTESTANTS)
    print("this chip has no fast bfloat16: contestants that compute in it are left out", file=sys.stderr)
    return [one for one in CONTESTANTS if one.dtype == "float32"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", default="", help="names of contestants, with commas")
    parser.add_argument("--json", type=Path, help="write all results there")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps <= WARM:
        parser.error(f"--steps must be more than {WARM}, the steps that are not timed")
    return options


def prepare(model: str, steps: int, work: Path) -> None:
    """Rows and initial adapter, on disk for all contestants. B starts away from zero: with B = 0 a wrong
    gradient for A would go unseen."""
    from peft.tuners.lora import LoraLayer

    from tunesmith.config import TuneConfig
    from tunesmith.data.tokenize import tokenize
    from tunesmith.methods.table import METHODS
    from tunesmith.models.load import load_network

    torch.manual_seed(0)
    network = load_network(model, "generation")
    rows = tokenize(make_rows(steps * BATCH_SIZE), network.tokenizer, network.max_positions)
    plain = [{"ids": list(row.input_ids), "trained": list(row.trained)} for row in rows]
    (work / "rows.json").write_text(json.dumps(plain))
    settings = {"model": model, "data": "-", "method": "lora", "lora_r": 16, "lora_alpha": 32}
    METHODS["lora"].apply(network, TuneConfig.read(given=settings))
    for module in network.model.modules():
        if isinstance(module, LoraLayer):
            torch.nn.init.normal_(module.lora_B["default"].weight, std=0.01)
    saver: Any = network.wrapper
    saver.save_pretrained(work / "adapter")
    (work / "model.json").write_text(json.dumps({"given": model, "folder": network.folder}))


def make_rows(count: int) -> Any:
    """Long prompts with short answers, the usual shape: two answers of the FAQ as context, a question about one,
    its first words as the answer."""
    from tunesmith.data import sources
    from tunesmith.records import Conversation, Examples, Message, Origin

    faq = [row.messages for row in sources.load("construction-faq").rows if isinstance(row, Conversation)]
    rng = random.Random(0)
    rows = []
    for number in range(count):
        first, second = rng.sample(faq, 2)
        context = " ".join(f"{first[-1].content} {second[-1].content}".split()[: rng.randrange(50, 80)])
        answer = " ".join(first[-1].content.split()[:8])
        turns = (Message("user", f"{context}\n\n{first[-2].content}"), Message("assistant", answer))
        rows.append(Conversation(turns, Origin("construction-faq", number)))
    return Examples("generation", tuple(rows), (), "", "")


def run_child(name: str, work: str) -> Result:
    command = [sys.executable, __file__, "--child", name, "--work", work]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return Result(**json.loads(done.stdout.strip().splitlines()[-1]))


def run_tunesmith(contestant: Contestant, work: Path) -> Result:
    from peft import PeftModel

    from tunesmith.data.pack import pack
    from tunesmith.methods.reparam import adopt_lora
    from tunesmith.models.load import load_network, settle_precision
    from tunesmith.records import TokenizedExample
    from tunesmith.runtime import peak_memory
    from tunesmith.train.loop import trainable
    from tunesmith.train.optim import make_adamw
    from tunesmith.train.step import Plan, take_step

    dtype = getattr(torch, contestant.dtype)
    raw = json.loads((work / "rows.json").read_text())
    rows = [TokenizedExample(tuple(row["ids"]), tuple(row["trained"]), None, 0, i) for i, row in enumerate(raw)]
    network = load_network(json.loads((work / "model.json").read_text())["given"], "generation")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adopt_lora(network, PeftModel.from_pretrained(network.model, work / "adapter", is_trainable=True))
    settle_precision(network, dtype)
    plan = Plan(learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE, dtype=dtype)
    parameters = trainable(network)
    optimizer = make_adamw(parameters, LEARNING_RATE, 0.0)
    network.model.train()
    losses, ends, seen = [], [], hashlib.sha256()
    for step, start in enumerate(range(0, len(rows), BATCH_SIZE)):
        chosen = rows[start : start + BATCH_SIZE]
        losses.append(take_step(network, [pack(chosen)], parameters, optimizer, plan, step).loss)
        ends.append(time.perf_counter())
        note_seen(seen, [(row.input_ids, row.trained) for row in chosen])
    return Result(losses, pace(raw, ends), peak_memory(torch.device("cpu")), seen.hexdigest())


def run_trl(contestant: Contestant, work: Path) -> Result:
    from datasets import Dataset
    from datasets.utils import disable_progress_bars
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from tunesmith.runtime import peak_memory

    disable_progress_bars()
    settings = dict(contestant.settings)
    dtype = getattr(torch, settings.pop("dtype", "float32"))
    folder = json.loads((work / "model.json").read_text())["folder"]
    raw = json.loads((work / "rows.json").read_text())
    # The ids are given: TRL's own rendering would also train the line break after the stop token.
    columns = [
        {"input_ids": row["ids"], "labels": [i if t else -100 for i, t in zip(row["ids"], row["trained"], strict=True)]}
        for row in raw
    ]
    losses, ends, seen = [], [], hashlib.sha256()

    class Recorded(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
            note_seen(seen, rows_of(inputs))
            loss = super().training_step(model, inputs, *args, **kwargs)
            losses.append(loss.item())
            return loss

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    config = SFTConfig(
        output_dir=str(work / "trl"),
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        max_length=None,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    trainer = Recorded(
        model=PeftModel.from_pretrained(model, work / "adapter", is_trainable=True),
        args=config,
        train_dataset=Dataset.from_list(columns),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[Clock()],
    )
    trainer.train()
    return Result(losses, pace(raw, ends), peak_memory(torch.device("cpu")), seen.hexdigest())


def rows_of(inputs: dict[str, Any]) -> list[tuple[list[int], list[bool]]]:
    """The rows in a collated batch of TRL's, padded or laid end to end, as ids and trained positions."""
    ids, labels = inputs["input_ids"], inputs["labels"]
    if "attention_mask" in inputs:
        real = [inputs["attention_mask"][row].bool() for row in range(len(ids))]
        pairs = [(ids[row][keep], labels[row][keep]) for row, keep in enumerate(real)]
    else:
        starts = (inputs["position_ids"][0] == 0).nonzero().flatten().tolist()
        ends = [*starts[1:], ids.shape[1]]
        pairs = [(ids[0, a:b], labels[0, a:b]) for a, b in zip(starts, ends, strict=True)]
    return [(row_T.tolist(), (label_T != -100).tolist()) for row_T, label_T in pairs]


def note_seen(digest: Any, rows: Any) -> None:
    digest.update(json.dumps([[list(ids), list(trained)] for ids, trained in rows]).encode())


def pace(raw: list[dict[str, Any]], ends: list[float]) -> float:
    """Real tokens (no padding) per second, from the end of step WARM to the end of the last."""
    return sum(len(row["ids"]) for row in raw[WARM * BATCH_SIZE :]) / (ends[-1] - ends[WARM - 1])


def report(results: dict[str, list[Result]], options: argparse.Namespace) -> int:
    speeds = {name: statistics.median(one.tokens_per_second for one in runs) for name, runs in results.items()}
    peaks = {name: max(one.peak_bytes for one in runs) for name, runs in results.items()}
    ours = next((one.name for one in CONTESTANTS if one.tool == "tunesmith" and one.name in results), "")
    rivals = [one.name for one in CONTESTANTS if one.tool == "trl" and one.name in results]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("contestant", "settings", "tokens/s", "peak RSS", f"{ours or 'tunesmith'}: speed", "memory"):
        table.add_column(title, justify="left" if title in ("contestant", "settings") else "right")
    for one in (one for one in CONTESTANTS if one.name in results):
        ratios = ("", "")
        if ours and one.name in rivals:
            paired = zip(results[ours], results[one.name], strict=True)
            speed = statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in paired)
            ratios = (f"{speed:.2f}x", f"{peaks[ours] / peaks[one.name]:.2f}x")
        table.add_row(one.name, one.note, f"{speeds[one.name]:,.0f}", f"{peaks[one.name] / 1e6:,.0f} MB", *ratios)
    console = Console(width=110)
    console.print(table)
    if rivals:
        console.print(f"fastest of TRL's settings: {max(rivals, key=lambda name: speeds[name])}")
    if options.json:
        plain = {name: [asdict(one) for one in runs] for name, runs in results.items()}
        options.json.write_text(json.dumps({"model": options.model, "results": plain}, indent=1))
    return judge(results, console)


def judge(results: dict[str, list[Result]], console: Console) -> int:
    if len({one.seen for runs in results.values() for one in runs}) != 1:
        console.print("FAILED: the contestants did not see the same ids and trained positions")
        return 1
    console.print("all contestants saw the same ids and trained positions")
    if {"tunesmith-fp32", "trl-fp32-no-ckpt"} <= results.keys():
        ours, theirs = results["tunesmith-fp32"][0].losses, results["trl-fp32-no-ckpt"][0].losses
        for name, losses in (("tunesmith", ours), ("trl", theirs)):
            console.print(f"float32 losses, {name:<9} " + " ".join(f"{loss:.5f}" for loss in losses))
        apart = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
        console.print(f"largest relative difference {apart:.1e}, allowed {TOLERANCE:.0e}")
        if apart > TOLERANCE:
            console.print("FAILED: the loss curves part")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
