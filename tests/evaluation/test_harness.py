"""An exported model in lm-evaluation-harness, on a task that is defined here: the same accuracy as ours, row by row.

Needs the [harness] extra, which `make soak` installs; without it these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.parity.tiny import make_model, make_tokenizer

import tunesmith
from tunesmith.config import ExportConfig
from tunesmith.data import sources
from tunesmith.data.ids import prompt_ids
from tunesmith.evaluation.prompting import WORDINGS, Prompting
from tunesmith.evaluation.tasks import label_logprobs, texts_of
from tunesmith.export import export
from tunesmith.models.load import load_network, resolve_model

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed ([harness])"),
    pytest.mark.filterwarnings("default"),  # the harness's own
]


def ask_harness(folder: str, rows: list[dict[str, Any]], place: Path) -> list[int]:
    """The choice of the highest log-likelihood for each row, by the harness."""
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    place.mkdir()
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = ConfigurableTask(
        config={
            "task": "ours",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(place / "rows.jsonl")}, "cache_dir": str(place / "cache")},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{prompt}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{label}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        }
    )
    model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=8, add_bos_token=False)
    found = simple_evaluate(model=model, tasks=[task], bootstrap_iters=0, log_samples=True)
    samples = sorted(found["samples"]["ours"], key=lambda sample: sample["doc_id"])
    said = [int(np.argmax([float(resp[0]) for resp in sample["filtered_resps"]])) for sample in samples]
    share = np.mean([said[at] == row["label"] for at, row in enumerate(rows)])
    assert found["results"]["ours"]["acc,none"] == pytest.approx(share)
    return said


def compare_with_harness(folder: str, data: Any, num_rows: int, place: Path) -> tuple[float, float]:
    """Accuracy as we have it and as the harness has it; every row must be answered alike."""
    network = load_network(folder, "generation")
    network.model.eval()
    examples = sources.load(data, "classification")
    texts, names = texts_of(examples)[:num_rows], examples.class_names
    ends = [len(network.tokenizer(name, add_special_tokens=False)["input_ids"]) for name in names]
    assert len(set(ends)) == 1, "ours is per token: it is the harness's only where labels are of a length"
    targets = [names.index(row.target) for row in list(examples.rows)[:num_rows]]
    prompting = Prompting(WORDINGS["classification"][0])
    messages = [prompting.ask_label(text, (), names) for text in texts]
    ours = label_logprobs(network, messages, names, torch.float32).argmax(1).tolist()
    stop = network.tokenizer.eos_token
    rows = []
    for message, target in zip(messages, targets, strict=True):
        prompt = network.tokenizer.decode(prompt_ids((message,), network.tokenizer), skip_special_tokens=False)
        rows.append({"prompt": prompt, "choices": [name + stop for name in names], "label": target})
    theirs = ask_harness(folder, rows, place)
    assert theirs == ours
    return float(np.mean(np.array(ours) == targets)), float(np.mean(np.array(theirs) == targets))


def test_an_exported_model_answers_alike(tmp_path: Path) -> None:
    model = make_model("llama", "generation")
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    pairs = [{"prompt": f"w{5 + at % 80}", "completion": f"w{6 + at % 80}"} for at in range(40)]
    run = tunesmith.tune(
        model=str(tmp_path / "model"), data=pairs, output=tmp_path / "run", num_train_epochs=1, quiet=True
    )
    export(ExportConfig(runs=(run.folder,), output=tmp_path / "merged", to="merged"))
    data = [{"text": f"w{5 + at % 80} w{6 + 3 * at % 70}", "label": ("w20", "w30")[at % 2]} for at in range(30)]
    compare_with_harness(str(tmp_path / "merged"), data, 30, tmp_path / "asked")


@pytest.mark.fetch
def test_a_pretrained_model_answers_alike(tmp_path: Path) -> None:
    folder = resolve_model("smollm2-135m-instruct")
    ours, theirs = compare_with_harness(folder, "vader-movies", 100, tmp_path / "asked")
    print(f"accuracy on 100 rows: tunesmith {ours:.3f}, lm_eval {theirs:.3f}")
