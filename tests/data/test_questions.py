"""Questions to passages: what is read, what is refused by file and line, what is alike, and what stays together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data import sources
from tunesmith.data.corpus import _as_text
from tunesmith.data.quality.report import check
from tunesmith.data.split import key_of, split, split_given
from tunesmith.data.store import decode, encode
from tunesmith.data.view import describe_target
from tunesmith.errors import InputError
from tunesmith.records import UNANSWERABLE, Examples, SpanQuestion

PASSAGE = "The shed is red. The door of the shed is blue, and so is its roof."


def load(*rows: dict[str, Any]) -> Examples:
    return sources.load(list(rows), "extractive-qa")


def asked(answers: Any, question: str = "What colour is the door?", context: str = PASSAGE) -> dict[str, Any]:
    return {"context": context, "question": question, "answers": answers}


def first(examples: Examples) -> SpanQuestion:
    row = examples.rows[0]
    assert isinstance(row, SpanQuestion)
    return row


@pytest.mark.parametrize(
    ("answers", "texts", "starts"),
    [
        ({"text": ["blue"], "answer_start": [41]}, ("blue",), (41,)),
        ({"text": ["blue", "blue", "is blue"], "answer_start": [41, 41, 38]}, ("blue", "is blue"), (41, 38)),
        ({"text": ["shed", "shed"], "answer_start": [4, 33]}, ("shed", "shed"), (4, 33)),
        ({"text": ["blue"], "answer_start": [None]}, ("blue",), (41,)),
        ({"text": ["blue"]}, ("blue",), (41,)),
        (["blue"], ("blue",), (41,)),
        ("blue", ("blue",), (41,)),
        ("shed", ("shed",), (4,)),
        ({"text": [], "answer_start": []}, (), ()),
        ([], (), ()),
    ],
)
def test_answers_are_taken_where_they_stand(answers: Any, texts: tuple[str, ...], starts: tuple[int, ...]) -> None:
    examples = load(asked(answers))
    row = first(examples)
    assert (row.answers, row.starts) == (texts, starts)
    assert all(PASSAGE[start : start + len(text)] == text for text, start in zip(texts, starts, strict=True))
    assert examples.class_names == (() if texts else (UNANSWERABLE,))
    assert decode(encode(row), row.origin) == row
    assert describe_target(row) == (" / ".join(dict.fromkeys(texts)) or "no answer")


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ("green", r"q.jsonl:2: 'green' does not stand in the passage. Copy the answer from it letter by letter"),
        ({"text": ["blue"], "answer_start": [40]}, r"q.jsonl:2: 'answers' says that 'blue' stands at character 40"),
        ({"text": ["blue"], "answer_start": [-25]}, r"q.jsonl:2: .* stands at character -25"),
        ({"text": ["blue"], "answer_start": ["41"]}, r"q.jsonl:2: 'answers' has the start '41'"),
        ({"text": ["blue", "red"], "answer_start": [41]}, r"q.jsonl:2: 'answers' has 2 texts and 1 starts"),
        ("", r"q.jsonl:2: 'answers' is empty. Fill it in; a question without an answer has an empty list"),
        (7, r"q.jsonl:2: 'answers' is the number 7, expected text"),
        (["blue", ""], r"q.jsonl:2: 'answers\[1\]' is empty"),
    ],
)
def test_what_cannot_be_found_is_named_by_file_and_line(answers: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in (asked("red"), asked(answers))) + "\n")
    with pytest.raises(InputError, match=said):
        sources.load(file, "extractive-qa")


def test_squads_own_files_and_plain_tables(tmp_path: Path) -> None:
    questions = [
        {"question": "Colour?", "id": "1", "answers": [{"text": "red", "answer_start": 12}], "is_impossible": False},
        {"question": "Age?", "id": "2", "answers": [], "is_impossible": True},
    ]
    squad = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": PASSAGE, "qas": questions}]}]}
    (tmp_path / "dev.json").write_text(json.dumps(squad))
    examples = sources.load(tmp_path / "dev.json", "extractive-qa")
    assert [row.answers for row in examples.rows if isinstance(row, SpanQuestion)] == [("red",), ()]
    assert "2 rows" in examples.recognised
    assert "1 unanswerable" in examples.recognised
    (tmp_path / "q.csv").write_text(f'question,passage,answer\nColour?,"{PASSAGE}",red\n')
    assert first(sources.load(tmp_path / "q.csv", "extractive-qa")).starts == (12,)
    assert sources.load(tmp_path / "q.csv").task == "generation"  # unless asked for
    with pytest.raises(InputError, match="or let spans be found"):
        sources.load(tmp_path / "dev.json")


def passages(number: int) -> list[dict[str, Any]]:
    """Three questions each; all ask for a colour in the same words but one."""
    rows = []
    for index in range(number):
        context = f"House {index} has a red door, a blue roof and a green fence; it was built in {1900 + index}."
        rows += [
            asked(colour, f"Which colour does the {thing} of the house have?", context)
            for thing, colour in (("door", "red"), ("roof", "blue"), ("fence", "green"))
        ]
    return rows


def test_questions_to_one_passage_are_no_duplicates_and_stay_together() -> None:
    rows = passages(30)
    examples = load(*rows)
    assert not check(examples).findings
    again = check(
        load(*rows, rows[4], asked("blue", "Which colour does the roof of the house have??", rows[4]["context"]))
    )
    assert {finding.check: finding.count for finding in again.findings} == {"exact duplicates": 1, "near duplicates": 1}
    parts = split(examples, 0)
    kept = [{row.context for row in part.rows} for part in (parts.train, parts.validation, parts.test)]  # type: ignore[union-attr]
    assert sum(map(len, kept)) == len(set.union(*kept)) == 30
    assert "30 passages with several questions, each kept in one part" in parts.note


def test_a_test_with_unanswerable_questions_needs_training_with_them() -> None:
    with pytest.raises(InputError, match="label 'unanswerable' is not among the training labels"):
        split_given(load(*passages(8)), load(asked([])), 0)


def test_a_row_is_its_question_and_its_passage() -> None:
    one, other = load(asked("blue"), asked("blue", context=f"{PASSAGE} So it is.")).rows
    assert key_of(one) != key_of(other)
    assert _as_text(one).text == f"{PASSAGE}\n\nWhat colour is the door?"
