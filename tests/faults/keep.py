"""Makes the runs under kept/: one finished and one interrupted, by this version, for all later ones to open.

    python -m tests.faults.keep tests/faults/kept/format-1

Run once for each format of a run's files; what it has made is never made again.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from tests.faults.survival import Attempt, digest, make_rows
from tests.parity.tiny import VOCABULARY, make_tokenizer
from transformers import BertConfig, BertForSequenceClassification

from tunesmith.runs.run import Run

TEXTS = ["w5 w6 w7", "w40 w41", "w80 w9 w10 w11"]
SHARED = ["--model", "base", "--data", "rows.jsonl", "--precision", "fp32", "--device", "cpu", "--lora-r", "2"]


def logits(run: Run) -> list[list[float]]:
    from tunesmith.data.ids import encode_texts
    from tunesmith.records import TokenizedExample
    from tunesmith.train.validate import validate

    network = run.network
    encoded = encode_texts(TEXTS, network.tokenizer, 60)
    rows = [TokenizedExample(ids, (False,) * len(ids), 0, cut, index) for index, (ids, cut) in enumerate(encoded)]
    found: list[list[float]] = validate(network, rows, torch.float32).logits.tolist()
    return found


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    os.chdir(folder)  # names in the runs are relative, so that they open anywhere
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=12, max_position_embeddings=64, num_labels=3)
    BertForSequenceClassification(config).save_pretrained("base")
    make_tokenizer().save_pretrained("base")
    make_rows("classification", Path("rows.jsonl"))
    log = Path("log.txt")
    command = ["tune", *SHARED, "--method", "lora", "--num-train-epochs", "2"]
    assert Attempt([*command, "--output", "finished"], log).finish() == 0
    cut = [*command, "--output", "interrupted", "--save-steps", "1"]
    assert Attempt(cut, log, stop_after=4).finish() == -9
    for left_over in [log, *Path().glob("*/.lock"), *Path().glob("*/.owner.json")]:
        left_over.unlink()
    expected = {"logits": logits(Run.open("finished")), "digest": digest(Path("finished"))}
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
