"""Full tuning of an encoder as a classifier: tunesmith beside transformers' Trainer, which pads each batch to its
longest row, on the same ids, initial weights, order of rows and hyper-parameters.

    python benchmarks/classification.py [--repeats 3] [--only NAME,NAME] [--json FILE]

Rows are film review snippets and, one in four, three to eight of them laid together, as reviews are of mixed length.
Dropout is off, so that losses can be compared. The first WARM steps are not timed.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contest import Contestant, Job, Result, main

MODEL = "minilm-l6"
STEPS, WARM, BATCH_SIZE = 12, 2, 32
LEARNING_RATE = 1e-4


def prepare(work: Path) -> None:
    from tunesmith.data import sources
    from tunesmith.data.tokenize import encode_texts
    from tunesmith.models.load import load_network
    from tunesmith.records import LabelledText

    torch.manual_seed(0)
    examples = sources.load("vader-movies", "classification")
    network = load_network(MODEL, "classification", examples.class_names)
    network.model.config.hidden_dropout_prob = network.model.config.attention_probs_dropout_prob = 0.0
    network.model.save_pretrained(work / "model")
    network.tokenizer.save_pretrained(work / "model")
    rng = random.Random(0)
    labelled = [row for row in examples.rows if isinstance(row, LabelledText)]
    chosen = []
    for number in range(STEPS * BATCH_SIZE):
        row = rng.choice(labelled)
        more = [rng.choice(labelled).text for _ in range(rng.randrange(2, 8))] if number % 4 == 0 else []
        chosen.append((" ".join([row.text, *more]), examples.class_names.index(row.target)))
    ids = encode_texts([text for text, _ in chosen], network.tokenizer, network.max_positions)
    rows = [{"ids": list(one), "label": label} for (one, _), (_, label) in zip(ids, chosen, strict=True)]
    (work / "rows.json").write_text(json.dumps(rows))


def run_tunesmith(dtype: str, work: Path) -> Result:
    from tunesmith.data.pack import pack
    from tunesmith.models.embedding import use_row_gradients
    from tunesmith.models.load import load_network, settle_precision
    from tunesmith.records import TokenizedExample
    from tunesmith.train.loop import trainable
    from tunesmith.train.optim import make_optimizer
    from tunesmith.train.step import Plan, take_step

    kind = getattr(torch, dtype)
    raw = json.loads((work / "rows.json").read_text())
    rows = [TokenizedExample(tuple(r["ids"]), (False,) * len(r["ids"]), r["label"], 0, i) for i, r in enumerate(raw)]
    network = load_network(str(work / "model"), "classification", ("negative", "positive"))
    settle_precision(network, kind)
    use_row_gradients(network.model)
    plan = Plan(learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE, dtype=kind)
    parameters = trainable(network)
    optimizer = make_optimizer(parameters, LEARNING_RATE, 0.0)
    network.model.train()
    losses, times, seen = [], [time.perf_counter()], hashlib.sha256()
    for step in range(STEPS):
        chosen = rows[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
        losses.append(take_step(network, [pack(chosen)], parameters, optimizer, plan, step).loss)
        times.append(time.perf_counter())
        seen.update(json.dumps([[list(row.input_ids), row.target] for row in chosen]).encode())
    return measured(raw, losses, times, seen)


def run_trainer(settings: dict[str, Any], work: Path) -> Result:
    from datasets import Dataset
    from datasets.utils import disable_progress_bars
    from peer import TRAINER, Clock
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    disable_progress_bars()
    raw = json.loads((work / "rows.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    losses, clock, seen = [], Clock(), hashlib.sha256()

    class Recorded(Trainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
            pairs = zip(inputs["input_ids"], inputs["attention_mask"], inputs["labels"], strict=True)
            rows = [[ids[mask.bool()].tolist(), int(label)] for ids, mask, label in pairs]
            seen.update(json.dumps(rows).encode())
            loss = super().training_step(model, inputs, *args, **kwargs)
            losses.append(loss.item())
            return loss

    config = TrainingArguments(
        output_dir=str(work / "trainer"),
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        **TRAINER | settings,
    )
    Recorded(
        model=AutoModelForSequenceClassification.from_pretrained(work / "model", dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list([{"input_ids": row["ids"], "labels": row["label"]} for row in raw]),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[clock],
    ).train()
    return measured(raw, losses, clock.times, seen)


def measured(raw: list[dict[str, Any]], losses: list[float], times: list[float], seen: Any) -> Result:
    """Real tokens, no padding."""
    from tunesmith.runtime import peak_memory

    tokens = sum(len(row["ids"]) for row in raw[WARM * BATCH_SIZE :])
    return Result(losses, tokens, times[-1] - times[WARM], peak_memory(torch.device("cpu")), seen.hexdigest())


CONTESTANTS = (
    Contestant("tunesmith", "products in bfloat16", partial(run_tunesmith, "bfloat16"), "bfloat16", is_ours=True),
    Contestant("trainer", "bf16 autocast", partial(run_trainer, {"bf16": True}), "bfloat16"),
    Contestant("tunesmith-fp32", "float32", partial(run_tunesmith, "float32"), is_ours=True),
    Contestant("trainer-fp32", "float32, dynamic padding", partial(run_trainer, {"bf16": False})),
)
TITLE = f"full tuning of {MODEL} as a classifier, {BATCH_SIZE} rows of mixed length a step"
JOB = Job("classification", TITLE, prepare, CONTESTANTS, ("tunesmith-fp32", "trainer-fp32"), 2e-4)

if __name__ == "__main__":
    sys.exit(main([JOB], __doc__.splitlines()[0]))
