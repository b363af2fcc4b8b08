"""A step of GRPO on LoRA weights, answers drawn, scored and learned from: tunesmith beside TRL's GRPOTrainer.

    python benchmarks/rl.py [--repeats 3] [--only NAME,NAME] [--json FILE]

Same prompts, same number of answers, every answer exactly as long (nothing stops early), one update a step, a
divergence from the model as it began in the loss. The reward is the share of the letter e, which costs
nothing. Draws differ, so losses cannot agree; that the losses are the same functions is for the tests. The first step
of each is not timed.
"""

from __future__ import annotations

import json
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from contest import Contestant, Job, Result, main
from record import Record

MODEL = "smollm2-135m-instruct"
NUM_PROMPTS, PROMPT, NUM_ANSWERS, ANSWER = 4, 120, 8, 32
STEPS, WARM = 3, 1
BETA, RANK, RATE = 0.05, 16, 1e-5


def letter_e(texts: list[str]) -> list[float]:
    return [text.count("e") / max(1, len(text)) for text in texts]


def prepare(work: Path) -> None:
    """Stretches of the FAQ as prompts, and the model for all."""
    from tunesmith.data import sources
    from tunesmith.models.load import load_network
    from tunesmith.records import Conversation

    torch.manual_seed(0)
    network = load_network(MODEL, "generation")
    network.model.save_pretrained(work / "model")
    network.tokenizer.save_pretrained(work / "model")
    rows = [row for row in sources.load("construction-faq").rows if isinstance(row, Conversation)]
    text = " ".join(message.content for row in rows for message in row.messages)
    ids = network.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    rng = random.Random(0)
    starts = [rng.randrange(len(ids) - PROMPT) for _ in range(NUM_PROMPTS * STEPS)]
    (work / "prompts.json").write_text(json.dumps([ids[start : start + PROMPT] for start in starts]))


def run_tunesmith(dtype: str, work: Path) -> Result:
    from tunesmith.config_align import AlignConfig
    from tunesmith.methods.apply import put_under
    from tunesmith.methods.table import find_method
    from tunesmith.models.load import load_network
    from tunesmith.rl.loop import Trial, Trials
    from tunesmith.rl.rollout import Prompt
    from tunesmith.runtime import MetricsLog
    from tunesmith.train.course import Watch
    from tunesmith.train.terms import make_plan

    config = AlignConfig(
        model=str(work / "model"),
        data="prompts",
        algorithm="grpo",
        reward=("e",),
        beta=BETA,
        prompts_per_step=NUM_PROMPTS,
        per_device_train_batch_size=NUM_PROMPTS,
        num_generations=NUM_ANSWERS,
        max_new_tokens=ANSWER,
        lora_r=RANK,
        lora_alpha=RANK,
        eval_steps=1,
        max_steps=STEPS,
    )
    network, device = load_network(config.model, "generation"), torch.device("cpu")
    kind = getattr(torch, dtype)
    put_under(network, find_method("lora"), config, kind, lambda _: None)
    record, given = Record(), json.loads((work / "prompts.json").read_text())
    record.note(given)
    prompts = [Prompt(index, (), tuple(ids)) for index, ids in enumerate(given)]
    trial = Trial(
        network=network,
        config=config,
        plan=make_plan(config, RATE, device, kind),
        prompts=prompts,
        held_out=(),
        reward=lambda _, answers: torch.tensor(letter_e(list(answers))).numpy(),
    )

    def evaluate() -> dict[str, float]:
        record.tick()
        return {"validation_loss": 0.0}

    with mock.patch("tunesmith.models.generate.stop_token_ids", return_value=()):
        Trials(trial).run(Watch(evaluate, MetricsLog(work / "ours.jsonl"), work / "checkpoints", quiet=True), None)
    return measured(record)


def run_trl(dtype: str, settings: dict[str, Any], work: Path) -> Result:
    from datasets import Dataset
    from datasets.utils import disable_progress_bars
    from peer import TRAINER, Clock
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    given = json.loads((work / "prompts.json").read_text())
    record = Record()
    record.note(given)
    config = GRPOConfig(
        output_dir=str(work / "trl"),
        per_device_train_batch_size=NUM_PROMPTS * NUM_ANSWERS,
        num_generations=NUM_ANSWERS,
        max_completion_length=ANSWER,
        generation_kwargs={"min_new_tokens": ANSWER},
        max_steps=STEPS,
        beta=BETA,
        learning_rate=RATE,
        shuffle_dataset=False,
        **TRAINER | settings,
    )
    GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(work / "model", dtype=getattr(torch, dtype)),
        reward_funcs=lambda completions, **_: letter_e(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": tokenizer.decode(ids)} for ids in given]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock(record)],
    ).train()
    return measured(record)


def measured(record: Record) -> Result:
    """Tokens are those of the answers."""
    return record.result((STEPS - WARM) * NUM_PROMPTS * NUM_ANSWERS * ANSWER, WARM, torch.device("cpu"))


NO_CKPT = {"gradient_checkpointing": False}
AUTOCAST, FP32 = {"bf16": True}, {"bf16": False}


def trl(name: str, note: str, computing: str, weights: str, **settings: Any) -> Contestant:
    return Contestant(name, note, partial(run_trl, weights, settings), computing)


CONTESTANTS = (
    Contestant("tunesmith", "its defaults", partial(run_tunesmith, "bfloat16"), "bfloat16", is_ours=True),
    trl("trl", "its defaults: bf16 autocast, checkpointing", "bfloat16", "float32", **AUTOCAST),
    trl("trl-no-ckpt", "without checkpointing", "bfloat16", "float32", **AUTOCAST | NO_CKPT),
    trl("trl-bf16", "+ weights in bf16", "bfloat16", "bfloat16", **AUTOCAST | NO_CKPT),
    Contestant("tunesmith-fp32", "its defaults elsewhere", partial(run_tunesmith, "float32"), is_ours=True),
    trl("trl-fp32", "float32, otherwise its defaults: checkpointing", "float32", "float32", **FP32),
    trl("trl-fp32-no-ckpt", "without checkpointing", "float32", "float32", **FP32 | NO_CKPT),
)
TITLE = f"a step of GRPO: {NUM_ANSWERS} answers of {ANSWER} to {NUM_PROMPTS} prompts of {PROMPT}, LoRA {MODEL}"
# No contestant has these names: their losses are of other draws.
JOB = Job("rl", TITLE, prepare, CONTESTANTS, ("", ""), 0.0)

if __name__ == "__main__":
    sys.exit(main([JOB], __doc__.splitlines()[0]))
