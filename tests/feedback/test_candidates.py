"""Answers to be ranked: sampled ones against the sampler itself, imported ones against their file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.tiny import make_model, make_tokenizer
from tunesmith.data.ids import prompt_ids
from tunesmith.errors import InputError
from tunesmith.evaluation.tasks import open_network
from tunesmith.feedback.candidates import read_answers, read_prompts, sample_items
from tunesmith.feedback.forms import Item
from tunesmith.feedback.settings import SampleConfig
from tunesmith.models.generate import Decoding, sample
from tunesmith.records import Message


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny-llama"), 0)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny-llama-too"), 1)


def save_model(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    make_model("llama", "generation").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


PAIRS = [{"prompt": f"w{10 + at} w{20 + at}", "completion": f"w{30 + at}"} for at in range(5)]


def config(tmp_path: Path, model: Path, rows: list[dict[str, Any]] | None = None, **settings: Any) -> SampleConfig:
    data = write(tmp_path / "prompts.jsonl", PAIRS if rows is None else rows)
    given = {"data": str(data), "models": str(model), "max_new_tokens": 6, "device": "cpu", "precision": "fp32"}
    return SampleConfig.read(given={**given, **settings})


def contents(items: list[Item]) -> list[Any]:
    return [(item.id, [(one.text, one.model, one.source["seed"]) for one in item.candidates]) for item in items]


def test_each_prompt_gets_so_many_different_answers(tmp_path: Path, model: Path) -> None:
    items = sample_items(config(tmp_path, model))
    assert [item.prompt for item in items] == [(Message("user", row["prompt"]),) for row in PAIRS]
    for item in items:
        texts = [one.text for one in item.candidates]
        assert len(set(texts)) == len(texts) == 4
        assert all(text.strip() for text in texts)


def test_the_same_settings_give_the_same_answers_and_others_give_others(tmp_path: Path, model: Path) -> None:
    items = sample_items(config(tmp_path, model))
    assert contents(sample_items(config(tmp_path, model))) == contents(items)
    assert contents(sample_items(config(tmp_path, model, seed=1))) != contents(items)


def test_an_answer_can_be_made_again_from_what_is_kept_of_it(tmp_path: Path, model: Path) -> None:
    items = sample_items(config(tmp_path, model, temperature=0.8, top_p=0.9))
    network = open_network(str(model))
    prompts = [prompt_ids(item.prompt, network.tokenizer) for item in items]
    checked = 0
    for item in items:
        for one in item.candidates:
            made = one.source
            if made["seed"] != 0:  # of a later round, which had fewer prompts
                continue
            decoding = Decoding(made["max_new_tokens"], made["temperature"], made["top_p"], made["top_k"], made["seed"])
            again = sample(network, prompts, decoding, torch.float32, made["answer"] + 1)[made["prompt"]][
                made["answer"]
            ]
            assert (again.text.strip(), len(again.ids), again.finished) == (one.text, made["tokens"], made["finished"])
            assert made["fingerprint"] == network.fingerprint
            checked += 1
    assert checked > 10


def test_several_models_share_the_answers(tmp_path: Path, model: Path, other_model: Path) -> None:
    items = sample_items(config(tmp_path, model, models=f"{model},{other_model}", num_answers=5))
    for item in items:
        counts = [sum(one.model == str(name) for one in item.candidates) for name in (model, other_model)]
        assert counts == [3, 2]


def test_references_stand_among_the_answers(tmp_path: Path, model: Path) -> None:
    items = sample_items(config(tmp_path, model, references=True, num_answers=2))
    for item, row in zip(items, PAIRS, strict=True):
        assert [one.text for one in item.candidates if one.model == "reference"] == [row["completion"]]
        assert len(item.candidates) == 3


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "w5"}, {"prompt": "w6"}],
        [{"question": "w5"}, {"question": "w6"}],
        [{"text": "w5", "label": "a"}, {"text": "w6", "label": "b"}],
        [{"prompt": "w5", "chosen": "w7", "rejected": "w8"}, {"prompt": "w6", "chosen": "w7", "rejected": "w8"}],
        [
            {"messages": [{"role": "user", "content": f"w{at}"}, {"role": "assistant", "content": "w9"}]}
            for at in (5, 6)
        ],
        [
            {"prompt": "w5", "completion": "w7"},
            {"prompt": "w5", "completion": "w8"},
            {"prompt": "w6", "completion": "w8"},
        ],
    ],
)
def test_prompts_are_read_from_any_format_each_once(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    prompts = read_prompts(config(tmp_path, tmp_path, rows))
    assert [prompt for prompt, _, _ in prompts] == [(Message("user", "w5"),), (Message("user", "w6"),)]


def test_a_part_of_the_prompts_is_drawn_by_the_seed(tmp_path: Path) -> None:
    some = [prompt for prompt, _, _ in read_prompts(config(tmp_path, tmp_path, max_prompts=3))]
    assert len(some) == 3
    assert some == [prompt for prompt, _, _ in read_prompts(config(tmp_path, tmp_path, max_prompts=3))]


def test_what_cannot_be_sampled_is_said(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="at temperature 0 a model has one answer only"):
        config(tmp_path, model, temperature=0)
    with pytest.raises(InputError, match="less than or equal to 9"):
        config(tmp_path, model, num_answers=10)
    sample_items(config(tmp_path, model, max_new_tokens=1, top_k=1))
    assert "left out: all of its answers were alike or empty" in capsys.readouterr().err


def test_two_models_at_temperature_zero_answer_once_each(tmp_path: Path, model: Path, other_model: Path) -> None:
    items = sample_items(config(tmp_path, model, models=f"{model},{other_model}", temperature=0, num_answers=2))
    assert all(sorted(one.model for one in item.candidates) == sorted([str(model), str(other_model)]) for item in items)


# Answers made elsewhere


def test_imported_answers_keep_their_models_and_ranks(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": "Q",
            "answers": ["one", "two", "three", "two"],
            "models": ["a", "b", "c", "b"],
            "ranks": [2, 1, 2, 3],
        },
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "Q"}],
            "answers": ["x", "y\0"],
            "ranks": [1, 2],
        },
    ]
    first, second = read_answers(str(write(tmp_path / "answers.jsonl", rows)), is_gold=True)
    assert {one.text: one.model for one in first.candidates} == {"one": "a", "two": "b", "three": "c"}
    levels = [{first.candidates[place].text for place in level} for level in first.gold]
    assert levels == [{"two"}, {"one", "three"}]
    assert [turn.role for turn in second.prompt] == ["system", "user"]
    assert [one.text for one in second.candidates] == ["x", "y\N{REPLACEMENT CHARACTER}"]
    assert first.origin.endswith("answers.jsonl:1")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Q"}, "no 'prompt' or no 'answers'"),
        ({"prompt": "Q", "answers": ["a"]}, "needs two or more"),
        ({"prompt": "Q", "answers": ["a", "a"]}, "1 different answers"),
        ({"prompt": "Q", "answers": [str(at) for at in range(10)]}, "10 different answers"),
        ({"prompt": "Q", "answers": ["a", "b"], "models": ["m"]}, "one name for each of 2"),
        ({"prompt": "Q", "answers": [{"text": "a"}, {"text": "b"}]}, "must be texts"),
        ({"prompt": "", "answers": ["a", "b"]}, "is empty"),
    ],
)
def test_rows_that_are_no_items_are_named_by_line(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "answers.jsonl", [{"prompt": "Q", "answers": ["a", "b"]}, row])
    with pytest.raises(InputError, match=words) as caught:
        read_answers(str(path))
    assert "answers.jsonl:2" in str(caught.value)
