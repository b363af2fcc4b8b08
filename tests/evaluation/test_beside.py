"""Rows side by side: which are shown as changed, and which classes are taken for which."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import confusion_matrix

from tunesmith.evaluation.beside import count_confusions, set_beside
from tunesmith.evaluation.predictions import Predictions
from tunesmith.outcomes import System, Verdict
from tunesmith.records import Conversation, Examples, LabelledText, Message, Origin

CHOSEN = Verdict("full", "lora", "")
SYSTEMS = (
    System("majority", "baseline", "guess"),
    System("zero-shot", "baseline", "prompting"),
    System("few-shot", "baseline", "prompting"),
    System("full", "method", "full"),
    System("lora", "method", "reparameterised"),
    System("dora", "method", "reparameterised", error="no memory"),
)


def test_gained_lost_and_wrong_rows_are_told_apart() -> None:
    rows = [LabelledText(f"t{at}", "ab"[at % 2], Origin("x", at)) for at in range(6)]
    targets = np.arange(6) % 2
    said = {
        "lora": Predictions("classification", targets, np.array([0, 1, 0, 0, 0, 0])),  # wrong in rows 3, 5
        "zero-shot": Predictions("classification", targets, np.array([1, 1, 0, 0, 0, 1])),  # wrong in rows 0, 3
        "few-shot": Predictions("classification", targets, np.zeros(6, dtype=int)),
    }
    found = set_beside(Examples("classification", rows, ("a", "b"), "", ""), SYSTEMS, CHOSEN, said)
    assert found["names"] == ["lora", "zero-shot", "few-shot"]
    assert {row["input"]: row["kind"] for row in found["rows"]} == {"t0": "gained", "t5": "lost", "t3": "wrong"}
    assert (found["num_gained"], found["num_lost"]) == (1, 1)
    first = found["rows"][0]
    assert (first["expected"], first["outputs"], first["right"]) == ("a", ["a", "b", "a"], [True, False, True])


def test_answers_are_compared_by_degree_where_both_were_made() -> None:
    rows = [
        Conversation((Message("user", f"q{at}"), Message("assistant", "a b c d")), Origin("x", at)) for at in range(3)
    ]
    targets = ["a b c d"] * 3
    said = {
        "lora": Predictions("generation", targets, ["a b c d", "a x y z", "a b"]),
        "zero-shot": Predictions("generation", targets, ["x", "a b c", None]),
        "few-shot": Predictions("generation", targets, ["x", None, None]),
    }
    found = set_beside(Examples("generation", rows, (), "", ""), SYSTEMS, CHOSEN, said)
    assert {row["input"]: row["kind"] for row in found["rows"]} == {"q0": "gained", "q1": "lost"}
    assert found["rows"][1]["outputs"] == ["a x y z", "a b c", "-"]
    assert found["rows"][1]["right"] == [None, None, None]


def test_without_a_method_nothing_is_shown() -> None:
    empty = Examples("classification", [], ("a", "b"), "", "")
    assert set_beside(empty, SYSTEMS[:3], Verdict("zero-shot", "zero-shot", ""), {})["rows"] == []


def test_confusions_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    targets, outputs = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    found = count_confusions(Predictions("classification", targets, outputs), 3)
    assert found == confusion_matrix(targets, outputs, labels=[0, 1, 2]).tolist()
    assert count_confusions(Predictions("classification", targets, outputs), 13) == []
