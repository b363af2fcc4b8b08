"""Columns to examples: what is recognised, what is refused, and by which line."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.data.formats import recognise
from tunesmith.errors import InputError
from tunesmith.records import (
    Conversation,
    Example,
    Examples,
    Judgement,
    LabelledText,
    Origin,
    Ranking,
    RawRow,
    TaggedWords,
)


def rows(*fields: dict[str, Any]) -> list[RawRow]:
    return [RawRow(field, Origin("d.jsonl", line)) for line, field in enumerate(fields, 1)]


def turns(examples: Examples) -> list[tuple[str, str]]:
    row = examples.rows[0]
    assert isinstance(row, Conversation)
    return [(turn.role, turn.content) for turn in row.messages]


Q_AND_A = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "completion": "a"}, Q_AND_A),
        ({"Question": "q", "Answer": "a"}, Q_AND_A),
        ({"query": "q", "response": "a"}, Q_AND_A),
        ({"instruction": "q", "input": "", "output": "a"}, Q_AND_A),
        ({"instruction": "q", "input": "i", "output": "a"}, [("user", "q\n\ni"), ("assistant", "a")]),
        ({"instruction": "q", "output": "a", "system": "s"}, [("system", "s"), *Q_AND_A]),
        ({"messages": [{"role": role, "content": text} for role, text in Q_AND_A * 2]}, Q_AND_A * 2),
    ],
)
def test_conversations(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    examples = recognise(rows(row))
    assert examples.task == "generation"
    assert turns(examples) == expected


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a"], ("a", "b")),
        ([10, 9, 2], ("2", "9", "10")),
        ([True, False], ("false", "true")),
        ([" a ", "b"], ("a", "b")),
        ([1.0, 2.0], ("1", "2")),
        (["NA", "007"], ("007", "NA")),
    ],
)
def test_class_names(labels: list[Any], names: tuple[str, ...]) -> None:
    examples = recognise(rows(*({"review": f"t{i}", "sentiment": label} for i, label in enumerate(labels))))
    assert examples.task == "classification"
    assert examples.class_names == names
    assert "text from 'review', label from 'sentiment'" in examples.recognised


def test_scores() -> None:
    examples = recognise(rows({"text": "t", "score": "1.5"}, {"text": "u", "score": -2}))
    assert [row.target for row in examples.rows if isinstance(row, LabelledText)] == [1.5, -2.0]
    assert recognise(rows({"text": "t", "label": 3}), "regression").task == "regression"


def test_an_explicit_mapping_wins() -> None:
    raw = rows({"text": "wrong", "body": "right", "label": "x"}, {"text": "w", "body": "r", "label": "y"})
    first = recognise(raw, columns={"text": "body"}).rows[0]
    assert isinstance(first, LabelledText)
    assert first.text == "right"


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ([{"text": "  ", "label": "a"}], {}, "d.jsonl:1: 'text' is empty"),
        ([{"text": None, "label": "a"}], {}, "d.jsonl:1: 'text' is empty"),
        ([{"text": "t", "label": ""}], {}, "d.jsonl:1: 'label' is empty"),
        ([{"text": "t", "label": 1.5}], {}, "is the number 1.5, a class needs a name"),
        ([{"text": {"t": 1}, "label": "a"}], {}, "'text' is dict, expected text"),
        ([{"text": "t", "score": "many"}], {}, "'score' is 'many', expected a finite number"),
        ([{"text": "t", "score": "inf"}], {}, "expected a finite number"),
        ([{"text": "t", "score": True}], {}, "expected a finite number"),
        ([{"text": "t", "label": "a"}, {"text": "u", "label": "a"}], {}, "all 2 rows have the one label 'a'"),
        ([{"prompt": "q", "completion": ""}], {}, "'completion' is empty"),
        ([{"messages": []}], {}, "'messages' is not a list of turns"),
        ([{"messages": [{"role": "user", "content": "q"}]}], {}, "the last turn is not the assistant's"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}], {}, "turn 1 is the assistant's, expected the user's"),
        ([{"messages": [{"role": "tool", "content": "a"}]}], {}, "turn 1 is the tool's, expected the user's"),
        ([{"text": "t"}], {}, "its columns (text) fit no format"),
        ([{"messages": [{"role": "judge", "content": "a"}]}], {}, "turn 1 has role 'judge'; known: system, user"),
        (
            [{"text": "t", "label": "a"}],
            {"columns": {"text": "txt"}},
            "no column 'txt' (given for text): did you mean 'text'?",
        ),
        ([{"text": "t", "label": "a"}], {"columns": {"txt": "text"}}, "unknown part 'txt': did you mean 'text'?"),
        ([], {}, "no rows"),
    ],
)
def test_what_cannot_be_used(given: list[dict[str, Any]], options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        recognise(rows(*given), **options)
    assert words in str(caught.value)


def test_all_bad_rows_are_named() -> None:
    with pytest.raises(InputError) as caught:
        recognise(rows({"text": "", "label": "a"}, {"text": "t", "label": "b"}, {"text": "t", "label": None}))
    assert "2 problems in d.jsonl" in str(caught.value)
    assert "d.jsonl:1: 'text'" in str(caught.value)
    assert "d.jsonl:3: 'label'" in str(caught.value)


def test_the_fingerprint_is_of_what_is_said_not_of_where_it_stands() -> None:
    one, two = {"text": "t", "label": "a"}, {"text": "u", "label": "b"}
    moved = [RawRow(field, Origin("other.csv", 9)) for field in (one, two)]
    assert recognise(rows(one, two)).fingerprint == recognise(moved).fingerprint
    assert recognise(rows(one, two)).fingerprint != recognise(rows(one, two | {"label": "a"}, two)).fingerprint


# What every format becomes. Rankings, judgements, tags and the like are read and checked, and trained by other stages.

FORMS: list[tuple[str, dict[str, Any], str]] = [
    ("chosen/rejected", {"prompt": "q", "chosen": "a", "rejected": "b"}, "q | a > b"),
    (
        "chosen/rejected",
        {
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
        },
        "q | a > b",
    ),
    ("ranked answers", {"prompt": "q", "answers": ["a", "b", "c"]}, "q | a > b > c"),
    ("ranked answers", {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [7, 2, 7]}, "q | b > a = c"),
    ("judged answer", {"prompt": "q", "completion": "a", "label": False}, "q | a: bad"),
    ("judged answer", {"prompt": "q", "completion": "a", "label": "True"}, "q | a: good"),
    ("messages", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "q | a"),
    ("alpaca", {"instruction": "q", "input": "i", "output": "a", "history": [["x", "y"]]}, "x | y | q\n\ni | a"),
    (
        "passage/question",
        {"context": "It is red.", "question": "Colour?", "answers": ["red"]},
        "It is red.\n\nColour? | red",
    ),
    (
        "passage/question",
        {"context": "It is red.", "question": "Colour?", "answers": {"text": ["red"], "answer_start": [6]}},
        "It is red.\n\nColour? | red",
    ),
    ("translation", {"translation": {"en": "a", "de": "b"}}, "a | b"),
    ("source/target", {"article": "long", "highlights": "short"}, "long | short"),
    ("words/tags", {"tokens": ["a", "b"], "ner_tags": ["O", 3]}, "a/O b/3"),
    ("text/labels", {"text": "t", "labels": ["y", "x"]}, "t: x, y"),
    ("text/labels", {"text": "t", "labels": []}, "t: "),
    ("text/label", {"text": "t", "labels": "x"}, "t: x"),
]


@pytest.mark.parametrize(("name", "row", "expected"), FORMS, ids=[f"{name}-{said[:20]}" for name, _, said in FORMS])
def test_every_format_is_known_by_its_columns(name: str, row: dict[str, Any], expected: str) -> None:
    other = {
        key: "other" if key in ("label", "labels") and isinstance(value, str) else value for key, value in row.items()
    }
    examples = recognise(rows(row, other if name == "text/label" else row))
    assert f", {name}" in examples.recognised
    assert said(examples.rows[0]) == expected
    again = recognise(rows(row, other if name == "text/label" else row))
    assert list(again.rows) == list(examples.rows)


def said(row: Example) -> str:
    if isinstance(row, LabelledText):
        return f"{row.text}: {', '.join(row.target) if isinstance(row.target, tuple) else row.target}"
    if isinstance(row, TaggedWords):
        return " ".join(f"{word}/{tag}" for word, tag in zip(row.words, row.tags, strict=True))
    if isinstance(row, Conversation):
        return " | ".join(turn.content for turn in row.messages)
    assert isinstance(row, Ranking | Judgement)
    asked = " | ".join(turn.content for turn in row.prompt)
    if isinstance(row, Judgement):
        return f"{asked} | {row.answer}: {'good' if row.is_good else 'bad'}"
    text = row.answers[0]
    for answer, rank, before in zip(row.answers[1:], row.ranks[1:], row.ranks, strict=False):
        text += f" {'=' if rank == before else '>'} {answer}"
    return f"{asked} | {text}"


def test_gaps_between_ranks_are_kept() -> None:
    """They say how strongly one is preferred, which a margin asks for."""
    row = recognise(rows({"prompt": "q", "answers": ["a", "b", "c"], "ranks": [7, 2, 7]})).rows[0]
    assert isinstance(row, Ranking)
    assert row.ranks == (1, 6, 6)


def test_a_text_alone_is_one_when_asked_for() -> None:
    assert recognise(rows({"text": "t"}), "text").task == "text"
