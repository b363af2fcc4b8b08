"""The stream that pre-training reads: every token once an epoch, wherever it is cut; masks as BERT has them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tunesmith.config_pretrain import PretrainConfig
from tunesmith.data.corpus import divide, read_texts
from tunesmith.data.corrupt import Marks, Masked
from tunesmith.data.pack import pack
from tunesmith.data.stream import Mixed, Overlapping, Renewed, Some, Stream, Tokens, lay_out, mix
from tunesmith.data.vocabulary import train_tokenizer
from tunesmith.errors import InputError
from tunesmith.records import Examples, Origin, PlainText

END = 2


def numbered(count: int) -> Tokens:
    """Ids that occur once, between two end tokens."""
    return Tokens(np.array([END, *range(10, 10 + count), END], dtype=np.int32), 3 * count, 1)


def trained(rows: Renewed) -> list[int]:
    """The tokens that a batch of all rows is judged by, each with the token before it as it stands in the stream."""
    return sorted(pack(list(rows), share=True).targets.tolist())


@pytest.mark.parametrize("length", [2, 7, 12, 40, 100])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_token_is_trained_once_an_epoch(length: int, epoch: int) -> None:
    rows = Stream(numbered(39), length).in_epoch(epoch)
    assert trained(rows) == [END, *range(10, 49)]
    assert rows.lengths == [len(row.input_ids) for row in rows]
    for row in rows:
        follows = [b - a for a, b in zip(row.input_ids, row.input_ids[1:], strict=False) if END not in (a, b)]
        assert set(follows) <= {1}, "neighbours are neighbours in the text"


def test_epochs_cut_at_other_places() -> None:
    rows = Stream(numbered(39), 7)
    begins = {epoch: frozenset(row.input_ids[0] for row in rows.in_epoch(epoch)) for epoch in range(4)}
    assert len(set(begins.values())) >= 3
    assert rows.in_epoch(2).in_epoch(2)[3] == rows.in_epoch(2)[3], "and each of them at its own"


@pytest.mark.parametrize("length", [4, 7, 8, 41, 60])
def test_what_is_measured_is_judged_once_behind_half_a_row(length: int) -> None:
    rows = Overlapping(numbered(39), length)
    assert trained(rows) == [END, *range(10, 49)]
    for row in list(rows)[1:]:
        assert not any(row.trained[: min(length // 2, len(row.trained) - 1)])


def test_a_mix_has_its_shares_and_reads_on() -> None:
    main, other = Stream(numbered(60), 7), Stream(Tokens(numbered(39).ids + 100, 1, 1), 7)
    rows = mix(main, [(other, 0.25)])
    assert isinstance(rows, Mixed)
    assert len(rows) == 11 + 4  # 11 rows of the data are three quarters, nearly
    of_other = [row.input_ids for epoch in range(3) for row in list(rows.in_epoch(epoch))[11:]]
    assert [ids[0] for ids in of_other[:7]] == [row.input_ids[0] for row in other]
    with pytest.raises(InputError, match="leaves nothing for the data"):
        mix(main, [(other, 0.6), (other, 0.4)])


def test_some_rows_are_spread_over_all() -> None:
    rows = Stream(numbered(60), 7)
    assert [row.input_ids[0] for row in Some.of(rows, 3)] == [rows[0].input_ids[0], rows[3].input_ids[0], 51]
    assert Some.of(rows, 100) is rows


def test_texts_stand_between_end_tokens_and_bytes_are_counted() -> None:
    """What looks like a control token is plain text."""
    tokenizer = train_tokenizer(["a"], "bpe", 300)
    texts = [PlainText("né", Origin("a", 1)), PlainText("a<|endoftext|>", Origin("a", 2))]
    tokens = lay_out(Examples("text", texts, (), "", ""), tokenizer)
    end = tokenizer.eos_token_id
    assert tokens.num_bytes == 3 + 14
    assert [place for place, token in enumerate(tokens.ids) if token == end] == [0, 4, 19]
    assert tokenizer.decode(tokens.ids[5:19]) == texts[1].text


# Masks

MARKS = Marks(mask=5, first=3, last=END, special=frozenset({2, 3, 5}), size=4000)


def test_masks_are_those_of_bert() -> None:
    """15 % of the tokens; of these 80 % show the mask, 10 % another token, 10 % what was there."""
    rows = Masked(Stream(numbered(20_000), 401), 0.15, MARKS, seed=3)
    kinds: Counter[str] = Counter()
    num_tokens = 0
    for row in rows:
        assert row.input_ids[0] == 3
        assert row.input_ids[-1] == END
        assert isinstance(row.target, tuple)
        judged = [token for token, is_judged in zip(row.input_ids, row.trained, strict=True) if is_judged]
        for shown, true in zip(judged, row.target, strict=True):
            kinds["mask" if shown == 5 else "same" if shown == true else "other"] += 1
        num_tokens += len(row.input_ids) - 2
    total = sum(kinds.values())
    assert total / num_tokens == pytest.approx(0.15, abs=0.008)
    assert {kind: count / total for kind, count in kinds.items()} == pytest.approx(
        {"mask": 0.8, "other": 0.1, "same": 0.1}, abs=0.025
    )


def test_masked_places_have_what_was_there_and_change_by_epoch() -> None:
    plain = Stream(numbered(300), 51)
    rows = Masked(plain, 0.15, MARKS, seed=3)
    true, row = (3, *plain[2].input_ids, END), rows[2]
    assert row.target == tuple(token for token, judged in zip(true, row.trained, strict=True) if judged)
    untouched = [(a, b) for a, b, judged in zip(row.input_ids, true, row.trained, strict=True) if not judged]
    assert all(a == b for a, b in untouched)
    assert rows.in_epoch(0)[2] == row
    assert rows.in_epoch(1)[2].trained != row.trained
    assert Masked(plain, 0.15, MARKS, seed=4)[2].trained != row.trained


# Texts


def test_a_file_is_a_text_and_its_end_is_held_out(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("\n".join(f"line {number}" for number in range(1000)) + "\n", encoding="utf-8")
    config = PretrainConfig(data=str(file), architecture="llama", held_out=0.1)
    parts = divide(read_texts(str(file), config), config)
    texts = [part.rows[0].text for part in (parts.train, parts.validation, parts.test)]
    assert "".join(texts) == file.read_text(encoding="utf-8")
    assert all(text.startswith("line ") and text.endswith("\n") for text in texts)
    assert len(texts[2]) == pytest.approx(0.1 * file.stat().st_size, abs=10)
    assert parts.test.rows[0].origin.line == 1 + "".join(texts[:2]).count("\n")


def test_many_texts_are_divided_and_like_ones_stay_together(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [f'{{"text": "text number {index % 150} of many, {"x" * (index % 7)}"}}' for index in range(300)]
    file.write_text("\n".join(rows), encoding="utf-8")
    config = PretrainConfig(data=str(file), architecture="llama", held_out=0.1)
    parts = divide(read_texts(str(file), config), config)
    train, test = ({row.text for row in part.rows} for part in (parts.train, parts.test))
    assert len(parts.train.rows) + len(parts.validation.rows) + len(parts.test.rows) == 300
    assert not train & test


def test_a_text_too_short_to_be_divided_says_so(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a", encoding="utf-8")
    config = PretrainConfig(data=str(tmp_path / "short.txt"), architecture="llama")
    with pytest.raises(InputError, match="too short to be divided"):
        divide(read_texts(config.data, config), config)


# Tokenizers

WORDS = "In the beginning God created the heaven and the earth. And the earth was without form, and void;\n\t7 naïve"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tokenizer_gives_back_every_text(kind: str) -> None:
    """Also letters that it has not seen: they are bytes."""
    tokenizer = train_tokenizer([WORDS] * 20, kind, 560, ("<|turn|>",), "{{ messages }}")
    assert len(tokenizer) <= 560
    for text in (WORDS, "  two blanks, 漢字 \U0001f600\n\n end"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
    assert tokenizer("<|turn|>", add_special_tokens=False)["input_ids"] == [tokenizer.convert_tokens_to_ids("<|turn|>")]
    assert tokenizer.chat_template == "{{ messages }}"


def test_wordpiece_is_as_bert_has_it() -> None:
    tokenizer = train_tokenizer([WORDS] * 20, "wordpiece", 80)
    assert tokenizer.convert_ids_to_tokens(tokenizer("The 漢")["input_ids"]) == ["[CLS]", "the", "[UNK]", "[SEP]"]


def test_a_vocabulary_without_room_says_so() -> None:
    with pytest.raises(InputError, match=r"vocabulary is 100; bpe needs 259"):
        train_tokenizer([WORDS], "bpe", 100)
