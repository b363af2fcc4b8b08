"""Tokenizers as a command: what is measured of them, and models that get words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from tests.parity.tiny import make_model
from tunesmith import cli
from tunesmith.config_pretrain import TokenizerConfig
from tunesmith.data.vocabulary import train_tokenizer
from tunesmith.errors import InputError
from tunesmith.tokenizing import Made, make_tokenizer, measure_fit

GENERAL = "the cat sat on the mat, said the man; five quick brown foxes jump over a lazy dog in my town\n" * 40
DOMAIN = "the hypervisor schedules a coroutine, and the coroutine calls the hypervisor; naïve mutexes wait\n" * 60


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "domain.txt"
    file.write_text(DOMAIN, encoding="utf-8")
    return file


def base(kind: str, folder: Path) -> Path:
    """A tiny model whose tokenizer knows other texts."""
    tokenizer = train_tokenizer([GENERAL], "bpe" if kind == "llama" else "wordpiece", 320)
    model = make_model(kind, "text" if kind == "llama" else "classification")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make(texts: Path, output: Path, **more: Any) -> Made:
    return make_tokenizer(TokenizerConfig.read(given={"data": str(texts), "output": output} | more))


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_one_of_the_texts_own_fits_them_better(kind: str, texts: Path, tmp_path: Path) -> None:
    other = base("llama", tmp_path / "base")
    made = make(texts, tmp_path / "made", kind=kind, vocabulary=320, beside=str(other))
    own, beside = made.fits
    assert own.characters_per_token > beside.characters_per_token
    plain = AutoTokenizer.from_pretrained(tmp_path / "made")
    held_out = DOMAIN[DOMAIN.index("\n", int(0.95 * len(DOMAIN))) + 1 :]
    num = len(plain(held_out, add_special_tokens=False)["input_ids"])
    assert own.tokens == num
    assert own.characters_per_token == pytest.approx(len(held_out) / num)


def test_unknown_tokens_and_bytes_are_counted() -> None:
    """Two of three words, two of four characters that are none of the alphabet."""
    wordpiece = train_tokenizer(["ab ab cd cd"] * 9, "wordpiece", 40)
    assert measure_fit("", wordpiece, ["ab 漢 字"]).unknown == pytest.approx(2 / 3)
    for kind in ("bpe", "unigram"):
        fit = measure_fit("", train_tokenizer(["ab"] * 9, kind, 300), ["漢字ab"])
        assert fit.in_bytes == pytest.approx(6 / fit.tokens), "three bytes each"
        assert fit.unknown == 0
    assert measure_fit("", wordpiece, ["ab cd"]).unknown == 0


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_words_begin_as_the_mean_of_their_pieces(kind: str, texts: Path, tmp_path: Path) -> None:
    folder = base(kind, tmp_path / "base")
    made = make(texts, tmp_path / "made", extend=str(folder), num_words=3)
    extended, before = made.fits
    assert {"coroutine", "hypervisor"} < set(made.words)
    assert extended.characters_per_token > 1.3 * before.characters_per_token
    auto = AutoModelForCausalLM if kind == "llama" else AutoModel
    old, new = auto.from_pretrained(folder), auto.from_pretrained(tmp_path / "made")
    old_words, new_words = (AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path / "made"))
    word = " hypervisor" if kind == "llama" else "hypervisor"
    (token,) = new_words(word, add_special_tokens=False)["input_ids"]
    pieces = old_words(word, add_special_tokens=False)["input_ids"]
    assert len(pieces) > 1
    for get in ("get_input_embeddings", "get_output_embeddings"):
        if getattr(new, get)() is not None:
            rows, before_rows = getattr(new, get)().weight, getattr(old, get)().weight
            torch.testing.assert_close(rows[token], before_rows[pieces].mean(0))
            torch.testing.assert_close(rows[: len(old_words)], before_rows[: len(old_words)])
    text = "the hypervisor waits, hypervisors wait"
    ids = new_words(text, add_special_tokens=False)["input_ids"]
    assert new_words.decode(ids).replace(" ,", ",") == text
    assert old_words(GENERAL)["input_ids"] == new_words(GENERAL)["input_ids"], "other texts read as before"


def test_the_command_says_what_it_made(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for message in messages %}<|turn|>{{ message['content'] }}{% endfor %}", encoding="utf-8")
    given = ["--data", str(texts), "--vocabulary", "300", "--special", "<|turn|>", "--chat-template", str(template)]
    assert cli.run(["tokenizer", *given, "--output", str(tmp_path / "made"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fits"][0]["vocabulary"] <= 300
    made = AutoTokenizer.from_pretrained(tmp_path / "made")
    (ids,) = made.apply_chat_template([[{"role": "user", "content": "the"}]], tokenize=True)["input_ids"]
    assert ids[0] == made.convert_tokens_to_ids("<|turn|>")
    assert cli.run(["tokenizer", *given, "--output", str(tmp_path / "made")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_nothing_to_add_says_so(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("the cat sat\n" * 30, encoding="utf-8")
    with pytest.raises(InputError, match=r"no word that .* cuts into pieces stands in the texts 10 times"):
        make(file, tmp_path / "made", extend=str(base("llama", tmp_path / "base")))
