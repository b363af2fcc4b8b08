"""Supervised tuning of a decoder: tunesmith beside TRL, on the same ids, the same trained positions, the same initial
weights, order of rows and hyper-parameters.

    python benchmarks/sft.py --job lora|full|last-layers [--repeats 3] [--only NAME,NAME] [--json FILE]

lora, full     tokens/s of single steps, the first WARM not counted
last-layers    the wall time of whole trainings of the last LAST layers over EPOCHS epochs, frozen blocks and all
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contest import Contestant, Job, Result, main
from record import Record

MODEL = "smollm2-135m-instruct"
BATCH_SIZE = 8
STEPS, WARM = 5, 2
LAST, EPOCHS = 6, 4
LEARNING_RATE = 2e-4


def prepare(method: str, work: Path) -> None:
    """Rows and, for LoRA, an initial adapter, on disk for all contestants. B starts away from zero: with B = 0 a
    wrong gradient for A would go unseen."""
    from peft.tuners.lora import LoraLayer

    from tunesmith.data.tokenize import tokenize
    from tunesmith.models.load import load_network

    torch.manual_seed(0)
    network = load_network(MODEL, "generation")
    rows = tokenize(make_rows(STEPS * BATCH_SIZE), network.tokenizer, network.max_positions)
    plain = [{"ids": list(row.input_ids), "trained": list(row.trained)} for row in rows]
    (work / "rows.json").write_text(json.dumps(plain))
    (work / "model.json").write_text(json.dumps(network.folder))
    if method == "lora":
        apply(network, method)
        for module in network.model.modules():
            if isinstance(module, LoraLayer):
                torch.nn.init.normal_(module.lora_B["default"].weight, std=0.01)
        saver: Any = network.wrapper
        saver.save_pretrained(work / "adapter")


def apply(network: Any, method: str) -> None:
    from tunesmith.config import TuneConfig
    from tunesmith.methods.table import METHODS

    settings = {"model": MODEL, "data": "-", "method": method, "num_last_layers": LAST}
    METHODS[method].apply(network, TuneConfig.read(given=settings))


def batches(num_rows: int, method: str) -> Iterator[list[int]]:
    """Rows of each step, in the order given: the sampler is not what is compared."""
    for _ in range(EPOCHS if method == "last-layers" else 1):
        for start in range(0, num_rows, BATCH_SIZE):
            yield list(range(start, start + BATCH_SIZE))


def run_tunesmith(method: str, dtype: str, memory: str, work: Path) -> Result:
    from ours import adopt, train

    from tunesmith.models.checkpointing import checkpoint_blocks
    from tunesmith.models.load import load_network, settle_precision
    from tunesmith.models.prefix import cached_prefix
    from tunesmith.models.recompute import set_recompute
    from tunesmith.records import TokenizedExample
    from tunesmith.train.step import Plan

    kind = getattr(torch, dtype)
    raw = json.loads((work / "rows.json").read_text())
    rows = [TokenizedExample(tuple(row["ids"]), tuple(row["trained"]), None, 0, i) for i, row in enumerate(raw)]
    network = load_network(MODEL, "generation")
    if method == "lora":
        adopt(network, work / "adapter")
    else:
        apply(network, method)
    settle_precision(network, kind)
    is_low = memory in ("low", "least")
    if is_low:
        checkpoint_blocks(network)
    set_recompute(memory != "speed")
    plan = Plan(
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        dtype=kind,
        optim="adamw_8bit" if is_low else "adamw",
        optimizer_in_backward=memory == "least",
    )
    record = Record()
    record.tick()
    with cached_prefix(network, rows, kind, quiet=True) if method == "last-layers" else nullcontext():
        given = ([rows[index] for index in chosen] for chosen in batches(len(rows), method))
        train(network, given, plan, record, lambda row: (row.input_ids, row.trained))
    return measured(method, raw, record)


def run_trl(method: str, settings: dict[str, Any], work: Path) -> Result:
    from peer import train_sft

    settings = {"per_device_train_batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE} | settings
    if method == "last-layers":
        settings["num_train_epochs"] = EPOCHS
    model = trl_model(method, getattr(torch, settings.pop("dtype", "float32")), work)
    raw = json.loads((work / "rows.json").read_text())
    folder = json.loads((work / "model.json").read_text())
    return measured(method, raw, train_sft(model, raw, folder, settings, work))


def trl_model(method: str, dtype: torch.dtype, work: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(json.loads((work / "model.json").read_text()), dtype=dtype)
    if method == "lora":
        return PeftModel.from_pretrained(model, work / "adapter", is_trainable=True)
    if method == "last-layers":
        model.requires_grad_(False)
        for module in (*model.model.layers[-LAST:], model.model.norm):
            module.requires_grad_(True)
    return model


def measured(method: str, raw: list[dict[str, Any]], record: Record) -> Result:
    """Real tokens, no padding, and the seconds from the end of step WARM, or of a whole training, to its end."""
    warm = 0 if method == "last-layers" else WARM
    steps = list(batches(len(raw), method))[warm:]
    tokens = sum(len(raw[index]["ids"]) for chosen in steps for index in chosen)
    return record.result(tokens, warm, torch.device("cpu"))


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


NO_CKPT = {"gradient_checkpointing": False}
BF16_WEIGHTS = NO_CKPT | {"dtype": "bfloat16"}
PACKED = {"padding_free": True}
FP32 = {"bf16": False}


def contestants(method: str) -> tuple[Contestant, ...]:
    def trl(name: str, note: str, settings: dict[str, Any], dtype: str) -> Contestant:
        return Contestant(name, note, partial(run_trl, method, settings), dtype)

    def ours(name: str, note: str, dtype: str, memory: str = "balanced") -> Contestant:
        return Contestant(name, note, partial(run_tunesmith, method, dtype, memory), dtype, is_ours=True)

    # Frozen weights may be kept in bfloat16; trained ones lose what is smaller than their eight bits.
    small = (trl("trl-bf16", "+ weights in bf16", BF16_WEIGHTS, "bfloat16"),) if method == "lora" else ()
    # Gradients are clipped each by itself there, so that only the first losses are the others'.
    least = "memory low, updates in the backward pass"
    smallest = tuple(
        ours(f"tunesmith-least{suffix}", least, dtype, "least")
        for suffix, dtype in (("", "bfloat16"), ("-fp32", "float32"))
        if method == "full"
    )
    packed = BF16_WEIGHTS | PACKED if method == "lora" else NO_CKPT | PACKED
    return (
        ours("tunesmith", "its defaults where the chip has bfloat16", "bfloat16"),
        ours("tunesmith-low", "memory low: checkpointing, states in 8 bits", "bfloat16", "low"),
        ours("tunesmith-speed", "memory speed: attention weights, norms, gates kept", "bfloat16", "speed"),
        trl("trl", "its defaults: bf16 autocast, checkpointing", {}, "bfloat16"),
        trl("trl-no-ckpt", "without checkpointing", NO_CKPT, "bfloat16"),
        *small,
        trl("trl-packed", "+ padding-free", packed, "bfloat16"),
        ours("tunesmith-fp32", "its defaults elsewhere: float32", "float32"),
        ours("tunesmith-low-fp32", "memory low: checkpointing, states in 8 bits", "float32", "low"),
        trl("trl-fp32", "float32, otherwise its defaults: checkpointing", FP32, "float32"),
        trl("trl-fp32-no-ckpt", "without checkpointing", FP32 | NO_CKPT, "float32"),
        trl("trl-fp32-packed", "+ padding-free", FP32 | NO_CKPT | PACKED, "float32"),
        *smallest,
    )


def job(method: str, title: str) -> Job:
    prepared: Callable[[Path], None] = partial(prepare, method)
    return Job(method, title, prepared, contestants(method), ("tunesmith-fp32", "trl-fp32-no-ckpt"), 2e-4)


JOBS = (
    job("lora", f"LoRA of {MODEL}, {BATCH_SIZE} rows a step"),
    job("full", f"full tuning of {MODEL}, {BATCH_SIZE} rows a step"),
    job("last-layers", f"the last {LAST} layers of {MODEL}, {EPOCHS} epochs, wall time"),
)

if __name__ == "__main__":
    sys.exit(main(JOBS, __doc__.splitlines()[0]))
