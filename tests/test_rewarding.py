"""From rankings to a reward model: what is learned, what is said of it, and what plain transformers makes of its
folder."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.parity.tiny import make_model, make_tokenizer
from tunesmith import cli
from tunesmith.config_align import RewardConfig
from tunesmith.data import sources
from tunesmith.data.parts import split_examples
from tunesmith.data.store import encode
from tunesmith.data.tokenize import tokenize
from tunesmith.errors import InputError
from tunesmith.evaluation.rankings import (
    best_of_n,
    best_temperature,
    calibration,
    describe,
    mean_by_prompt,
    pairs_of,
    wins,
)
from tunesmith.evaluation.tasks import evaluate, predict_texts
from tunesmith.models.load import Network, load_network
from tunesmith.records import Examples, Message, Origin, Ranking
from tunesmith.rewarding import choose_people, rewards_of, train_reward
from tunesmith.runs.run import Run
from tunesmith.tables import reward_lines

QUICK: dict[str, Any] = {
    "precision": "fp32",
    "device": "cpu",
    "check": False,
    "learning_rate": 1e-2,
    "num_train_epochs": 6,
    "lora_r": 4,
    "bottleneck_size": 4,
    "seed": 1,
}


def make_rows(num_rows: int = 80) -> list[dict[str, Any]]:
    """The better answer has more words of small numbers."""
    rng = random.Random(0)
    rows = []
    for index in range(num_rows):
        answers = [" ".join(f"w{rng.randrange(5, 90)}" for _ in range(4)) for _ in range(4)]
        answers.sort(key=lambda text: sum(int(word[1:]) for word in text.split()))
        rows.append({"prompt": f"w{5 + index % 80} w{5 + index // 80}", "answers": answers, "ranks": [1, 2, 2, 3]})
    return rows


def make_base(kind: str, folder: Path) -> Path:
    make_model(kind, "ranking").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def run_on(rows: list[dict[str, Any]], base: Path, output: Path, **more: Any) -> Run:
    config = RewardConfig.read(given={"model": str(base), "data": "rows", "output": output} | QUICK | more)
    return train_reward(config, split_examples(sources.load(rows, None), config), quiet=True)


def rewards_in_float32(network: Network, prompt: str, answers: list[str]) -> list[float]:
    rows = [Ranking((Message("user", prompt),), (text,), (1,), Origin("<text>", 1)) for text in answers]
    tokenized = tokenize(Examples("ranking", rows, (), "", ""), network.tokenizer, 60)
    return [one for (one,) in rewards_of(network, tokenized, torch.float32)]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # asked for by PEFT
@pytest.mark.parametrize(("kind", "method"), [("llama", "full"), ("llama", "lora"), ("bert", "full")])
def test_what_is_learned_and_saved(kind: str, method: str, tmp_path: Path) -> None:
    base = make_base(kind, tmp_path / "base")
    rate = 0.05 if method == "lora" else 0.01
    run = run_on(make_rows(), base, tmp_path / "run", method=method, learning_rate=rate)
    report = run.manifest["reward"]
    assert report == json.loads((run.folder / "reward.json").read_text())
    assert report["test"]["accuracy"]["value"] > (0.75 if method == "full" else 0.3)  # frozen noise teaches little
    assert report["test"]["pairs"] == 5 * report["test"]["prompts"], "the tied pair is none"
    assert run.outcome["curve"][-1]["validation_loss"] > 0

    prompt, answers = "w5 w6", ["w7 w8 w9 w9", "w80 w81 w70 w88"]
    ours = rewards_in_float32(run.network, prompt, answers)
    assert ours[0] > ours[1] or method == "lora"
    tokenizer = AutoTokenizer.from_pretrained(run.folder)
    if method == "lora":
        plain = PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), run.folder
        )
    else:
        plain = AutoModelForSequenceClassification.from_pretrained(run.folder)
    between = "" if kind == "bert" else "<s>"
    texts = [f"{between}{prompt}\n\n{answer}{'' if kind == 'bert' else '</s>'}" for answer in answers]
    given = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=kind == "bert")
    given.pop("token_type_ids", None)
    with torch.inference_mode():
        theirs = plain.eval()(**given).logits[:, 0].tolist()
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert rewards_in_float32(Run.open(run.folder).network, prompt, answers) == pytest.approx(ours, abs=1e-5)
    said = predict_texts(run.network, [(prompt, answer) for answer in answers])
    assert [one["reward"] for one in said] == pytest.approx(ours, abs=0.05), "in whatever precision is faster here"


def test_the_end_of_an_answer_is_no_padding(tmp_path: Path) -> None:
    """Where pad and stop token are one, plain transformers would read the reward one token too early."""
    make_model("llama", "ranking").save_pretrained(tmp_path / "base")
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "base")
    network = load_network(str(tmp_path / "base"), "ranking")
    assert network.tokenizer.pad_token_id != network.tokenizer.eos_token_id
    assert network.model.config.pad_token_id == network.tokenizer.pad_token_id
    assert load_network(str(tmp_path / "base"), "classification", ("a", "b")).model.config.pad_token_id == 2


def test_a_new_head_begins_small(tmp_path: Path) -> None:
    make_model("llama", "generation").save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    weights = []
    for seed in range(40):
        torch.manual_seed(seed)
        weights.append(load_network(str(tmp_path / "base"), "ranking").model.score.weight.detach().flatten())
    assert torch.cat(weights).std().item() == pytest.approx(33**-0.5, rel=0.1)


def test_no_prompt_is_in_two_parts(tmp_path: Path) -> None:
    rows = make_rows() + make_rows()
    base = make_base("llama", tmp_path / "base")
    run = run_on(rows, base, tmp_path / "run", max_steps=1)
    split = json.loads((run.folder / "split.json").read_text())
    prompts = {
        name: {rows[line - 1]["prompt"] for lines in split[name].values() for line in lines}
        for name in ("train", "validation", "test")
    }
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["validation"]


def rows_of_three(num_prompts: int = 60) -> list[dict[str, Any]]:
    """Ann and ben agree on everything, and cat contradicts them in everything."""
    rows = make_rows(num_prompts)
    turned = [4 - rank for rank in rows[0]["ranks"]]
    return [
        row | ({"labeler": name} if name != "cat" else {"labeler": name, "ranks": turned})
        for row in rows
        for name in ("ann", "ben", "cat")
    ]


def test_people_may_be_held_out(tmp_path: Path) -> None:
    """Who contradicts the others is foreseen as seldom as they often; on prompts that nobody's rankings trained."""
    rows, base = rows_of_three(), make_base("llama", tmp_path / "base")
    run = run_on(rows, base, tmp_path / "run", method="full", held_out_labelers="cat")
    report = run.manifest["reward"]
    others, cat = report["test"], report["held_out_labelers"]
    assert others["accuracy"]["value"] > 0.65
    assert (others["labelers"], cat["labelers"]) == (2, 1)
    assert others["prompts"] * 2 * 5 == others["pairs"], "two people a prompt, and a prompt counts once"
    both = [report[name] for name in ("validation", "test")]
    assert cat["prompts"] == sum(part["prompts"] for part in both)
    right = sum(part["accuracy"]["value"] * part["pairs"] for part in both) / sum(part["pairs"] for part in both)
    assert cat["accuracy"]["value"] == pytest.approx(1 - right)
    assert report["people_agree"]["value"] == pytest.approx(1 / 3), "of three pairs of people one agrees"
    assert report["people_agree"]["num_items"] == 60
    split = json.loads((run.folder / "split.json").read_text())
    places = {name: [line - 1 for lines in split[name].values() for line in lines] for name in ("train", "test")}
    assert {rows[place]["labeler"] for part in places.values() for place in part} == {"ann", "ben"}
    assert "without cat" in split["note"]
    assert any("did not learn from (1)" in line for line in reward_lines(report))


def test_whose_a_ranking_is_may_stand_in_it() -> None:
    rows = [{"prompt": f"w{i}", "chosen": "w7", "rejected": "w8", "annotator": i or None} for i in range(3)]
    pairs = sources.load(rows).rows
    assert [row.labeler for row in pairs if isinstance(row, Ranking)] == ["", "1", "2"]
    signed, unsigned = ([row for row in sources.load(rows).rows] for rows in (rows_of_three(1), make_rows(1) * 3))
    assert [row.labeler for row in signed if isinstance(row, Ranking)] == ["ann", "ben", "cat"]
    assert encode(unsigned[0]) == encode(replace(signed[0], labeler=""))  # type: ignore[call-arg]
    assert b"labeler" not in encode(unsigned[0]), "rows that were read before have the fingerprints that they had"


def test_who_is_held_out_is_said_or_drawn(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    config = RewardConfig.read(given={"model": str(base), "data": "rows", "output": tmp_path / "run"} | QUICK)
    parts = split_examples(sources.load(rows_of_three(20), None), config, quiet=True)
    drawn = [choose_people(parts, config.model_copy(update={"held_out_labelers": ("2",), "seed": s})) for s in range(9)]
    assert {len(people) for people in drawn} == {2}
    assert len({tuple(sorted(people)) for people in drawn}) > 1
    for people, message in (("dan", "nobody called 'dan'"), ("3", "nobody is left"), ("ann,ben,cat", "nobody is left")):
        with pytest.raises(InputError, match=message):
            choose_people(parts, config.model_copy(update={"held_out_labelers": tuple(people.split(","))}))
    unsigned = split_examples(sources.load(make_rows(40), None), config, quiet=True)
    with pytest.raises(InputError, match="do not say whose"):
        choose_people(unsigned, config.model_copy(update={"held_out_labelers": ("ann",)}))


def test_ties_are_dropped_or_halved(tmp_path: Path) -> None:
    rows = [row | {"ranks": [1, 1, 1, 1]} for row in make_rows(40)] + make_rows(80)[40:]
    base = make_base("llama", tmp_path / "base")
    dropped = run_on(rows, base, tmp_path / "dropped", max_steps=1)
    assert "all tied left out" in json.loads((dropped.folder / "split.json").read_text())["note"]
    half = run_on(rows, base, tmp_path / "half", max_steps=1, ties="half")
    assert "left out" not in json.loads((half.folder / "split.json").read_text())["note"]
    with pytest.raises(InputError, match="all answers are tied"):
        run_on([row | {"ranks": [1, 1, 1, 1]} for row in make_rows(40)], base, tmp_path / "none")


def test_other_data_is_refused(tmp_path: Path) -> None:
    rows = [{"text": f"w{5 + i}", "label": "ab"[i % 2]} for i in range(40)]
    with pytest.raises(InputError, match="learns from rankings"):
        run_on(rows, make_base("llama", tmp_path / "base"), tmp_path / "run")


def test_the_command_trains_evaluates_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "rankings.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in make_rows()))
    base, run = make_base("llama", tmp_path / "base"), tmp_path / "run"
    flags = ["--model", str(base), "--data", str(data), "--output", str(run), "--method", "lora", "--max-steps", "3"]
    assert cli.run(["reward", *flags, "--precision", "fp32", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "'the longer one wins'" in said
    assert f"align --algorithm ppo --reward {run}" in said
    assert cli.run(["reward", "--resume", "--output", str(run)]) == 0
    assert "is finished already" in capsys.readouterr().err
    score = evaluate(Run.open(run).network, str(data))
    assert 0 <= score.metrics["accuracy"].value <= 1
    assert score.metrics["loss"].value > 0


# The report


def test_pairs_and_their_interval() -> None:
    pairs = pairs_of([[3.0, 1.0, 2.0], [0.0, 1.0]], [[1, 2, 3], [1, 1]], [[10, 20, 5], [1, 2]])
    assert pairs.gap_P.tolist() == [2.0, 1.0, -1.0]
    assert pairs.longer_P.tolist() == [-10.0, 5.0, 15.0]
    assert wins(pairs.gap_P).mean() == pytest.approx(2 / 3)
    interval = mean_by_prompt(wins(pairs.gap_P), pairs.prompt_P)
    assert interval.low == interval.high == interval.value, "one prompt says nothing of others"
    assert describe(pairs_of([[0.0, 1.0]], [[1, 1]], [[1, 1]])) == {"pairs": 0}


def test_the_best_of_n_is_that_of_all_draws() -> None:
    """Against every subset written out; who agrees with people gets what people would take."""
    rewards, ranks = [[0.3, -1.0, 2.0, 0.9]], [[2, 3, 1, 4]]
    found = best_of_n(rewards, ranks)
    assert [row["n"] for row in found] == [1, 2, 3, 4]
    beaten = [2 / 3, 1 / 3, 1.0, 0.0]
    for row in found:
        draws = list(combinations(range(4), row["n"]))
        taken = [beaten[max(draw, key=lambda place: rewards[0][place])] for draw in draws]
        assert row["beats"] == pytest.approx(sum(taken) / len(draws))
        assert row["best"] == pytest.approx(sum(max(beaten[place] for place in draw) for draw in draws) / len(draws))
    assert found[0]["beats"] == pytest.approx(0.5)
    agreed = best_of_n([[-1.0, -2.0, -2.5]], [[1, 2, 2]])
    assert all(row["beats"] == pytest.approx(row["best"]) for row in agreed)


def test_rewards_that_tell_true_odds_are_calibrated() -> None:
    """Where the better answer wins with the probability the gap says, the error is small and the best temperature 1."""
    rng = np.random.default_rng(0)
    gap = rng.normal(0, 2, 40_000)
    true = np.where(rng.random(len(gap)) < 1 / (1 + np.exp(-gap)), gap, -gap)
    error, bins = calibration(true)
    assert error < 0.01
    assert sum(row["pairs"] for row in bins) == len(gap)
    assert best_temperature(true) == pytest.approx(1, abs=0.05)
    assert calibration(3 * true)[0] > 0.05, "too sure"
    assert best_temperature(3 * true) == pytest.approx(3, abs=0.15)
