"""The public names: where they lead, and what they give for a tiny model."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import tunesmith
from tests.methods.test_methods import rows_of, save_base


def test_every_public_name_is_there() -> None:
    for name in tunesmith.__all__:
        assert getattr(tunesmith, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'tuner'"):
        _ = tunesmith.tuner


def test_classify(tmp_path: Path) -> None:
    base = save_base("bert", "classification", tmp_path / "base")
    data = pd.DataFrame(rows_of("classification"))
    given = {"model": str(base), "data": data, "num_train_epochs": 1, "precision": "fp32", "quiet": True}
    run = tunesmith.tune(**given, method="full", output=tmp_path / "run", learning_rate=0.01)
    texts = list(data["text"][:9])
    found = tunesmith.predict(run, texts)
    assert found == tunesmith.predict(tmp_path / "run", texts)
    assert all(row["label"] in "abc" and 1 / 3 <= row["probability"] <= 1 for row in found)
    labels = [row["label"] for row in tunesmith.predict(run, list(data["text"]))]
    accuracy = sum(a == b for a, b in zip(labels, data["label"], strict=True)) / len(data)
    assert tunesmith.evaluate(run, data).metrics["accuracy"].value == pytest.approx(accuracy)
    with pytest.raises(tunesmith.InputError, match="label 'z' is unknown"):
        tunesmith.evaluate(run, [{"text": "w5", "label": "z"}, {"text": "w6", "label": "a"}])


def test_answer(tmp_path: Path) -> None:
    base = save_base("llama", "generation", tmp_path / "base")
    given = {"model": str(base), "data": rows_of("generation"), "max_steps": 2, "precision": "fp32", "quiet": True}
    run = tunesmith.tune(**given, output=tmp_path / "run")
    answer = tunesmith.predict(run, ["w5 w6"], max_new_tokens=5)[0]["answer"]
    assert isinstance(answer, str)
    assert set(tunesmith.evaluate(run, rows_of("generation")[:5]).metrics) >= {"loss"}


def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(tunesmith.InputError, match="unknown key 'learning_rat': did you mean 'learning_rate'"):
        tunesmith.tune(model="m", data=[], learning_rat=1.0)
