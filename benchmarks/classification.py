"""Full tuning of an encoder as a classifier: tunesmith beside transformers' Trainer, which pads each batch to its
longest row, on the same ids, initial weights, order of rows and hyper-parameters.

    python benchmarks/classification.py [--repeats 3] [--only NAME,NAME] [--json FILE]

Rows are film review snippets and, one in four, three to eight of them laid together, as reviews are of mixed length.
Dropout is off, so that losses can be compared. The first WARM steps are not timed.
"""

from __future__ import annotations

import json
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contest import Contestant, Job, Result, main
from record import Record

MODEL = "minilm-l6"
STEPS, WARM, BATCH_SIZE = 12, 2, 32
LEARNING_RATE = 1e-4


def prepare(work: Path) -> None:
    from tunesmith.data import sources
    from tunesmith.data.ids import encode_texts
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
    from ours import train

    from tunesmith.models.embedding import use_row_gradients
    from tunesmith.models.load import load_network, settle_precision
    from tunesmith.records import TokenizedExample
    from tunesmith.train.step import Plan

    kind = getattr(torch, dtype)
    raw = json.loads((work / "rows.json").read_text())
    rows = [TokenizedExample(tuple(r["ids"]), (False,) * len(r["ids"]), r["label"], 0, i) for i, r in enumerate(raw)]
    network = load_network(str(work / "model"), "classification", ("negative", "positive"))
    settle_precision(network, kind)
    use_row_gradients(network.model)
    record = Record()
    record.tick()
    given = (rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE))
    plan = Plan(learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE, dtype=kind)
    train(network, given, plan, record, lambda row: (row.input_ids, row.target))
    return measured(raw, record)


def run_trainer(settings: dict[str, Any], work: Path) -> Result:
    from datasets import Dataset
    from datasets.utils import disable_progress_bars
    from peer import TRAINER, Clock, recorded
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    disable_progress_bars()
    raw, record = json.loads((work / "rows.json").read_text()), Record()
    config = TrainingArguments(
        output_dir=str(work / "trainer"),
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        **TRAINER | settings,
    )
    recorded(Trainer, record, labelled_rows)(
        model=AutoModelForSequenceClassification.from_pretrained(work / "model", dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list([{"input_ids": row["ids"], "labels": row["label"]} for row in raw]),
        data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(work / "model")),
        callbacks=[Clock(record)],
    ).train()
    return measured(raw, record)


def labelled_rows(inputs: dict[str, Any]) -> list[tuple[list[int], int]]:
    """The rows in a padded batch."""
    parts = zip(inputs["input_ids"], inputs["attention_mask"], inputs["labels"], strict=True)
    return [(ids[mask.bool()].tolist(), int(label)) for ids, mask, label in parts]


def measured(raw: list[dict[str, Any]], record: Record) -> Result:
    """Real tokens, no padding."""
    return record.result(sum(len(row["ids"]) for row in raw[WARM * BATCH_SIZE :]), WARM, torch.device("cpu"))


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
