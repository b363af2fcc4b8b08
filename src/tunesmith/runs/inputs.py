"""What decides the course of a training, written down when it starts, compared when it goes on.

Two trainings with equal inputs on one machine have equal weights, to the bit. So a run goes on only when
they are as they were, or when each change is allowed by name and then stands in `inputs.json`.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tunesmith.config import TuneConfig
from tunesmith.errors import InputError, nearest
from tunesmith.models.load import Network
from tunesmith.records import JUDGED, Split, TokenizedExample
from tunesmith.runs.folder import INPUTS, MANIFEST, RECORDS
from tunesmith.runtime import versions
from tunesmith.storage import write_json

# Keys that may differ between the commands that begin and that go on with one run: where it is, how it is watched.
FREE = {
    "output",
    "overwrite",
    "resume",
    "allow_change",
    "extend",
    "save_steps",
    "save_minutes",
    "on_nonfinite",
    "report_to",
}
# And what changes no bit, or stands in the parts it sets.
FREE |= {"gradient_checkpointing", "recompute", "memory", "force"}
# Keys whose content is compared, or what was chosen for them, and not the words.
COMPARED_OTHERWISE = {"model", "data", "eval_data", "columns", "task", "device", "precision", "learning_rate"}
COMPARED_OTHERWISE |= {
    "encoding",
    "bad_rows",
    "check",
    "max_train_samples",
    "max_validation_samples",
    "max_test_samples",
}
PACKAGES = ("tunesmith", "torch", "transformers", "tokenizers", "peft")
# Tasks whose rows are rendered by a chat template.
WRITTEN = ("answers", "rankings")
# Recorded, but a difference is only told: the last bits may differ then.
TOLD = ("threads",)


def describe_inputs(
    config: TuneConfig,
    network: Network,
    parts: Split,
    rows: Sequence[TokenizedExample],
    learning_rate: float,
    precision: torch.dtype,
) -> dict[str, Any]:
    """Every input by the name under which a change of it is allowed."""
    installed = versions()
    settings = config.model_dump(mode="json", exclude=FREE | COMPARED_OTHERWISE)
    return {
        "model": {"name": config.model, "fingerprint": network.fingerprint},
        "data": {
            "train": parts.train.fingerprint,
            "validation": parts.validation.fingerprint,
            "rows": len(parts.train.rows),
        },
        "template": _digest(str(network.tokenizer.chat_template)) if JUDGED[network.task] in WRITTEN else None,
        "tokenizer": _digest_rows(rows),
        "learning_rate": learning_rate,
        "device": str(network.model.device.type),
        "precision": str(precision).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "judges": _describe_judges([*getattr(config, "reward", ()), *getattr(config, "gold_reward", ())]),
        **settings,
        **{package: installed[package] for package in PACKAGES},
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _describe_judges(names: Sequence[str]) -> dict[str, Any] | None:
    """What judges answers, by its content: of a run its model's files, of a function in a file that file."""
    found = []
    for name in names:
        folder, (place, _, _) = Path(name).expanduser(), name.rpartition(":")
        if (folder / MANIFEST).is_file():
            files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
            found.append(str(sorted((key, files[key]["sha256"]) for key in files if _is_of_model(key))))
        elif place.endswith(".py"):
            found.append(Path(place).expanduser().read_text(encoding="utf-8"))
        else:  # pinned by its name, as a catalogue's model is
            found.append(name)
    return {"name": list(names), "fingerprint": _digest("\n".join(found))} if names else None


def _is_of_model(file: str) -> bool:
    return "/" not in file and file not in RECORDS


def _digest_rows(rows: Sequence[TokenizedExample]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        pair = f" {row.second_at}" if row.second_at else ""  # absent before there were pairs
        answers = f" {row.answers}" if row.answers else ""
        target = row.target
        if answers and isinstance(target, tuple) and isinstance(target[0], float):
            target = target[:1]  # what a reference says of them follows from the rest, up to its last bits
        text = f"{target!r}{pair}{answers}"
        digest.update(array("q", row.input_ids).tobytes() + bytes(row.trained) + text.encode())
    return digest.hexdigest()


def read_inputs(folder: Path) -> dict[str, Any]:
    """What a run was started from.

    Raises:
        InputError: it is missing or damaged.
    """
    path = folder / INPUTS
    try:
        inputs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["inputs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: missing or damaged, so nobody can say that the run would go on as it began. "
            "Start anew with --overwrite"
        ) from error
    return inputs


def write_inputs(folder: Path, inputs: Mapping[str, Any], start: str | None) -> None:
    """Before the first step. `start` is the checkpoint of another run that this one begins at."""
    write_json(folder / INPUTS, {"format": 1, "inputs": inputs, "start": start, "changes": []})


def write_changes(folder: Path, inputs: Mapping[str, Any], changed: Collection[str], step: int) -> None:
    """The inputs from `step` on; what they were before is kept."""
    content = json.loads((folder / INPUTS).read_text(encoding="utf-8"))
    before = {key: content["inputs"].get(key) for key in sorted(changed)}
    content["changes"].append({"step": step, "before": before})
    write_json(folder / INPUTS, {**content, "inputs": inputs})


def find_start(folder: Path) -> str | None:
    start: str | None = json.loads((folder / INPUTS).read_text(encoding="utf-8"))["start"]
    return start


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Each changed input with the difference in words.

    A key that the run was begun without, by an older version, then had what is its default now.
    """
    defaults = {key: field.get_default(call_default_factory=True) for key, field in TuneConfig.model_fields.items()}
    whole = {**{key: defaults.get(key, value) for key, value in now.items()}, **before}
    keys = [key for key in whole if key not in TOLD and _core(whole[key]) != _core(now.get(key))]
    return {key: _difference(key, whole[key], now.get(key)) for key in keys}


def _core(value: Any) -> Any:
    """A model that lies elsewhere now is the same model."""
    return {key: item for key, item in value.items() if key != "name"} if isinstance(value, Mapping) else value


def _difference(key: str, before: Any, now: Any) -> str:
    if key == "data" and before and now:
        return f"data: the rows are others than before ({before['rows']:,} training rows then, {now['rows']:,} now)"
    if key == "model" and before and now:
        return f"model: the weights of '{now['name']}' are others than before"
    if key == "judges" and before and now:
        return f"judges: what judges answers ({', '.join(now['name'])}) is another than before"
    if key == "template":
        return "template: the chat template is another than before"
    if key == "tokenizer":
        return "tokenizer: the rows become other token ids than before"
    return f"{key}: {before} before, {now} now"


def refuse_changes(folder: Path, changes: Mapping[str, str], allowed: Collection[str], known: Collection[str]) -> None:
    """Raises an InputError that names every change that is not allowed."""
    for key in allowed:
        if key not in known:
            raise InputError(f"allow_change: a run has no '{key}': {nearest(key, sorted(known))}")
    refused = [text for key, text in changes.items() if key not in allowed]
    if refused:
        keys = ",".join(key for key in changes if key not in allowed)
        raise InputError(
            f"'{folder}' was begun with other inputs, so going on would not be the same training:\n  "
            + "\n  ".join(refused)
            + f"\nGive what was given before, start anew with --overwrite, or accept it with --allow-change {keys}"
        )
