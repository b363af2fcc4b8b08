"""Pre-training as a run: from scratch and further, what it measures, how it goes on, and what others load."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from tests.faults.survival import digest
from tests.parity.tiny import make_model, make_tokenizer
from tunesmith.config_pretrain import PretrainConfig
from tunesmith.errors import InputError
from tunesmith.pretraining import pretrain
from tunesmith.runs.run import Run
from tunesmith.train import loop
from tunesmith.train.loop import time_step

TEXT = "".join(
    f"{number} And {name} begat {other}, and {other} lived {number % 90 + 7} years.\n"
    for number, (name, other) in enumerate(zip(["Seth", "Enos", "Cainan"] * 90, ["Jared", "Noah"] * 135, strict=True))
)
QUICK: dict[str, Any] = {
    "precision": "fp32",
    "device": "cpu",
    "max_length": 32,
    "per_device_train_batch_size": 8,
    "held_out": 0.1,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is begun from scratch lies in the cache."""
    folder = tmp_path_factory.getbasetemp() / "begun"
    monkeypatch.setattr("tunesmith.pretraining.cache_root", lambda: folder)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    file = tmp_path / "book.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def read(book: Path, output: Path, **more: Any) -> Run:
    return pretrain(PretrainConfig.read(given={"data": str(book), "output": output} | QUICK | more), quiet=True)


SCRATCH = {"architecture": "llama", "layers": 2, "width": 32, "heads": 2, "vocabulary": 300}
SCRATCH |= {"learning_rate": 1e-2, "optim": "muon", "max_steps": 30}


def test_a_decoder_from_scratch_is_measured_as_transformers_would(book: Path, tmp_path: Path) -> None:
    run = read(book, tmp_path / "run", **SCRATCH, prompt="And Seth")
    model = AutoModelForCausalLM.from_pretrained(run.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.folder)
    ids = tokenizer(TEXT[-_held_out() :], add_special_tokens=False)["input_ids"]
    ids = torch.tensor([tokenizer.eos_token_id, *ids, tokenizer.eos_token_id])
    nats, judged = 0.0, 1
    for start in range(0, len(ids), 16):
        row = ids[start : start + 32]
        logprobs = model(row[None]).logits[0, :-1].log_softmax(-1).gather(-1, row[1:, None])[:, 0]
        nats -= logprobs[judged - start - 1 :].sum().item()
        judged = start + len(row)
        if judged == len(ids):
            break
    found = run.manifest["pretraining"]["texts"]["book"]
    assert found["before"] is None
    assert found["after"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / _held_out(), rel=1e-5)
    assert found["after"]["perplexity"] == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-5)
    curve = run.outcome["curve"]
    assert curve[0]["validation_loss"] == pytest.approx(math.log(300), rel=0.2), "at first it knows nothing"
    assert curve[-1]["validation_loss"] < curve[0]["validation_loss"] - 2
    assert sum("sample" in line for line in run.metrics()) == len(curve)
    assert run.network.task == "generation"


def _held_out() -> int:
    """Where the last part begins, by its rule: behind the line in which nine tenths end."""
    return len(TEXT) - TEXT.index("\n", int(0.9 * len(TEXT))) - 1


def test_it_goes_on_to_the_same_bits(book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in its second epoch, in which rows are cut at other places."""
    more = SCRATCH | {"max_steps": 14, "num_train_epochs": 3, "save_steps": 3}
    expected = digest(read(book, tmp_path / "whole", **more).folder)
    accumulate, calls = loop.accumulate, iter(range(1, 10**9))

    def broken(*given: Any) -> Any:
        if next(calls) == 12:
            raise KeyboardInterrupt
        return accumulate(*given)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "accumulate", broken)
        with pytest.raises(KeyboardInterrupt) as stopped:
            read(book, tmp_path / "run", **more)
    assert "tunesmith pretrain --resume" in stopped.value.__notes__[0]
    read(book, tmp_path / "run", **more, resume=True)
    assert digest(tmp_path / "run") == expected
    assert digest(read(book, tmp_path / "other", **more, seed=1).folder) != expected


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_reads_on_with_others_mixed_in(method: str, book: Path, tmp_path: Path) -> None:
    base = _base("llama", tmp_path / "base")
    general = tmp_path / "general.jsonl"
    rows = [json.dumps({"text": f"w{5 + index % 30} w{6 + index % 50} w9"}) for index in range(200)]
    general.write_text("\n".join(rows), encoding="utf-8")
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"w{7 + index % 11} w{8 + index % 7} w20" for index in range(600)), encoding="utf-8")
    more = {"max_steps": 12, "learning_rate": 3e-3, "method": method, "lora_r": 4}
    run = read(words, tmp_path / "run", model=str(base), mix=f"{general}=0.4", also_measure=str(book), **more)
    texts = run.manifest["pretraining"]["texts"]
    assert list(texts) == ["words", "general", "book"]
    for name in ("words", "general"):
        assert texts[name]["after"]["bits_per_byte"] < texts[name]["before"]["bits_per_byte"]
    assert not (run.folder / "before.json").exists()
    assert "general_bits_per_byte" in run.outcome["curve"][0]
    assert Run.open(run.folder).network.task == "generation"


def _base(kind: str, folder: Path) -> Path:
    make_model(kind, "text" if kind == "llama" else "classification").save_pretrained(folder)
    tokenizer = make_tokenizer()
    if kind == "bert":
        tokenizer.add_special_tokens({"mask_token": "w95"})
    tokenizer.save_pretrained(folder)
    return folder


def test_an_encoder_with_a_new_head_learns_masked_words(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"w{7 + index % 11} w{18 + index % 7} w30" for index in range(600)), encoding="utf-8")
    run = read(words, tmp_path / "run", model=str(_base("bert", tmp_path / "bert")), max_steps=40, learning_rate=5e-3)
    curve = run.outcome["curve"]
    assert curve[-1]["validation_loss"] < 0.8 * curve[0]["validation_loss"]
    assert "bits_per_byte" not in run.manifest["pretraining"]["texts"]["words"]["after"]
    assert run.manifest["task"] == "text"
    _, info = AutoModelForMaskedLM.from_pretrained(run.folder, output_loading_info=True)
    assert not info["missing_keys"]


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_an_encoder_decoder_from_scratch_mends_texts(architecture: str, book: Path, tmp_path: Path) -> None:
    run = read(book, tmp_path / "run", **(SCRATCH | {"architecture": architecture, "max_steps": 12}))
    losses = [point["validation_loss"] for point in run.outcome["curve"]]
    assert losses[-1] < losses[0] - 0.3
    assert run.network.model.config.is_encoder_decoder
    assert run.manifest["task"] == "generation"


def test_an_encoder_from_scratch_has_a_tokenizer_like_berts(book: Path, tmp_path: Path) -> None:
    run = read(book, tmp_path / "run", **(SCRATCH | {"architecture": "bert", "max_steps": 2, "optim": "adamw"}))
    assert run.network.tokenizer.cls_token == "[CLS]"
    assert type(run.network.model).__name__ == "BertForMaskedLM"


def test_a_time_becomes_a_number_of_steps_and_stays(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timing leaves no trace: the same steps without it lead to the same bits."""
    monkeypatch.setattr("tunesmith.pretraining.time_step", lambda *given: (time_step(*given), 0.25)[1])
    more = SCRATCH | {"max_steps": None}
    run = read(book, tmp_path / "run", **more, max_minutes=0.05)
    steps = run.outcome["steps"]
    assert 8 <= steps <= 12, "three seconds, a quarter for each"
    same = read(book, tmp_path / "same", **(more | {"max_steps": steps, "num_train_epochs": 2}))
    weights = [file.read_bytes() for file in (run.folder / "model.safetensors", same.folder / "model.safetensors")]
    assert weights[0] == weights[1]


def test_an_architecture_of_ones_own(book: Path, tmp_path: Path) -> None:
    sizes = {"model_type": "llama", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(sizes | {"intermediate_size": 40, "max_position_embeddings": 64}), encoding="utf-8")
    run = read(book, tmp_path / "run", **(SCRATCH | {"architecture": str(file), "max_steps": 1}))
    assert run.network.model.config.hidden_size == 24


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "give a model to go on from"),
        ({"architecture": "lama"}, "did you mean 'llama'"),
        ({"architecture": "llama", "width": 30, "heads": 4}, "each head must have an even share"),
        ({"architecture": "llama", "replay": 0.5}, "replay is for `tune`"),
        ({"architecture": "llama", "also_measure": "other/book.txt"}, "have one name"),
        ({"architecture": "llama", "vocabulary": 50}, "vocabulary is 50; bpe needs 259"),
    ],
)
def test_what_cannot_be_is_said(given: dict[str, Any], says: str, book: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        read(book, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_mask_says_so(book: Path, tmp_path: Path) -> None:
    make_model("bert", "classification").save_pretrained(tmp_path / "bert")
    make_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="has no mask_token"):
        read(book, tmp_path / "run", model=str(tmp_path / "bert"))
