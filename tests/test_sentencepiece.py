"""Tokenizers as SentencePiece's become in transformers, like Llama's (BPE) and T5's (unigram): from data to export."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.parity.tiny import VOCABULARY, make_model
from tunesmith.config import TuneConfig
from tunesmith.config_export import ExportConfig
from tunesmith.data.ids import prompt_ids
from tunesmith.data.tokenize import tokenize
from tunesmith.evaluation.tasks import predict_texts
from tunesmith.export import export
from tunesmith.records import Conversation, Examples, Message, Origin, Ranking
from tunesmith.runs.run import Run
from tunesmith.tuning import tune

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]  # numbered as the tiny models have them
WORDS = ["sand", "lime", "brick", "a wall", "of", "two", "roofs", "is", "built  twice", "häuser", "in\nline"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{% generation %} {{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)


def make_rows() -> list[dict[str, str]]:
    draw = random.Random(0)
    sources = [" ".join(draw.choices(WORDS, k=draw.randrange(2, 5))) for _ in range(40)]
    return [{"source": source, "target": "two häuser"} for source in sources]  # easily learned


def like_llama(texts: list[str]) -> PreTrainedTokenizerFast:
    """Llama 2's: blanks become a sign of their own, and one stands before the text."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # while it learns: no token is two words
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL))
    made.pre_tokenizer = None  # type: ignore[assignment]
    steps = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=TEMPLATE, **named)


def like_t5(texts: list[str]) -> PreTrainedTokenizerFast:
    """T5's: blanks in a row become one, the end stands behind each side."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, unk_token="<unk>")
    )
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


TALK = [("user", "a wall"), ("assistant", "two häuser"), ("user", "of  two"), ("assistant", "roofs of\nsand")]


def test_no_blank_is_put_before_an_answer() -> None:
    """Ids and what is trained are what plain transformers has of the conversation as a whole."""
    tokenizer = like_llama([text for row in make_rows() for text in row.values()])
    said = [{"role": role, "content": text} for role, text in TALK]
    whole = tokenizer.apply_chat_template(said, return_dict=True, return_assistant_tokens_mask=True)
    row = Conversation(tuple(Message(role, text) for role, text in TALK), Origin("here", 1))  # type: ignore[arg-type]
    made = tokenize(Examples("generation", [row], (), "", ""), tokenizer, 99)[0]
    assert list(made.input_ids) == whole["input_ids"]
    assert list(made.trained) == [bool(one) for one in whole["assistant_masks"]]
    asked = prompt_ids(row.messages[:3], tokenizer)
    assert list(asked) == whole["input_ids"][: len(asked)]


def test_answers_that_are_ranked_are_those_that_are_written() -> None:
    tokenizer = like_llama([text for row in make_rows() for text in row.values()])
    prompt, answers = (Message("user", "a wall"),), ("two häuser", "sand")
    ranking = Ranking(prompt, answers, (1, 2), Origin("here", 1))
    made = tokenize(Examples("ranking", [ranking], (), "", ""), tokenizer, 99)[0]
    for answer, (first, last) in zip(answers, pairwise([*made.answers, len(made.input_ids)]), strict=True):
        talk = Conversation((*prompt, Message("assistant", answer)), Origin("here", 1))
        alone = tokenize(Examples("generation", [talk], (), "", ""), tokenizer, 99)[0]
        begin = made.answers[0]
        assert list(made.input_ids[:begin]) == list(alone.input_ids[:begin])
        assert list(made.input_ids[first:last]) == list(alone.input_ids[begin:])


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_from_data_to_export(kind: str, tmp_path: Path) -> None:
    """What the run says is what plain transformers says of the export, which has the same tokenizer."""
    rows = make_rows()
    tokenizer = (like_llama if kind == "llama" else like_t5)([text for row in rows for text in row.values()])
    make_model(kind, "generation").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = {"model": str(tmp_path / "base"), "data": str(tmp_path / "rows.jsonl"), "output": tmp_path / "run"}
    more = {
        "method": "lora",
        "learning_rate": 0.01,
        "num_train_epochs": 5,
        "per_device_train_batch_size": 4,
        "precision": "fp32",
        "check": False,
    }
    tune(TuneConfig.read(given=given | more), quiet=True)
    run = Run.open(tmp_path / "run")
    asked = [row["source"] for row in rows[:6]]
    said = predict_texts(run.network, asked, max_new_tokens=12)
    export(ExportConfig.read(given={"runs": [run.folder], "output": tmp_path / "merged"}))
    plain = AutoTokenizer.from_pretrained(tmp_path / "merged")
    auto = AutoModelForCausalLM if kind == "llama" else AutoModelForSeq2SeqLM
    model = auto.from_pretrained(tmp_path / "merged").eval()
    for text, answer in zip(asked, said, strict=True):
        assert plain(text)["input_ids"] == tokenizer(text)["input_ids"]
        talk = [{"role": "user", "content": text}]
        ids = plain.apply_chat_template(talk, return_dict=False) if kind == "llama" else plain(text)["input_ids"]
        made = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, use_cache=False)[0]
        made = made[len(ids) if kind == "llama" else 1 :]
        assert answer["answer"] == plain.decode(made, skip_special_tokens=True)
    assert sum(answer["answer"].strip() == "two häuser" for answer in said) > 3, "it has learned"
