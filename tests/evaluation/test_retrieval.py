"""Passages: found as the formula of BM25 finds them, cut at paragraphs, read from a folder."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import pytest

from tunesmith.errors import InputError
from tunesmith.evaluation.retrieval import WORDS, best_passages, cut, find_passages, read_passages


def bm25(passages: list[list[str]], query: list[str]) -> list[float]:
    """Robertson & Zaragoza 2009, equation 3.15, k1 = 1.5 and b = 0.75, with Lucene's idf, which is never negative."""
    num, mean = len(passages), sum(map(len, passages)) / len(passages)
    scores = []
    for passage in passages:
        counts, score = Counter(passage), 0.0
        for word in query:
            having = sum(word in other for other in passages)
            idf = math.log(1 + (num - having + 0.5) / (having + 0.5))
            score += idf * counts[word] / (counts[word] + 1.5 * (1 - 0.75 + 0.75 * len(passage) / mean))
        scores.append(score)
    return scores


def test_what_is_found_is_best_by_the_formula() -> None:
    rng = random.Random(0)
    words = [f"w{index}" for index in range(30)]
    passages = [rng.choices(words, k=rng.randrange(3, 20)) for _ in range(40)]
    for _ in range(20):
        query = rng.sample(words, 4)
        scores = bm25(passages, query)
        (found,) = find_passages([" ".join(passage) for passage in passages], [" ".join(query)], 3)
        best = sorted(scores, reverse=True)[:3]
        by_text = {" ".join(passage): score for passage, score in zip(passages, scores, strict=True)}
        assert [by_text[text] for text in reversed(found)] == pytest.approx(best), "the best one stands last"


def test_a_question_without_known_words_finds_something() -> None:
    assert len(find_passages(["one two", "three"], ["?!", "four"], 3)[0]) == 2


def test_the_bound_reads_the_passage_most_like_the_answer() -> None:
    passages = ["the fee is ten euro", "a permit takes two weeks", "nothing"]
    assert best_passages(passages, ["It takes two weeks.", "Ten euro"]) == [[passages[1]], [passages[0]]]


def test_paragraphs_stay_whole_where_they_can() -> None:
    short, long = "one two three", " ".join(["word"] * (2 * WORDS + 5))
    assert cut(f"{short}\n\n{short}") == [f"{short}\n{short}"]
    assert [len(passage.split()) for passage in cut(long)] == [WORDS, WORDS, 5]
    almost = " ".join(["word"] * (WORDS - 1))
    assert cut(f"{almost}\n\n{short}") == [almost, short]
    assert cut("\n\n \n") == []


def test_documents_come_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.pdf").write_text("not read")
    assert read_passages(tmp_path) == ["first", "second"]


@pytest.mark.parametrize(
    ("name", "raw", "message"), [("a.txt", b"\xff", "not UTF-8 at byte 0"), ("a.pdf", b"x", "holds no text")]
)
def test_what_cannot_be_read_is_said(name: str, raw: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(InputError, match=message):
        read_passages(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        read_passages(tmp_path / name)
