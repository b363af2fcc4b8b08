"""What is forgotten by which training, told apart: a small model on a small company's questions and answers.

    python examples/forgetting.py FOLDER

Trains what FOLDER does not hold yet (four runs of some minutes on two cores), measures each against the model as it
was, and prints a table of what was learned and what was forgotten; FOLDER/forgetting.json has all of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tunesmith
from tunesmith.evaluation.tasks import open_network
from tunesmith.methods.keeping import general_prompts, own_words
from tunesmith.runtime import choose_precision
from tunesmith.storage import to_plain

MODEL, DATA = "smollm2-135m-instruct", "construction-faq"
SIZES = {
    "max_train_samples": 40,
    "max_validation_samples": 12,
    "max_test_samples": 20,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "check": False,
}
TOO_HIGH = 5e-4  # nearly four times the default for full tuning of this width
RUNS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "full-high": {"method": "full", "learning_rate": TOO_HIGH},
    "full-high-kl": {"method": "full", "learning_rate": TOO_HIGH, "kl_to_base": 1.0},
    "full-high-replay": {"method": "full", "learning_rate": TOO_HIGH, "replay": 0.4},
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, settings in RUNS.items():
        run = tune(name, dict(settings), folder)
        losses = [point["validation_loss"] for point in run.outcome["curve"]]
        changes = tunesmith.forgetting(run)
        found[name] = {"loss_before": losses[0], "loss_after": min(losses), "forgotten": to_plain(changes)}
        say(name, found[name])
    (folder / "forgetting.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def tune(name: str, settings: dict[str, Any], folder: Path) -> tunesmith.Run:
    if (folder / name / "manifest.json").is_file():
        return tunesmith.load(folder / name)
    if "replay" in settings:
        settings["keep_data"] = str(write_keep_data(folder / "keep.jsonl"))
    return tunesmith.tune(model=MODEL, data=DATA, output=folder / name, resume=True, **SIZES, **settings)


def write_keep_data(path: Path) -> Path:
    """The model's own answers to general questions, as rows that are to be replayed."""
    if not path.is_file():
        network = open_network(MODEL)
        rows = own_words(network, choose_precision("auto", network.model.device), length=128)
        answers = [
            network.tokenizer.decode(
                [token for token, trained in zip(row.input_ids, row.trained, strict=True) if trained],
                skip_special_tokens=True,
            )
            for row in rows
        ]
        pairs = zip(general_prompts(), answers, strict=True)
        lines = [json.dumps({"prompt": prompt, "completion": answer.strip()}) for prompt, answer in pairs]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def say(name: str, found: dict[str, Any]) -> None:
    print(f"{name}: validation loss {found['loss_before']:.3f} before, {found['loss_after']:.3f} after")
    for one in found["forgotten"]:
        change, lost = one["change"], "" if one["lost"] is None else f", {one['lost']} lost, {one['gained']} gained"
        print(
            f"  {one['measure']:<13} {one['metric']:<13} {one['base']['value']:6.3f} -> {one['tuned']['value']:6.3f}"
            f"  {change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]{lost}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
