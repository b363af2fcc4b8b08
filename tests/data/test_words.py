"""Word by word gives the tokenizer's own ids, and tokenizers for which it would not are told apart."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tunesmith.data import words
from tunesmith.data.words import KNOWN_SPLITS, Words, encode_whole, ends_at_spaces

ALPHABET = [
    *"aabcde",
    *"  ",
    "\n",
    "\t",
    "\r\n",
    *",.!?'\"-_/",
    *"0123",
    "ä",
    "é",
    "e\u0301",
    "\u0301",
    "ß",
    "Ж",
    "中",
    "文",
]
ALPHABET += [
    "\u00a0",
    "\u2003",
    "\u200b",
    "\x1c",
    "\x85",
    "\u180e",
    "\ufdfa",
    "\x00",
    "'s",
    "'LL",
    "<m>",
    "[X]",
    "🙂",
    "A",
]

SPLIT = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in sorted(KNOWN_SPLITS)]
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
EXACT: dict[str, Any] = {
    "gpt2": (None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt2-prefix": (None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "digits": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])),
    "nfc": (normalizers.NFC(), pre_tokenizers.Sequence([SPLIT[1], BYTES])),
    "bert": (normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), models.WordPiece(unk_token="[UNK]")),
    **{f"split-{number}": (None, pre_tokenizers.Sequence([split, BYTES])) for number, split in enumerate(SPLIT)},
}


def trained(normalizer: Any, split: Any, model: Any = None, **added: Any) -> PreTrainedTokenizerFast:
    """A vocabulary learned from texts of the alphabet, so that tokens hold all that may stand together."""
    draw = random.Random(0)
    made = Tokenizer(model or models.BPE())
    made.normalizer, made.pre_tokenizer = normalizer, split
    special = {"special_tokens": ["[UNK]"], "show_progress": False, "vocab_size": 900}
    kind = trainers.WordPieceTrainer if isinstance(model, models.WordPiece) else trainers.BpeTrainer
    texts = ["".join(draw.choices(ALPHABET, k=40)) for _ in range(300)]
    made.train_from_iterator(texts, kind(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **special))
    made.add_special_tokens([AddedToken("<m>", lstrip=True)])
    made.add_tokens([AddedToken("[X]", **added)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


def saved(tokenizer: PreTrainedTokenizerFast) -> Any:
    return json.loads(tokenizer.backend_tokenizer.to_str())


def trusting(tokenizer: PreTrainedTokenizerFast) -> Words:
    """Without the look at the first texts."""
    made = Words(tokenizer)
    assert made._is_exact
    made._num_checked = words.TEXTS_CHECKED
    return made


def assert_equal_ids(tokenizer: PreTrainedTokenizerFast, made: Words, texts: list[str]) -> None:
    for _ in range(2):  # learned, then found
        found = [ids_T.tolist() for ids_T in made.encode(texts)]
        assert found == [ids_T.tolist() for ids_T in encode_whole(texts, tokenizer)]
    assert found == tokenizer(texts, add_special_tokens=False)["input_ids"]


TEXTS = st.lists(
    st.lists(st.sampled_from(ALPHABET), max_size=30).map("".join) | st.text(max_size=20), min_size=1, max_size=6
)


# Runs of blanks, which are tokens of their own; chance alone does not always come upon them.
BLANKS = [f"a{before}{' ' * count}b" for before in ("", "\n", "\t", ".") for count in range(1, 8)]


@pytest.mark.parametrize("kind", EXACT)
def test_word_by_word_is_what_the_tokenizer_does(kind: str) -> None:
    tokenizer = trained(*EXACT[kind])
    made = trusting(tokenizer)

    @settings(max_examples=300)
    @given(TEXTS)
    @example(BLANKS)
    def agree(texts: list[str]) -> None:
        assert_equal_ids(tokenizer, made, texts)

    agree()


def test_a_cut_at_every_space_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same property with a fault: runs of blanks and line breaks are taken apart."""
    monkeypatch.setattr(words, "CUT", re.compile("(?= )"))
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        test_word_by_word_is_what_the_tokenizer_does("gpt2")


def test_what_is_forgotten_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_CHARACTERS", 10)
    tokenizer = trained(*EXACT["gpt2"])
    made = trusting(tokenizer)
    for text in ("a few words of a text", "others in  it\n and more", "a few words again"):
        assert_equal_ids(tokenizer, made, [text, "in every batch"])
    assert made._middle._num_characters < 40


SPACE = pre_tokenizers.Split(" ", "merged_with_previous")
NOT_EXACT = {
    "gemma": (normalizers.Replace(" ", "\u2581"), SPACE, {}),
    "sentencepiece": (None, pre_tokenizers.Metaspace(), {}),
    "a pattern nobody knows": (None, pre_tokenizers.Split(Regex(r"\w+ \w+"), "isolated"), {}),
    "no split": (None, BYTES, {}),
    "digits alone": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(), BYTES]), {}),
    "a token that takes the space after it": (*EXACT["gpt2"], {"rstrip": True}),
}


@pytest.mark.parametrize("kind", NOT_EXACT)
def test_others_get_their_texts_whole(kind: str) -> None:
    normalizer, split, added = NOT_EXACT[kind]
    tokenizer = trained(normalizer, split, **added)
    assert not ends_at_spaces(saved(tokenizer))
    assert_equal_ids(tokenizer, Words(tokenizer), ["a b", "[X] a  b\n c"])


def test_a_difference_among_the_first_texts_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "ends_at_spaces", lambda saved: True)
    tokenizer = trained(*NOT_EXACT["gemma"][:2])
    made = Words(tokenizer)
    assert_equal_ids(tokenizer, made, ["a b c", "ab cd e"])
    assert not made._is_exact
