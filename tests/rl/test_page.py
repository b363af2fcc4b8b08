"""The page of a training by trial: what is drawn, and that nothing in it is taken for HTML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.rl.test_measures import CALM

from tunesmith.config_align import AlignConfig
from tunesmith.rl.page import against_divergence, alarms_of, draw, samples_of, write_report

STEPS = [
    CALM
    | {
        "step": step,
        "objective/scores": 0.5 * step,
        "objective/entropy": 30.0 - step,
        "objective/kl": 20.0 * (step - 1),
    }
    for step in (1, 2, 3)
]
EVALUATIONS = [
    {"step": step, "validation_reward": reward, "validation_reward_std": 2.0, "validation_kl": kl}
    | {"validation_length": 9.0, "validation_finished": 0.5, "validation_gold": gold, "validation_gold_std": 0.5}
    for step, reward, kl, gold in ((0, 1.0, -0.01, 3.0), (2, 3.0, 4.0, 3.5), (3, 6.0, 9.0, 2.75))
]
SAMPLES = [
    {
        "step": step,
        "samples": [{"prompt": "<b>a", "answer": f"<i>{step}", "score": 1.0, "log_ratio": [0.5, 0.25 * step]}],
    }
    for step in (0, 2)
]


def test_scores_against_the_divergence_by_hand() -> None:
    """In deviations of the start; a divergence below zero is rounding."""
    assert against_divergence("validation_reward", EVALUATIONS) == [(0, 0), (2, 1), (3, 2.5)]
    assert against_divergence("validation_gold", EVALUATIONS) == [(0, 0), (2, 1), (3, -0.5)]
    assert against_divergence("validation_none", EVALUATIONS) == []


def test_every_curve_is_drawn() -> None:
    pictures = dict(draw(STEPS, EVALUATIONS))
    assert [title.split()[0] for title in pictures] == ["reward", "divergence", "entropy", "length", "reward"]
    lines = [len(ElementTree.fromstring(svg).findall("polyline")) for svg in pictures.values()]
    assert lines == [2, 2, 1, 2, 2]
    entropy = ElementTree.fromstring(pictures["entropy of an answer, nats"])
    curve = entropy.find("polyline")
    assert curve is not None
    heights = [float(point.split(",")[1]) for point in curve.attrib["points"].split()]
    assert heights == sorted(heights), "it falls, and y grows downwards"
    assert heights[1] == pytest.approx((heights[0] + heights[2]) / 2, abs=0.1)
    assert draw([], []) == []


def test_alarms_are_told_once_and_samples_over_time() -> None:
    assert [(alarm["step"], alarm["name"]) for alarm in alarms_of(STEPS)] == [(3, "divergence grows")]
    (sample,) = samples_of(SAMPLES)
    assert [(answer["step"], answer["moved"]) for answer in sample["answers"]] == [(0, 0.5), (2, 1.0)]


def test_the_page_holds_all_of_it_and_no_markup_of_others(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [*STEPS, *EVALUATIONS, *SAMPLES]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = AlignConfig(model="<m>", data="d", algorithm="ppo", reward=("a:b",), gold_reward=("c:d",))
    write_report(tmp_path, config)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "&lt;b&gt;a" in page
    assert "&lt;i&gt;2" in page
    assert "ppo on &lt;m&gt;" in page
    for markup in ("<b>", "<i>", "<m>", "<script", "http:", "https:"):
        assert markup not in page
    assert "Step 3: divergence grows." in page
    assert "<td>2.750</td>" in page
