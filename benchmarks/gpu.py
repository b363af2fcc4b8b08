"""Training on a GPU: tunesmith beside TRL, with Liger's kernels and packing where they are installed, on a Llama of 1.1
billion weights drawn at random and rows of mixed length. Needs no network: all is made on the spot.

    python benchmarks/gpu.py [--job lora|full] [--repeats 3] [--only NAME,NAME] [--json FILE]

Without a GPU the same runs on a model of a hundred thousand weights, which tells that it runs and nothing about speed.
The first WARM steps are not timed. MFU: the FLOPs of the weights' products alone (6 a token and weight trained in full,
4 beside LoRA, the head where a token is judged), over the time, over the chip's data sheet (`tunesmith.chips`).
"""

from __future__ import annotations

import importlib.util
import json
import random
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contest import Contestant, Job, Result, main
from record import Record

HAS_GPU = torch.cuda.is_available()
SIZES: dict[str, int] = (
    {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
    if HAS_GPU
    else {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 8}
)
DTYPE = torch.bfloat16 if HAS_GPU else torch.float32
VOCABULARY, LONGEST = (32_000, 1024) if HAS_GPU else (512, 64)
STEPS, WARM, BATCH_SIZE = 12, 4, 16
LEARNING_RATE = 1e-4


def prepare(method: str, work: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    heads = SIZES["num_attention_heads"]
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=2 * LONGEST, num_key_value_heads=heads // 8, **SIZES
    )
    model = LlamaForCausalLM(config).to(DTYPE)
    words = {f"<{number}>": number for number in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<0>")), pad_token="<0>", eos_token="<2>"
    )
    model.save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    if method == "lora":
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.01)
        adapted.save_pretrained(work / "adapter")
    rng = random.Random(0)
    rows = []
    for _ in range(STEPS * BATCH_SIZE):
        length = rng.randrange(LONGEST // 16, LONGEST)
        ids = [rng.randrange(3, VOCABULARY) for _ in range(length)]
        rows.append({"ids": ids, "trained": [place >= 2 * length // 3 for place in range(length)]})
    (work / "rows.json").write_text(json.dumps(rows))


def run_tunesmith(method: str, work: Path) -> Result:
    from ours import adopt, train

    from tunesmith.methods.full import train_everything
    from tunesmith.models.load import load_network, move, settle_precision
    from tunesmith.records import TokenizedExample
    from tunesmith.runtime import choose_device
    from tunesmith.train.step import Plan

    device, raw = choose_device(), json.loads((work / "rows.json").read_text())
    rows = [TokenizedExample(tuple(row["ids"]), tuple(row["trained"]), None, 0, i) for i, row in enumerate(raw)]
    network = load_network(str(work / "model"), "generation")
    if method == "lora":
        adopt(network, work / "adapter")
    else:
        train_everything(network, None)  # type: ignore[arg-type]  # it reads no settings
    settle_precision(network, DTYPE)
    move(network, device)
    plan = Plan(learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE, device=device, dtype=DTYPE)
    record = Record()
    record.tick()
    given = (rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE))
    train(network, given, plan, record, lambda row: (row.input_ids, row.trained))
    return measured(raw, record)


def run_trl(method: str, settings: dict[str, Any], work: Path) -> Result:
    from peer import train_sft
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    own = {"use_cpu": not HAS_GPU, "bf16": HAS_GPU, "gradient_checkpointing": False}
    own |= {"per_device_train_batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE}
    settings = own | settings
    attention = settings.pop("attention", "sdpa")
    raw = json.loads((work / "rows.json").read_text())
    dtype = DTYPE if method == "lora" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=dtype, attn_implementation=attention)
    if method == "lora":
        model = PeftModel.from_pretrained(model, work / "adapter", is_trainable=True)
    return measured(raw, train_sft(model, raw, work / "model", settings, work))


def measured(raw: list[dict[str, Any]], record: Record) -> Result:
    from tunesmith.runtime import choose_device

    return record.result(sum(len(row["ids"]) for row in raw[WARM * BATCH_SIZE :]), WARM, choose_device())


def name_mfu(method: str, results: dict[str, list[Result]]) -> list[str]:
    from tunesmith.chips import CHIPS

    device = torch.cuda.get_device_name().lower() if HAS_GPU else "no GPU"
    chip = next((chip for name, chip in CHIPS.items() if name.split("-")[0] in device.replace(" ", "")), None)
    if chip is None:
        return [f"MFU: unknown chip ({device})"]
    width, inner, layers = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["num_hidden_layers"]
    weights = layers * (width * width * (2 + 2 / 8) + 3 * width * inner) + VOCABULARY * width / 3
    flops = weights * (4 if method == "lora" else 6)
    pace = {name: statistics.median(run.tokens_per_second for run in runs) for name, runs in results.items()}
    return [f"MFU on {device}: " + ", ".join(f"{name} {speed * flops / chip.bf16:.1%}" for name, speed in pace.items())]


def job(method: str) -> Job:
    def trl(name: str, note: str, needs: str, **settings: Any) -> list[Contestant]:
        is_there = not needs or importlib.util.find_spec(needs) is not None
        return [Contestant(name, note, partial(run_trl, method, settings))] if is_there else []

    liger = {"use_liger_kernel": True}
    packed = {"padding_free": True, "attention": "flash_attention_2"}
    contestants = (
        Contestant("tunesmith", "its defaults", partial(run_tunesmith, method), is_ours=True),
        *trl("trl", "sdpa, padded, no checkpointing", ""),
        *trl("trl-liger", "+ Liger kernels", "liger_kernel", **liger),
        *trl("trl-packed", "padding-free, flash attention", "flash_attn", **packed),
        *(trl("trl-liger-packed", "both", "flash_attn", **liger, **packed) if HAS_LIGER else []),
    )
    title = (
        f"{method}, Llama of {SIZES['num_hidden_layers']} layers, {BATCH_SIZE} rows of up to {LONGEST} tokens a step"
    )
    # Both multiply in bfloat16, so losses agree to its precision.
    return Job(
        method, title, partial(prepare, method), contestants, ("tunesmith", "trl"), 2e-2, partial(name_mfu, method)
    )


HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None
JOBS = (job("lora"), job("full"))

if __name__ == "__main__":
    sys.exit(main(JOBS, __doc__.splitlines()[0]))
