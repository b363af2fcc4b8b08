"""Is a reward model that was trained on whole rankings as good as one trained on their pairs? Ours beside TRL's.

    python examples/rlhf.py FOLDER                       (as far as its rankings)
    python benchmarks/reward_accuracy.py FOLDER [--seeds 3] [--epochs 1] [--rate 1e-4]

Both begin with the same weights, head included, learn from the same training part of FOLDER/rankings.jsonl in as many
steps of the same prompts or as many pairs, at the same rates, in float32, and keep what they have after the last step.
TRL's RewardTrainer gets the very ids that ours computes, pair by pair. What is right of FOLDER/unseen.jsonl is counted
in one way, with plain transformers: by the noisy labeler, and by the hidden scores that it was made from.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tunesmith.config_align import RewardConfig
from tunesmith.data import sources
from tunesmith.data.parts import load_split
from tunesmith.data.tokenize import tokenize
from tunesmith.evaluation.rankings import mean_by_prompt, pairs_of, wins
from tunesmith.models.load import load_network
from tunesmith.outcomes import Interval
from tunesmith.records import Examples, Split
from tunesmith.rewarding import train_reward

MODEL, PROMPTS = "minilm-l6", 4
WARMUP, DECAY = 0.06, 0.01
LIMIT = 512
Answers = list[list[int]]


def answers_of(examples: Examples, start: Path) -> list[Answers]:
    """The ids of each answer with its prompt, as ours are computed."""
    rows = tokenize(examples, AutoTokenizer.from_pretrained(start), LIMIT)
    borders = [(*row.answers, len(row.input_ids)) for row in rows]
    return [[list(row.input_ids[a:b]) for a, b in pairwise(places)] for row, places in zip(rows, borders, strict=True)]


def train_ours(start: Path, data: Path, parts: Split, given: argparse.Namespace, seed: int, output: Path) -> Path:
    return train_reward(configure(start, data, given, seed, output), parts, quiet=True).folder


def configure(start: Path, data: Path, given: argparse.Namespace, seed: int, output: Path) -> RewardConfig:
    settings = {
        "model": str(start),
        "data": str(data),
        "method": "full",
        "per_device_train_batch_size": PROMPTS,
        "num_train_epochs": given.epochs,
        "learning_rate": given.rate,
        "warmup_ratio": WARMUP,
        "weight_decay": DECAY,
        "eval_steps": 10**6,  # after the last step only, so that what is kept is what TRL keeps
        "precision": "fp32",
        "device": "cpu",
        "seed": seed,
        "output": str(output),
        "overwrite": True,
    }
    return RewardConfig.read(given=settings)


def train_theirs(start: Path, parts: Split, given: argparse.Namespace, seed: int, output: Path) -> Path:
    from datasets import Dataset
    from datasets.utils import disable_progress_bars
    from peer import TRL
    from trl import RewardConfig as TrlConfig
    from trl import RewardTrainer

    disable_progress_bars()
    pairs = [
        {"chosen_ids": answers[better], "rejected_ids": answers[worse]}
        for answers in answers_of(parts.train, start)  # the best first, and no ties
        for better, worse in combinations(range(len(answers)), 2)
    ]
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(start, dtype=torch.float32),
        args=TrlConfig(
            output_dir=str(output),
            per_device_train_batch_size=PROMPTS * 6,
            learning_rate=given.rate,
            warmup_steps=WARMUP,
            weight_decay=DECAY,
            lr_scheduler_type="linear",
            disable_dropout=False,
            gradient_checkpointing=False,
            bf16=False,
            seed=seed,
            **TRL | {"num_train_epochs": given.epochs, "train_sampling_strategy": "random"},
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    trainer.train()
    trainer.save_model(str(output))
    return output


@torch.inference_mode()
def rewards_of(folder: Path, rows: Sequence[Answers]) -> list[list[float]]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    return [[model(torch.tensor([ids])).logits[0, 0].item() for ids in answers] for answers in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=1e-4)
    given = parser.parse_args()
    raw = [json.loads(line) for line in (given.folder / "unseen.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in raw:  # in the order of our rows, the best first
        order = np.argsort(row["ranks"])
        row["hidden"] = [row["hidden"][place] for place in order]
    judges = {
        "the labeler": [list(range(1, len(row["ranks"]) + 1)) for row in raw],
        "the hidden scorer": [(np.argsort(np.argsort(-np.array(row["hidden"]))) + 1).tolist() for row in raw],
    }
    found: dict[tuple[str, str], list[Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for seed in range(given.seeds):
            said = train_both(work, given, seed)
            for judge, ranks in judges.items():
                right = {who: pairs_of(rewards, ranks, rewards_lengths(rewards)) for who, rewards in said.items()}
                for who, pairs in right.items():
                    found.setdefault((judge, who), []).append(wins(pairs.gap_P))
                    tell(f"seed {seed}, {who}, by {judge}", mean_by_prompt(wins(pairs.gap_P), pairs.prompt_P))
                prompt_P = right["ours"].prompt_P
    for judge in judges:
        ours_P, theirs_P = (np.mean(found[judge, who], axis=0) for who in ("ours", "trl"))
        tell(f"mean of {given.seeds} seeds, ours, by {judge}", mean_by_prompt(ours_P, prompt_P))
        tell(f"mean of {given.seeds} seeds, trl, by {judge}", mean_by_prompt(theirs_P, prompt_P))
        tell(f"ours less trl's, by {judge}", mean_by_prompt(ours_P - theirs_P, prompt_P))


def train_both(work: Path, given: argparse.Namespace, seed: int) -> dict[str, list[list[float]]]:
    """What both say of the unseen answers after training from the same start."""
    start, data = work / f"start-{seed}", given.folder / "rankings.jsonl"
    torch.manual_seed(seed)
    network = load_network(MODEL, "ranking")
    network.model.save_pretrained(start)
    network.tokenizer.save_pretrained(start)
    parts = load_split(configure(start, data, given, seed, work / "ours"))
    unseen = answers_of(sources.load(str(given.folder / "unseen.jsonl")), start)
    ours = train_ours(start, data, parts, given, seed, work / "ours")
    theirs = train_theirs(start, parts, given, seed, work / "trl")
    return {"ours": rewards_of(ours, unseen), "trl": rewards_of(theirs, unseen), "start": rewards_of(start, unseen)}


def rewards_lengths(rewards: Sequence[Sequence[float]]) -> list[list[int]]:
    """Lengths are asked for by the pairs, and not looked at here."""
    return [[0] * len(one) for one in rewards]


def tell(what: str, share: Interval) -> None:
    print(f"{what:<50} {share.value:+.1%} ({share.low:+.1%} to {share.high:+.1%})", flush=True)


if __name__ == "__main__":
    main()
