"""Answers as spans, from rows to a run and what it says: on tiny models of real classes.

What is saved is loaded by plain transformers and PEFT, which must give the same logits.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

import tunesmith
from tests.faults.survival import digest
from tests.parity.test_spans import paired
from tests.test_task_runs import QUICK, SMALL, make_base
from tunesmith.checking import show_tokens
from tunesmith.config import PlanConfig, TokensConfig, TuneConfig
from tunesmith.config_export import ExportConfig
from tunesmith.data import sources
from tunesmith.data.pack import pack
from tunesmith.data.parts import split_examples
from tunesmith.data.tokenize import tokenize
from tunesmith.data.windows import find_windows
from tunesmith.errors import InputError
from tunesmith.evaluation.baselines import find_baseline, find_window
from tunesmith.evaluation.beside import set_beside
from tunesmith.evaluation.predict import predict_file
from tunesmith.evaluation.predictions import Predictions
from tunesmith.evaluation.prompted import Resources
from tunesmith.export import export
from tunesmith.models.packed import packed_logits
from tunesmith.outcomes import System, Verdict
from tunesmith.planning import plan
from tunesmith.records import Split
from tunesmith.runs.run import Run
from tunesmith.train import loop, step
from tunesmith.tuning import tune

TASK = {"data": "rows", "task": "extractive-qa"}


def make_rows(num_rows: int = 160, silent: bool = True, seed: int = 0) -> list[dict[str, Any]]:
    """The question says at which of three places the answer stands, or (w23) that there is none."""
    rng = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        words = [f"w{rng.randrange(30, 95)}" for _ in range(9)]
        place = rng.randrange(4 if silent else 3)
        before, answer = " ".join(words[: 3 * place]), " ".join(words[3 * place : 3 * place + 2])
        found = {"text": [answer], "answer_start": [len(before) + bool(before)]} if answer else []
        rows.append({"context": " ".join(words), "question": f"w{20 + place}", "answers": found})
    return rows


def base_of(architecture: str, folder: Path) -> Path:
    make_base(architecture, folder)
    if architecture != "roberta":
        paired().save_pretrained(folder)
    return folder


def run_on(rows: list[dict[str, Any]], base: Path, output: Path, method: str, **more: Any) -> Run:
    given = {"model": str(base), "output": output, "method": method}
    config = TuneConfig.read(given=given | TASK | QUICK | more)
    return tune(config, split_examples(sources.load(rows, "extractive-qa"), config), quiet=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_of("bert", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One of each family, trained until it knows where to look."""
    folder = tmp_path_factory.mktemp("runs")
    more = {"num_train_epochs": 12, "early_stopping_patience": 100, "lora_r": 8, "max_answer_length": 4}
    return {method: run_on(make_rows(), base, folder / method, method, **more) for method in ("full", "lora")}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_they_learn_where_answers_stand(method: str, runs: dict[str, Run]) -> None:
    run = runs[method]
    curve = run.outcome["curve"]
    assert curve[-1]["validation_loss"] < curve[0]["validation_loss"] / 3
    assert curve[-1]["validation_accuracy"] > curve[0]["validation_accuracy"] + 0.3
    score = tunesmith.evaluate(run, make_rows(80, seed=1)).metrics
    assert list(score) == ["token_f1", "exact_match", "answerable_f1", "unanswerable_accuracy"]
    assert score["exact_match"].value > 0.6
    assert score["unanswerable_accuracy"].value > 0.6


CASES = [
    ("bert", "full"),
    ("bert", "lora"),
    ("roberta", "bitfit"),
    ("distilbert", "prompt"),
    ("modernbert", "last-layers"),
    ("gpt2", "lora"),
    ("llama", "full"),
]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # plain peft
@pytest.mark.parametrize(("architecture", "method"), CASES)
def test_what_is_saved_loads_elsewhere_with_the_same_logits(architecture: str, method: str, tmp_path: Path) -> None:
    base = base_of(architecture, tmp_path / "base")
    run_on(make_rows(40), base, tmp_path / "run", method)
    network = Run.open(tmp_path / "run").network
    if method in ("lora", "prompt"):
        assert json.loads((tmp_path / "run/adapter_config.json").read_text())["task_type"] == (
            "QUESTION_ANS" if method == "prompt" else None
        )
        wanted = {"num_labels": 2, "ignore_mismatched_sizes": True}  # the base was saved with a head for three classes
        plain = PeftModel.from_pretrained(
            AutoModelForQuestionAnswering.from_pretrained(base, **wanted), tmp_path / "run"
        ).eval()
    else:
        plain = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run").eval()
    rows = make_rows(3)
    examples = sources.load(rows, "extractive-qa")
    ours = packed_logits(network, pack(list(tokenize(examples, network.tokenizer, 60)), network.num_virtual))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    theirs = []
    for row in rows:
        given = tokenizer(row["question"], row["context"], return_tensors="pt")
        if not getattr(plain.config, "type_vocab_size", 0) or plain.config.type_vocab_size < 2:
            given.pop("token_type_ids", None)
        with torch.inference_mode():
            said = plain(**given)
        theirs.append(torch.stack([said.start_logits[0], said.end_logits[0]], 1)[network.num_virtual :])
    torch.testing.assert_close(ours, torch.cat(theirs), atol=1e-5, rtol=1e-5)


def test_predictions_say_what_stands_where(runs: dict[str, Run], tmp_path: Path) -> None:
    rows = make_rows(12, seed=2)
    said = tunesmith.predict(runs["full"], [(row["question"], row["context"]) for row in rows])
    for row, one in zip(rows, said, strict=True):
        assert one["answer"] == row["context"][one["start"] : one["end"]] if one["answer"] else "start" not in one
        assert bool(one["answer"]) == (one["margin"] > 0)
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"passage": row["context"], "query": row["question"]}) + "\n" for row in rows))
    assert [one["answer"] for one in predict_file(str(runs["full"].folder), file)] == [one["answer"] for one in said]
    (tmp_path / "texts.jsonl").write_text('{"text": "w5"}\n')
    with pytest.raises(InputError, match=r"none of its columns \(text\) is called question or query"):
        predict_file(str(runs["full"].folder), tmp_path / "texts.jsonl")
    with pytest.raises(InputError, match="an answer is found for a pair of texts: a question and a passage"):
        tunesmith.predict(runs["full"], ["w5"])


def test_data_that_always_has_an_answer_is_never_told_that_there_is_none(base: Path, tmp_path: Path) -> None:
    """Nor is it in a passage that is longer than the 64 tokens that the model takes."""
    rows = make_rows(60, silent=False)
    run = run_on(rows, base, tmp_path / "run", "full", max_answer_length=4)
    asked = [(row["question"], row["context"]) for row in make_rows(20)]
    assert all(one["answer"] for one in tunesmith.predict(run, asked))
    assert list(tunesmith.evaluate(run, rows).metrics) == ["token_f1", "exact_match"]
    long = rows[0] | {"context": " ".join([rows[0]["context"]] * 30)}
    network = Run.open(run.folder).network
    assert find_windows(network.tokenizer).max_answer_length == 4
    windows = tokenize(sources.load([long], "extractive-qa"), network.tokenizer, 64)
    assert len(windows) == 8  # 270 tokens in rooms of 60, of which neighbours share 30
    (said,) = tunesmith.predict(run, [(long["question"], long["context"])])
    assert said["answer"] == long["context"][said["start"] : said["end"]]
    assert 0 < len(said["answer"].split()) <= 4
    with pytest.raises(InputError, match=r"label 'unanswerable' is unknown to .* It knows none"):
        tunesmith.evaluate(run, make_rows(20))


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"num_train_epochs": 3, "early_stopping_patience": 100, "eval_steps": 2, "per_device_train_batch_size": 12}
    whole = run_on(make_rows(40), base, tmp_path / "whole", "lora", **given)
    accumulate, calls = step.accumulate, iter(range(1, 100))

    def broken(*args: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return accumulate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "accumulate", broken)
        with pytest.raises(KeyboardInterrupt):
            run_on(make_rows(40), base, tmp_path / "again", "lora", **given)
    again = run_on(make_rows(40), base, tmp_path / "again", "lora", resume=True, **given)
    assert digest(again.folder) == digest(whole.folder)


def test_a_merged_model_says_the_same(runs: dict[str, Run], tmp_path: Path) -> None:
    found = export(ExportConfig.read(given={"runs": [runs["lora"].folder], "output": tmp_path / "merged"}))
    assert found.gap is not None
    assert found.gap < 1e-5
    assert AutoModelForQuestionAnswering.from_pretrained(tmp_path / "merged").config.num_labels == 2


def test_a_plan_foresees_them(base: Path, tmp_path: Path) -> None:
    given = {"model": str(base), "methods": "lora", "device": "cpu", "check": False}
    config = PlanConfig.read(given=given | TASK | SMALL)
    found = plan(config, split_examples(sources.load(make_rows(40), "extractive-qa"), config))
    (one,) = found
    assert one.fits
    assert one.flops > 0
    run = run_on(make_rows(40), base, tmp_path / "run", "lora")
    assert one.trained == run.manifest["trainable_parameters"]


def test_baselines_and_what_a_report_shows() -> None:
    text = "Ann sells old red sheds. Bob paints houses, Carl mends them."
    asked = [("Who paints?", ["Bob"]), ("Who sails?", []), ("Who sells sheds?", ["Ann"])]
    rows = [{"question": one, "context": text, "answers": answers} for one, answers in asked]
    examples = sources.load(rows, "extractive-qa")
    parts = Split(examples, examples, examples)
    known = {name: find_baseline(name) for name in ("majority", "sliding-window")}
    said = {name: baseline.predict(parts, Resources(None, None, 0, None)) for name, baseline in known.items()}  # type: ignore[arg-type]
    assert said["majority"].outputs == ["Bob"] * 3
    assert said["sliding-window"].outputs == ["Bob", "", "old"]  # "Ann" stands as near to one word, "old" to both
    assert not find_baseline("nearest").why_not("generation", True)
    assert find_baseline("nearest").why_not("extractive-qa", False)
    systems = System("sliding-window", "baseline", "classical"), System("full", "method", "full")
    right = Predictions("extractive-qa", [row["answers"] for row in rows], ["Bob", "", "Ann"])
    shown = set_beside(examples, systems, Verdict("full", "full", ""), {"full": right, **said})
    (gained,) = shown["rows"]
    assert (gained["kind"], gained["expected"], gained["outputs"]) == ("gained", "Ann", ["Ann", "old"])
    assert gained["input"] == f"Who sells sheds?\n{text}"


def test_the_window_with_the_questions_words_around_it() -> None:
    text = "Ann sells sheds. Bob paints."
    assert find_window("Who paints?", text, 1) == "Bob"
    assert find_window("Who paints?", text, 2) == "sheds. Bob"
    assert find_window("Who paints?", text, 9) == find_window("What is new?", text, 1) == ""


@pytest.mark.parametrize(("key", "value"), [("label_smoothing_factor", 0.1)])
def test_penalties_without_meaning_are_refused(key: str, value: float, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{key} is {value}, which extractive-qa has no use for"):
        run_on(make_rows(40), base, tmp_path / "run", "full", **{key: value})


def test_answers_longer_than_what_is_found_are_told(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in make_rows(40)))
    given = {"model": str(base), "data": str(file), "task": "extractive-qa", "max_answer_length": 1}
    shown = show_tokens(TokensConfig.read(given=given))
    assert "the longest answer has 2 tokens, of which at most 1 are found" in shown.proof.note
    assert [row.target for row in shown.rows] == [describe(row) for row in make_rows(3)]


def describe(row: dict[str, Any]) -> str:
    return row["answers"]["text"][0] if row["answers"] else "no answer"
