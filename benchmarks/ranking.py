"""A reward model's ranking loss for K answers to one prompt, forward and backward: tunesmith beside TRL.

    python benchmarks/ranking.py [--repeats 3] [--only NAME,NAME] [--json FILE]

TRL's RewardTrainer takes pairs, so K answers are K (K - 1) / 2 pairs of prompt and answer twice over. Here the prompt
is computed once and each answer once, and the loss is the same mean over all pairs (Ouyang et al. 2022, arXiv
2203.02155, equation 1). The first step of each is not timed.
"""

from __future__ import annotations

import json
import random
import sys
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from contest import Contestant, Job, Result, main
from record import Record

MODEL = "smollm2-135m-instruct"
NUM_ANSWERS, PROMPT, ANSWER = 6, 300, 50
STEPS, WARM = 2, 1
# TRL's pairs in so many passes, with the gradients added up: all at once they would not fit a laptop.
PASSES = 3
PAIRS = list(combinations(range(NUM_ANSWERS), 2))


def prepare(work: Path) -> None:
    """Prompts with answers, best first, as random ids, and one model with a new head for all."""
    from tunesmith.models.load import load_network

    torch.manual_seed(0)
    network = load_network(MODEL, "regression")
    network.model.save_pretrained(work / "model")
    network.tokenizer.save_pretrained(work / "model")
    rng = random.Random(0)
    draw = partial(rng.randrange, 1_000, network.model.config.vocab_size)
    prompts = [[draw() for _ in range(PROMPT)] for _ in range(STEPS)]
    rows = [[[*prompt, *(draw() for _ in range(ANSWER))] for _ in range(NUM_ANSWERS)] for prompt in prompts]
    (work / "rows.json").write_text(json.dumps(rows))


def run_tunesmith(dtype: str, memory: str, work: Path) -> Result:
    from tunesmith.data.pack import pack
    from tunesmith.models.embedding import clear_gradients, use_row_gradients
    from tunesmith.models.load import load_network, settle_precision
    from tunesmith.models.recompute import set_recompute
    from tunesmith.records import TokenizedExample
    from tunesmith.runtime import autocast
    from tunesmith.train.objective import judged_losses

    kind = getattr(torch, dtype)
    network = load_network(str(work / "model"), "ranking")
    settle_precision(network, kind)
    use_row_gradients(network.model)
    set_recompute(memory != "speed")
    optimizer = torch.optim.SGD(network.model.parameters())  # takes no step, as TRL's learns nothing
    record = Record()
    record.tick()
    for answers in json.loads((work / "rows.json").read_text()):
        ids = answers[0][:PROMPT] + [token for one in answers for token in one[PROMPT:]]
        begins = tuple(PROMPT + ANSWER * number for number in range(NUM_ANSWERS))
        trained = tuple(place >= PROMPT for place in range(len(ids)))
        ranks = tuple(range(1, NUM_ANSWERS + 1))
        batch = pack([TokenizedExample(tuple(ids), trained, ranks, 0, 0, answers=begins)], share=True)
        with autocast(network.model.device, kind):
            loss = judged_losses(network, batch)[0].mean()
        loss.backward()
        record.tick()
        record.losses.append(loss.item())
        clear_gradients(network.model, optimizer)
        record.note(answers)
    return measured(record)


def run_trl(settings: dict[str, Any], work: Path) -> Result:
    from datasets import Dataset
    from datasets.utils import disable_progress_bars
    from peer import TRL, Clock
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    disable_progress_bars()
    prompts = json.loads((work / "rows.json").read_text())
    pairs = [{"chosen_ids": one[best], "rejected_ids": one[worst]} for one in prompts for best, worst in PAIRS]
    record = Record()
    for answers in prompts:
        record.note(answers)

    class Recorded(RewardTrainer):  # type: ignore[misc]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            record.losses.append(loss.item())
            return loss

    config = RewardConfig(
        output_dir=str(work / "trl"),
        per_device_train_batch_size=len(PAIRS) // PASSES,
        gradient_accumulation_steps=PASSES,
        # Nothing is learned, so that every step is one of the same weights.
        learning_rate=0.0,
        **TRL | settings,
    )
    Recorded(
        model=AutoModelForSequenceClassification.from_pretrained(work / "model", dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(work / "model"),
        callbacks=[Clock(record)],
    ).train()
    losses = record.losses
    record.losses = [sum(losses[start : start + PASSES]) / PASSES for start in range(0, len(losses), PASSES)]
    return measured(record)


def measured(record: Record) -> Result:
    """Tokens are those of the prompt and each answer once, whatever was computed."""
    return record.result((STEPS - WARM) * (PROMPT + NUM_ANSWERS * ANSWER), WARM, torch.device("cpu"))


NO_CKPT = {"gradient_checkpointing": False}
FP32 = {"bf16": False}


def ours(name: str, note: str, dtype: str, memory: str = "balanced") -> Contestant:
    return Contestant(name, note, partial(run_tunesmith, dtype, memory), dtype, is_ours=True)


CONTESTANTS = (
    ours("tunesmith", "its defaults where the chip has bfloat16", "bfloat16"),
    ours("tunesmith-speed", "memory speed: copies, attention weights, norms, gates kept", "bfloat16", "speed"),
    Contestant("trl", "its defaults: bf16 autocast, checkpointing", partial(run_trl, {}), "bfloat16"),
    Contestant("trl-no-ckpt", "without checkpointing", partial(run_trl, NO_CKPT), "bfloat16"),
    ours("tunesmith-fp32", "its defaults elsewhere: float32", "float32"),
    Contestant("trl-fp32", "float32, otherwise its defaults: checkpointing", partial(run_trl, FP32)),
    Contestant("trl-fp32-no-ckpt", "without checkpointing", partial(run_trl, FP32 | NO_CKPT)),
)
TITLE = f"ranking loss of {NUM_ANSWERS} answers of {ANSWER} tokens to a prompt of {PROMPT}, full {MODEL}"
JOB = Job("ranking", TITLE, prepare, CONTESTANTS, ("tunesmith-fp32", "trl-fp32-no-ckpt"), 1e-4)

if __name__ == "__main__":
    sys.exit(main([JOB], __doc__.splitlines()[0]))
