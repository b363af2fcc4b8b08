"""transformers' Trainer and TRL's as contestants: what all of theirs are told, and when their steps begin and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from record import Record
from transformers import TrainerCallback

# Rows in the order given, whole, and nothing but training in the time that is measured.
TRAINER: dict[str, Any] = {
    "num_train_epochs": 1,
    "train_sampling_strategy": "sequential",
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}
TRL = TRAINER | {"max_length": None}


class Clock(TrainerCallback):  # type: ignore[misc]
    def __init__(self, record: Record) -> None:
        self._record = record

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._record.tick()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._record.tick()


def recorded(trainer: Any, record: Record, rows_of: Callable[[dict[str, Any]], Any]) -> Any:
    """The trainer's class, noting losses and, by `rows_of` its inputs, what each step was given."""

    class Recorded(trainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            record.note(rows_of(inputs))
            loss = super().training_step(model, inputs, *args, **kwargs)
            record.losses.append(loss.item())
            return loss

    return Recorded


def train_sft(
    model: Any, raw: Sequence[dict[str, Any]], tokenizer: Any, settings: dict[str, Any], work: Path
) -> Record:
    """TRL's SFTTrainer on rows of ids and trained positions."""
    from datasets import Dataset
    from datasets.utils import disable_progress_bars
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    record = Record()
    # The ids are given: TRL's own rendering would also train the line break after the stop token.
    columns = [
        {"input_ids": row["ids"], "labels": [i if t else -100 for i, t in zip(row["ids"], row["trained"], strict=True)]}
        for row in raw
    ]
    recorded(SFTTrainer, record, rows_of)(
        model=model,
        args=SFTConfig(output_dir=str(work / "trl"), lr_scheduler_type="constant", **TRL | settings),
        train_dataset=Dataset.from_list(columns),
        processing_class=AutoTokenizer.from_pretrained(tokenizer),
        callbacks=[Clock(record)],
    ).train()
    return record


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
