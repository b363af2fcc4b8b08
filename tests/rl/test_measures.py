"""Alarms sound when they should, and only then."""

from __future__ import annotations

import pytest

from tunesmith.rl.alarms import ALARMS, find_alarms

CALM = {
    "step": 5,
    "objective/kl": 2.0,
    "length_correlation": 0.1,
    "response_length": 20.0,
    "frac_reward_zero_std": 0.0,
    "share_distinct": 1.0,
    "share_finished": 0.4,
}
LOUD = {
    "divergence below zero": {"objective/kl": -2.0},
    "divergence grows": {"objective/kl": 60.0},
    "longer answers score more": {"length_correlation": 0.9, "response_length": 40.0},
    "nothing to choose from": {"frac_reward_zero_std": 1.0},
    "answers alike": {"share_distinct": 0.3},
    "no answer ends": {"share_finished": 0.0},
}


def test_a_calm_step_is_silent() -> None:
    assert find_alarms(CALM, CALM) == []


@pytest.mark.parametrize("name", LOUD)
def test_each_alarm_sounds_alone(name: str) -> None:
    assert [alarm.name for alarm in find_alarms(CALM, CALM | LOUD[name])] == [name]


def test_all_alarms_are_tried() -> None:
    assert {alarm.name for alarm in ALARMS} == set(LOUD)
