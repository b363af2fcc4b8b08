"""Words and pairs as a tokenizer lays them out, against the tokenizer itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.test_tokenize import CHATML, byte_tokenizer
from tests.parity.tiny import make_tokenizer
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tunesmith import assets
from tunesmith.data import sources, tokens
from tunesmith.data.inputs import encode_pairs, encode_words
from tunesmith.data.pack import pack
from tunesmith.data.tokenize import measure, tokenize
from tunesmith.errors import InputError
from tunesmith.records import Examples, Origin, TaggedWords, TokenizedExample

ROWS = [
    ["Angela", "Merkel", "visited", "Mülheim-an-der-Ruhr", "."],
    ["don't", "stop", "(", "2.5", "%", ")"],
    ["a"],
    ["東京", "タワー"],
    ["</s>", "[SEP]", "is", "a", "sign"],
]


@pytest.fixture(scope="module")
def wordpiece() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(assets.model_folder("minilm-l6"))


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(assets.model_folder("smollm2-135m-instruct"))


def first_tokens(word_ids: list[int | None]) -> tuple[int, ...]:
    """The textbook way: a word's first token is where its number stands for the first time."""
    seen: set[int | None] = {None}
    return tuple(place for place, word in enumerate(word_ids) if word not in seen and not seen.add(word))  # type: ignore[func-returns-value]


def test_word_pieces_are_those_of_is_split_into_words(wordpiece: PreTrainedTokenizerBase) -> None:
    theirs = wordpiece(ROWS, is_split_into_words=True, split_special_tokens=True)
    for row, found in enumerate(encode_words(ROWS, wordpiece, 512)):
        assert list(found.ids) == theirs["input_ids"][row]
        assert found.begins == first_tokens(theirs.word_ids(row))
        assert found.num_cut == 0


def test_byte_pieces_are_those_of_a_tokenizer_that_puts_a_space_first(byte_level: PreTrainedTokenizerBase) -> None:
    """As examples of transformers load RoBERTa and GPT-2 for tagging."""
    spaced = AutoTokenizer.from_pretrained(assets.model_folder("smollm2-135m-instruct"))
    spaced.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    rows = ROWS[:-1]
    theirs = spaced(rows, is_split_into_words=True)
    for row, found in enumerate(encode_words(rows, byte_level, 512)):
        assert list(found.ids) == theirs["input_ids"][row]
        assert found.begins == first_tokens(theirs.word_ids(row))
    within = byte_level("see Angela Merkel", add_special_tokens=False)["input_ids"][1:]
    assert list(encode_words([["Angela", "Merkel"]], byte_level, 512)[0].ids) == within


ANY_WORD = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, max_size=6)
)
def test_every_word_has_a_place_of_its_own(wordpiece: PreTrainedTokenizerBase, words: list[str]) -> None:
    (found,) = encode_words([words], wordpiece, 512)
    assert len(found.begins) == len(words)
    assert sorted(set(found.begins)) == list(found.begins)


def test_a_word_of_nothing_is_the_unknown_token(wordpiece: PreTrainedTokenizerBase) -> None:
    (found,) = encode_words([["a", "\u200b", "b", "\u200d"]], wordpiece, 512)
    unknown = wordpiece.unk_token_id
    assert [found.ids[place] for place in found.begins] == [1037, unknown, 1038, unknown]
    (alone,) = encode_words([["\u200b"]], wordpiece, 512)
    assert list(alone.ids) == [wordpiece.cls_token_id, unknown, wordpiece.sep_token_id]


def test_a_control_token_in_a_word_is_letters(wordpiece: PreTrainedTokenizerBase) -> None:
    (found,) = encode_words([["[SEP]"]], wordpiece, 512)
    assert found.ids.count(wordpiece.sep_token_id) == 1


def test_the_last_words_are_cut_and_counted(wordpiece: PreTrainedTokenizerBase) -> None:
    """As transformers' truncation does, special tokens stay; half a word is still judged."""
    words = ["sunflowerseeds", "grow", "tall"]
    whole = encode_words([words], wordpiece, 512)[0]
    for limit in range(3, len(whole.ids)):
        theirs = wordpiece(words, is_split_into_words=True, truncation=True, max_length=limit)
        (found,) = encode_words([words], wordpiece, limit)
        assert list(found.ids) == theirs["input_ids"]
        assert found.begins == first_tokens(theirs.word_ids(0))
        assert found.num_cut == len(whole.ids) - limit


def tagged(*rows: tuple[list[str], list[str]]) -> Examples:
    return sources.load([{"words": words, "tags": tags} for words, tags in rows])


def test_lost_words_are_told() -> None:
    made = make_tokenizer()
    rows = tokenize(tagged((["w5", "w6", "w7", "w8"], ["A", "B", "A", "B"]), (["w9"], ["B"])), made, 4)
    assert rows[0].input_ids == (1, 5, 6, 2)
    assert rows[0].trained == (False, True, True, False)
    assert [row.target for row in rows] == [(0, 1), (1,)]
    assert "3 words judged, each at its first token; 1 rows cut by 2 tokens, 2 words lost" in str(measure(rows))


def test_a_row_of_which_nothing_fits_is_refused() -> None:
    with pytest.raises(InputError, match=r"<rows>:1: no word of it fits"):
        tokenize(tagged((["w5"], ["A"]), (["w6"], ["B"])), make_tokenizer(), 2)


def test_a_word_without_a_token_is_named_where_there_is_no_unknown_one() -> None:
    made = byte_tokenizer(CHATML)
    rows = [TaggedWords(("a", ""), ("A", "A"), Origin("<rows>", 1))]
    with pytest.raises(InputError, match=r"word 2, '', becomes no token"):
        encode_words([rows[0].words], _silent(made), 100)


def _silent(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that puts no space before a word, so that an empty one is nothing."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


PAIRS = [("A man sleeps.", "He is awake."), ("Is it?", "It is, said the man who sells " + "many " * 30 + "things.")]


def test_pairs_are_the_tokenizers_own(wordpiece: PreTrainedTokenizerBase) -> None:
    firsts, seconds = zip(*PAIRS, strict=True)
    for limit in (512, 20):
        theirs = wordpiece(list(firsts), list(seconds), truncation=True, max_length=limit)
        for row, found in enumerate(encode_pairs(firsts, seconds, wordpiece, limit)):
            ids, types = theirs["input_ids"][row], theirs["token_type_ids"][row]
            assert list(found.ids) == ids
            assert [int(place >= found.second_at) for place in range(len(ids))] == types
            assert found.num_cut == len(wordpiece(*PAIRS[row])["input_ids"]) - len(ids)


def test_pairs_of_a_tokenizer_without_types(byte_level: PreTrainedTokenizerBase) -> None:
    (found,) = encode_pairs(["one"], ["two"], byte_level, 512)
    assert list(found.ids) == byte_level("one", "two")["input_ids"]
    assert found.second_at == 0


def test_types_of_a_batch_stand_beside_its_rows() -> None:
    rows = [
        TokenizedExample((5, 6, 7), (False,) * 3, 0, 0, 0, second_at=2),
        TokenizedExample((5, 6, 7, 8), (False,) * 4, 1, 0, 1, second_at=1),
        TokenizedExample((5, 6), (False,) * 2, 1, 0, 2),
    ]
    types = pack(rows).token_types
    assert types is not None
    assert types.tolist() == [0, 1, 1, 1, 0, 0, 1, 0, 0]
    virtual = pack(rows[:1], num_virtual=2).token_types
    assert virtual is not None
    assert virtual.tolist() == [0, 0, 0, 0, 1]
    assert pack(rows[2:]).token_types is None


MANY = {
    "multi-label": [
        {"text": "w5 w6", "labels": ["a", "c"]},
        {"text": "w7", "labels": []},
        {"text": "w8", "labels": ["b"]},
    ],
    "token-classification": [{"words": ["w5", "w6"], "tags": ["B", "A"]}, {"words": ["w7"], "tags": ["A"]}],
    "pairs": [{"premise": "w5 w6", "hypothesis": "w7", "label": label} for label in "ab"],
    "scored pairs": [{"sentence1": "w5 w6", "sentence2": "w7", "score": score} for score in (0.5, 2.0)],
    "spans": [{"context": "w5 w6 w7", "question": "w8", "answers": answers} for answers in (["w6 w7"], [])],
}


@pytest.mark.parametrize("name", MANY)
def test_kept_rows_are_as_they_were(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets of every kind, and types, through the files that the next run finds."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    monkeypatch.setattr(tokens, "KEPT_FROM", 1)
    examples = sources.load(MANY[name], "extractive-qa" if name == "spans" else None)
    made = tokenize(examples, make_tokenizer(), 60)
    again = tokenize(examples, make_tokenizer(), 60)
    assert again is not made
    assert len(list((tmp_path / "tokens").iterdir())) == 1
    assert list(again) == list(made)
    assert [type(row.target) for row in again] == [type(row.target) for row in made]
    assert again.signal == made.signal


def test_targets_are_whether_each_class_holds() -> None:
    rows = tokenize(sources.load(MANY["multi-label"]), make_tokenizer(), 60)
    assert [row.target for row in rows] == [(True, False, True), (False, False, False), (False, True, False)]
    batch = pack(list(rows))
    assert batch.targets.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
