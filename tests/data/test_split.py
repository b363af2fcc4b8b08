"""Parts of a data set: a partition, each class in its share, no text in two parts, the same every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data import sources
from tunesmith.data.split import normalise, split, split_given, take, weigh
from tunesmith.data.store import Rows
from tunesmith.errors import InputError
from tunesmith.records import Examples, LabelledText, Origin, Split


def labelled(count: int, classes: str = "ab", repeats: int = 1) -> Examples:
    texts = [f"text {i // repeats}" for i in range(count)]
    return sources.load([{"text": text, "label": classes[hash_free(text) % len(classes)]} for text in texts])


def hash_free(text: str) -> int:
    return sum(text.encode())


def scored(count: int) -> Examples:
    return sources.load([{"text": f"t{i}", "score": i / 10} for i in range(count)])


def parts_of(parts: Split) -> tuple[Examples, ...]:
    return parts.train, parts.validation, parts.test


@given(st.integers(100, 300), st.integers(0, 5), st.sampled_from(["ab", "abc", "aaab"]), st.integers(1, 3))
def test_a_partition_in_shares_without_shared_texts(count: int, seed: int, classes: str, repeats: int) -> None:
    examples = labelled(count, classes, repeats)
    parts = parts_of(split(examples, seed))
    origins = [row.origin.line for part in parts for row in part.rows]
    assert sorted(origins) == list(range(1, count + 1))
    texts = [{normalise(row) for row in part.rows} for part in parts]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    whole = Counter(row.target for row in examples.rows if isinstance(row, LabelledText))
    for part, share in zip(parts, (0.8, 0.1, 0.1), strict=True):
        found = Counter(row.target for row in part.rows if isinstance(row, LabelledText))
        for name, size in whole.items():
            assert abs(found[name] - share * size) <= repeats, "off by more than one group of equal texts"


def test_equal_texts_stay_together_whatever_their_case_and_spaces() -> None:
    same = ["Good film", "good  film", "GOOD FILM\n", "ｇｏｏｄ film"]  # the last in full-width letters
    rows = [{"text": text, "label": "a"} for text in same] + [
        {"text": f"t{i}", "label": "ab"[i % 2]} for i in range(60)
    ]
    for seed in range(5):
        parts = split(sources.load(rows), seed)
        where = [sum(row.origin.line <= 4 for row in part.rows) for part in parts_of(parts)]
        assert sorted(where) == [0, 0, 4]
        assert "1 texts stand more than once" in parts.note


def test_scores_are_spread_over_the_parts() -> None:
    parts = split(scored(400), 0)
    means = [sum(float(r.target) for r in part.rows) / len(part.rows) for part in parts_of(parts)]  # type: ignore[union-attr]
    assert max(means) - min(means) < 2.0, "of a range of 40"


def test_the_seed_decides_and_nothing_else() -> None:
    examples = labelled(100)
    assert split(examples, 3) == split(examples, 3)
    assert split(examples, 3) != split(examples, 4)
    script = (
        "import json; from tests.data.test_split import labelled; from tunesmith.data.split import split, take\n"
        "parts = split(labelled(100), 3)\n"
        "print(json.dumps([parts.train.fingerprint, take(parts.train, 10, 1).fingerprint]))"
    )
    expected = [split(examples, 3).train.fingerprint, take(split(examples, 3).train, 10, 1).fingerprint]
    environment = os.environ | {
        "PYTHONHASHSEED": "77",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == expected


@given(st.integers(10, 90), st.integers(0, 3))
def test_a_subset_keeps_the_shares(size: int, seed: int) -> None:
    examples = labelled(100, "aaab")
    whole = Counter(row.target for row in examples.rows)  # type: ignore[union-attr]
    taken = take(examples, size, seed)
    assert len(taken.rows) == size
    found = Counter(row.target for row in taken.rows)  # type: ignore[union-attr]
    assert all(abs(found[name] - size * count / 100) <= 1 for name, count in whole.items())
    assert take(examples, None, seed) is examples
    bigger = {row.origin for row in take(examples, size + 10, seed).rows}
    assert {row.origin for row in taken.rows} <= bigger, "a larger subset holds the smaller one"


def test_a_given_test_set_is_taken_out_of_training() -> None:
    train, test = labelled(100), sources.load([{"text": f"Text  {i}", "label": "a"} for i in range(5)] + NEW)
    parts = split_given(train, test, 0)
    seen = {normalise(row) for row in parts.test.rows}
    assert not seen & {normalise(row) for part in (parts.train, parts.validation) for row in part.rows}
    assert "5 training rows stood in the test data or nearly so, taken out" in parts.note
    assert len(parts.train.rows) + len(parts.validation.rows) == 95


NEW = [{"text": "new", "label": "b"}]


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ([{"text": "x", "label": "z"}, *NEW], "label 'z' is not among the training labels: a, b"),
        ([{"text": "x", "score": 1.0}], "the data is for classification, the test data for regression"),
    ],
)
def test_a_given_test_set_that_does_not_fit(test: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        split_given(labelled(100), sources.load(test), 0)


def test_many_small_classes_reach_every_part() -> None:
    rows = [{"text": f"t{i}", "label": f"class {i // 4}"} for i in range(80)]
    parts = split(sources.load(rows), 0)
    assert len(parts.validation.rows) == len(parts.test.rows) == 10


def test_too_few_rows() -> None:
    with pytest.raises(InputError, match=r"3 rows are too few: divided into train 80%, validation 10%, test 10%"):
        split(sources.load([{"prompt": f"q{i}", "completion": "a"} for i in range(3)]), 0)


def test_files_weigh_as_asked() -> None:
    rows = Rows(
        LabelledText(f"{name} {number}", "ab"[number % 2], Origin(name, number))
        for name in ("one", "two", "three")
        for number in range(200)
    )
    examples = Examples("classification", rows, ("a", "b"), "", rows.fingerprint)
    weighed = weigh(examples, {"one": 2.0, "two": 0.5}, 0)
    counts = Counter(row.origin.file for row in weighed.rows)
    assert counts["one"] == 400
    assert 70 <= counts["two"] <= 130
    assert counts["three"] == 200
    assert weigh(examples, {"one": 2.0, "two": 0.5}, 0) == weighed
    with pytest.raises(InputError, match="no training row is of 'on': did you mean 'one'"):
        weigh(examples, {"on": 2.0}, 0)
