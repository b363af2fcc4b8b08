"""Multi-label and token classification, and pairs, from rows to a run and what it says: on tiny models of real classes.

What is saved is loaded by plain transformers and PEFT, which must give the same logits on a padded batch.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)

import tunesmith
from tests.faults.survival import digest
from tests.parity.tiny import make_model, make_tokenizer
from tunesmith.config import PlanConfig, TuneConfig
from tunesmith.config_compare import CompareConfig
from tunesmith.data import sources
from tunesmith.data.parts import split_examples
from tunesmith.data.tokenize import tokenize
from tunesmith.errors import InputError
from tunesmith.evaluation.compare import compare
from tunesmith.evaluation.predict import predict_file
from tunesmith.evaluation.readings import READINGS, by_row
from tunesmith.methods.table import METHODS
from tunesmith.models.load import Network
from tunesmith.planning import plan
from tunesmith.records import Examples, Origin, Task
from tunesmith.runs.run import Run
from tunesmith.train import loop, step
from tunesmith.train.validate import validate
from tunesmith.tuning import prepare, tune

AUTO = {"token-classification": AutoModelForTokenClassification}
SMALL = {"lora_r": 2, "num_virtual_tokens": 3, "bottleneck_size": 4, "num_last_layers": 1}
QUICK: dict[str, Any] = {
    "precision": "fp32",
    "device": "cpu",
    "num_train_epochs": 1,
    "learning_rate": 3e-3,
    "check": False,
    **SMALL,
}


def make_rows(kind: str, num_rows: int = 60) -> list[dict[str, Any]]:
    """Each word's tag, and whether a class holds, follows from its number; pairs say whether both begin alike."""
    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    for index in range(num_rows):
        numbers = [rng.randrange(6, 90) for _ in range(rng.randrange(2, 9))] + [5 + index]
        words = [f"w{number}" for number in numbers]
        if kind == "token-classification":
            rows.append({"words": words, "tags": [("O", "B-X", "I-X")[number % 3] for number in numbers]})
        elif kind == "multi-label":
            labels = [name for at, name in enumerate("abc") if any(number % 7 == at for number in numbers)]
            rows.append({"text": " ".join(words), "labels": labels})
        else:
            other = words[:1] if index % 2 else ["w5"]
            row: dict[str, Any] = {"premise": " ".join(words), "hypothesis": " ".join(other)}
            rows.append(
                row | ({"label": "same" if index % 2 else "other"} if kind == "pairs" else {"score": index / 60})
            )
    return rows


def make_base(architecture: str, folder: Path) -> Path:
    make_model(architecture, "classification").save_pretrained(folder)
    make_tokenizer(1 if architecture == "roberta" else 0).save_pretrained(folder)
    return folder


def settings(base: Path, output: Path, method: str, **more: Any) -> TuneConfig:
    given = {"model": str(base), "data": "rows", "output": output, "method": method}
    return TuneConfig.read(given=given | QUICK | more)


def run_on(rows: list[dict[str, Any]], config: TuneConfig, columns: dict[str, str] | None = None) -> Run:
    task: Task | None = "regression" if "score" in rows[0] else None
    return tune(config, split_examples(sources.load(rows, task, columns), config), quiet=True)


def padded_logits(model: PreTrainedModel, texts: list[Any], tokenizer: Any, virtual: int) -> list[torch.Tensor]:
    """The textbook way, with the tokenizer's own padding; of words the first token of each."""
    are_words, are_pairs = isinstance(texts[0], list), isinstance(texts[0], tuple)
    columns = [list(column) for column in zip(*texts, strict=True)] if are_pairs else [texts]
    given = tokenizer(*columns, padding=True, return_tensors="pt", is_split_into_words=are_words)
    inputs = {key: value for key, value in given.items() if key != "token_type_ids" or _has_types(model)}
    with torch.inference_mode():
        logits = model(**inputs).logits
    if not are_words:
        return list(logits)
    firsts = [[given.word_ids(row).index(word) for word in range(len(words))] for row, words in enumerate(texts)]
    return [logits[row, [place + virtual for place in places]] for row, places in enumerate(firsts)]


def our_logits(network: Network, texts: list[Any]) -> list[torch.Tensor]:
    rows = [READINGS[network.task].row(text, network.class_names, Origin("<text>", 1)) for text in texts]
    examples = Examples(network.task, rows, network.class_names, "", "")
    outputs = validate(network, tokenize(examples, network.tokenizer, 60), torch.float32)
    return [torch.from_numpy(logits) for logits in by_row(outputs, network.task == "token-classification")]


def _has_types(model: PreTrainedModel) -> bool:
    return int(getattr(model.config, "type_vocab_size", 0) or 0) > 1


CASES = [
    ("bert", "token-classification", "full"),
    ("bert", "token-classification", "lora"),
    ("bert", "token-classification", "prompt"),
    ("gpt2", "token-classification", "lora"),
    ("llama", "token-classification", "full"),
    ("modernbert", "token-classification", "last-layers"),
    ("roberta", "multi-label", "full"),
    ("distilbert", "multi-label", "lora"),
    ("llama", "multi-label", "lora"),
    ("bert", "pairs", "full"),
    ("bert", "pairs", "lora"),
    ("bert", "scored pairs", "prompt"),
]


def texts_of(kind: str) -> list[Any]:
    if kind == "token-classification":
        return [["w5", "w6", "w7"], ["w40", "w41"], ["w8", "w9", "w10", "w11", "w12"]]
    if kind == "multi-label":
        return ["w5 w6 w7", "w40 w41", "w8 w9 w10 w11 w12"]
    return [("w5 w6 w7", "w5"), ("w40 w41", "w41 w42"), ("w8 w9 w10 w11 w12", "w3")]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # plain peft
@pytest.mark.parametrize(("architecture", "kind", "method"), CASES)
def test_what_is_saved_loads_elsewhere_with_the_same_logits(
    architecture: str, kind: str, method: str, tmp_path: Path
) -> None:
    config = settings(make_base(architecture, tmp_path / "base"), tmp_path / "run", method)
    run = run_on(make_rows(kind), config)
    network = Run.open(run.folder).network
    task, names = network.task, network.class_names
    auto = AUTO.get(task, AutoModelForSequenceClassification)
    if method in ("lora", "prompt"):
        about = json.loads((run.folder / "adapter_config.json").read_text())
        assert about["task_type"] == ("TOKEN_CLS" if task == "token-classification" else "SEQ_CLS")
        base = auto.from_pretrained(tmp_path / "base", num_labels=len(names) or 1, ignore_mismatched_sizes=True)
        base.config.pad_token_id = network.tokenizer.pad_token_id
        plain = PeftModel.from_pretrained(base, run.folder).eval()
    else:
        plain = auto.from_pretrained(run.folder).eval()
        assert plain.config.id2label == dict(enumerate(names))
        wanted = {"multi-label": "multi_label_classification", "token-classification": None}
        assert plain.config.problem_type == wanted.get(task, "single_label_classification")
    texts = texts_of(kind)
    virtual = config.num_virtual_tokens if method == "prompt" else 0
    theirs = padded_logits(plain, texts, AutoTokenizer.from_pretrained(run.folder), virtual)
    ours = our_logits(network, texts)
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One of each kind, trained until it knows its rows."""
    folder = tmp_path_factory.mktemp("runs")
    base = make_base("bert", folder / "base")
    more = {"num_train_epochs": 25, "early_stopping_patience": 100}
    return {
        kind: run_on(make_rows(kind), settings(base, folder / kind, "full", **more))
        for kind in ("token-classification", "multi-label", "pairs", "scored pairs")
    }


def test_they_learn_what_follows_from_the_words(runs: dict[str, Run]) -> None:
    """The untrained models say one tag of three, and about as much of the rest, right."""
    tagged = tunesmith.evaluate(runs["token-classification"], make_rows("token-classification")).metrics
    assert tagged["accuracy"].value > 0.9
    assert tagged["entity_f1"].value > 0.8
    assert tunesmith.evaluate(runs["multi-label"], make_rows("multi-label")).metrics["micro_f1"].value > 0.8
    assert tunesmith.evaluate(runs["pairs"], make_rows("pairs")).metrics["accuracy"].value > 0.8
    watched = [point for point in runs["multi-label"].outcome["curve"]]
    assert watched[-1]["validation_micro_f1"] > watched[0]["validation_micro_f1"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_predictions_for_files(runs: dict[str, Run], tmp_path: Path) -> None:
    words = write(tmp_path / "words.jsonl", [{"tokens": ["w6", "w7"]}, {"tokens": []}])
    first, second = predict_file(str(runs["token-classification"].folder), words)
    assert (len(first["tags"]), second["tags"]) == (2, [])
    (tmp_path / "texts.txt").write_text("w6 w7\n")
    assert predict_file(str(runs["token-classification"].folder), tmp_path / "texts.txt")[0]["tags"] == first["tags"]
    texts = write(tmp_path / "texts.jsonl", [{"text": "w7 w14"}])
    (labelled,) = predict_file(str(runs["multi-label"].folder), texts)
    assert set(labelled["probabilities"]) == {"a", "b", "c"}
    assert set(labelled["labels"]) == {name for name, chance in labelled["probabilities"].items() if chance > 0.5}
    pairs = write(tmp_path / "pairs.jsonl", [{"hypothesis": "w9", "premise": "w9 w10", "id": 1}])
    (paired,) = predict_file(str(runs["pairs"].folder), pairs)
    assert paired["label"] == tunesmith.predict(runs["pairs"], [("w9 w10", "w9")])[0]["label"]
    with pytest.raises(InputError, match=r"the run judges pairs of texts, and no two of its columns \(text\) are one"):
        predict_file(str(runs["pairs"].folder), texts)
    with pytest.raises(InputError, match="some of the texts are pairs and others are not"):
        tunesmith.predict(runs["pairs"], [("w9", "w9"), "w9"])


def test_words_beyond_the_model_have_no_tag_and_count_as_wrong(runs: dict[str, Run]) -> None:
    words = ["w6"] * 70
    (said,) = tunesmith.predict(runs["token-classification"], [words])
    assert said["tags"] == ["O"] * 62 + [None] * 8
    score = tunesmith.evaluate(runs["token-classification"], [{"words": words, "tags": ["O"] * 70}])
    assert score.metrics["accuracy"].value == pytest.approx(62 / 70)


def test_unknown_tags_are_named(runs: dict[str, Run]) -> None:
    with pytest.raises(InputError, match="label 'B-Z' is unknown"):
        tunesmith.evaluate(runs["token-classification"], [{"words": ["w6", "w7"], "tags": ["B-Z", "O"]}])


@pytest.mark.parametrize("kind", ["token-classification", "multi-label"])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base("bert", tmp_path / "base")
    given = {"num_train_epochs": 3, "early_stopping_patience": 100, "eval_steps": 4, "per_device_train_batch_size": 12}
    whole = run_on(make_rows(kind), settings(base, tmp_path / "whole", "lora", **given))
    accumulate, calls = step.accumulate, iter(range(1, 100))

    def broken(*args: Any) -> Any:
        if next(calls) == 7:
            raise KeyboardInterrupt
        return accumulate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "accumulate", broken)
        with pytest.raises(KeyboardInterrupt):
            run_on(make_rows(kind), settings(base, tmp_path / "again", "lora", **given))
    again = run_on(make_rows(kind), settings(base, tmp_path / "again", "lora", resume=True, **given))
    assert digest(again.folder) == digest(whole.folder)


SOAKED = [pytest.param(kind, marks=pytest.mark.soak) for kind in ("multi-label", "pairs")]


@pytest.mark.parametrize("kind", ["token-classification", *SOAKED])
def test_a_plan_foresees_them(kind: str, tmp_path: Path) -> None:
    base = make_base("bert", tmp_path / "base")
    given = {"model": str(base), "data": "rows", "methods": "full,last-layers,lora", "device": "cpu", "check": False}
    config = PlanConfig.read(given=given | SMALL)
    found = plan(config, split_examples(sources.load(make_rows(kind)), config))
    assert all(one.fits and one.flops > 0 for one in found)
    run = run_on(make_rows(kind), settings(base, tmp_path / "run", "last-layers"))
    assert found[1].trained == run.manifest["trainable_parameters"]
    assert found[1].parameters == run.manifest["total_parameters"]


def test_a_comparison_ranks_by_what_applies(tmp_path: Path) -> None:
    base = make_base("bert", tmp_path / "base")
    given = {"model": str(base), "data": "rows", "methods": "head-only", "learning_rates": {"head-only": 1e-2}}
    quick = {key: value for key, value in QUICK.items() if key != "learning_rate"}
    config = CompareConfig.read(given=given | quick | {"output": tmp_path / "compared"})
    rows = [{**row, "tags": [f"T{tag}" for tag in row["tags"]]} for row in make_rows("token-classification")]
    compared = compare(config, split_examples(sources.load(rows), config))
    assert [system.name for system in compared.systems] == ["majority", "usual-tag", "head-only"]
    assert not any(system.error for system in compared.systems)
    assert compared.content["primary"] == "accuracy"
    assert set(compared.systems[0].metrics) == {"accuracy"}
    assert "w5" in compared.report.read_text()


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("multi-label", "z_loss", 1e-4),
        ("scored pairs", "label_smoothing_factor", 0.1),
        ("scored pairs", "z_loss", 1e-4),
    ],
)
def test_what_a_loss_does_not_have_is_refused(kind: str, key: str, value: float, tmp_path: Path) -> None:
    config = settings(make_base("bert", tmp_path / "base"), tmp_path / "run", "full", **{key: value})
    with pytest.raises(InputError, match=f"{key} is .*, which .* has no use for"):
        run_on(make_rows(kind), config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_new_head_of_several_labels_begins_with_how_often_each_holds(method: str, tmp_path: Path) -> None:
    base = make_base("bert", tmp_path / "base")
    AutoModel.from_pretrained(base).save_pretrained(base)  # without a head
    parts = split_examples(sources.load(make_rows("multi-label")), settings(base, tmp_path / "run", method))
    prepared = prepare(settings(base, tmp_path / "run", method), METHODS[method], parts)
    biases = [p for name, p in prepared.network.model.named_parameters() if "classifier" in name and "bias" in name]
    names, rows = parts.train.class_names, parts.train.rows
    shares = [sum(name in row.target for row in rows) / len(rows) for name in names]  # type: ignore[union-attr, operator]
    assert biases
    for bias in biases:
        torch.testing.assert_close(bias.detach().sigmoid(), torch.tensor(shares).clamp(1e-4, 1 - 1e-4))
