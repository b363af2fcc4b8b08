"""What is asked next, by what reward models say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.feedback.houses import fill
from tunesmith import cli
from tunesmith.feedback.database import open_database
from tunesmith.feedback.overview import overview
from tunesmith.feedback.people import People
from tunesmith.feedback.priorities import doubt
from tunesmith.feedback.store import Store


def test_doubt_by_its_definition() -> None:
    even = np.zeros((1, 3))
    assert doubt(even, "uncertainty") == pytest.approx(1)
    assert doubt(even, "disagreement") == pytest.approx(0)
    sure_but_at_odds = np.array([[30.0, 0.0], [0.0, 30.0]])
    assert doubt(sure_but_at_odds, "uncertainty") == pytest.approx(1)
    assert doubt(sure_but_at_odds, "disagreement") == pytest.approx(1, abs=1e-6)
    p = 1 / (1 + math.exp(-1))
    bits = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    assert doubt(np.array([[1.0, 0.0]]), "uncertainty") == pytest.approx(bits)


def test_the_least_sure_items_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = str(tmp_path / "feedback.db")
    database = open_database(address, create=True)
    fill(Store(database), 3, 2)
    assert cli.run(["feedback", "items", "--database", address, "--output", str(tmp_path / "items.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 3
    gaps = {row["item"]: gap for row, gap in zip(rows, (0.0, 5.0, 1.0), strict=True)}
    scores = [
        {"item": row["item"], "scores": dict(zip(row["answers"], ([0.0], [gaps[row["item"]]]), strict=True))}
        for row in rows
    ]

    def choose(content: list[dict[str, Any]], *flags: str) -> int:
        path = tmp_path / "scores.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        return cli.run(["feedback", "choose", "--database", address, "--scores", str(path), *flags])

    assert choose(scores) == 0
    store, person = Store(database), People(database).find_or_add("ann")
    order = []
    while (shown := store.take_next(person.id)) is not None:
        order.append(gaps[shown.item_id])
        store.skip(person.id, shown.item_id, 0, f"{len(order):032x}", "")
    assert order == [0.0, 1.0, 5.0]
    queue = overview(database)["next"]
    assert [gaps[one["item"]] for one in queue] == [0.0, 1.0, 5.0], "the owner sees the queue as it comes"
    assert queue[0]["reason"] == "uncertainty 1.000 by 1 reward model"
    capsys.readouterr()
    for content, words in (
        ([{"item": "0" * 16, "scores": {}}], "no item '0000000000000000' in this store"),
        ([{**scores[0], "scores": {}}], "must name each of the 2 answers once"),
        ([{**scores[0], "scores": {name: ["high"] for name in scores[0]["scores"]}}], "a number of each model"),
    ):
        assert choose(content) == 2
        said = capsys.readouterr().err
        assert words in said
        assert "scores.jsonl:1" in said
    assert choose(scores, "--by", "random") == 2
    assert cli.run(["feedback", "choose", "--database", address, "--by", "random"]) == 0
    database.close()
