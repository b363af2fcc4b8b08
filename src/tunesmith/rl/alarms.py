"""What goes wrong in learning by trial, told by the numbers of a step, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Numbers = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Alarm:
    """`sounds` is given the numbers of the first step and of this one."""

    name: str
    sounds: Callable[[Numbers, Numbers], bool]
    advice: str


def _has_grown_long(first: Numbers, now: Numbers) -> bool:
    return now["length_correlation"] > 0.7 and now["response_length"] > 1.3 * first["response_length"]


ALARMS: tuple[Alarm, ...] = (
    Alarm(
        "divergence below zero",
        lambda first, now: now["objective/kl"] < -0.5,
        "answers are not drawn from what is trained. Draw at the temperature of the training, uncut",
    ),
    Alarm(
        "divergence grows",
        lambda first, now: now["objective/kl"] > 30,
        "the model leaves what it knew, and scores mean little there. Raise --beta, lower --learning-rate, or set "
        "--max-kl",
    ),
    Alarm(
        "longer answers score more",
        _has_grown_long,
        "answers grow, and length goes with score. Look at the samples; lower --max-new-tokens, or judge without "
        "length",
    ),
    Alarm(
        "nothing to choose from",
        lambda first, now: now["frac_reward_zero_std"] > 0.9,
        "nearly all answers to a prompt score alike, so nothing is learned. Take a finer reward, or raise "
        "--temperature",
    ),
    Alarm(
        "answers alike",
        lambda first, now: now["share_distinct"] < 0.5 <= first["share_distinct"],
        "the model gives the same answer again and again. Raise --beta, or lower --learning-rate",
    ),
    Alarm(
        "no answer ends",
        lambda first, now: now["share_finished"] == 0 and now["step"] > 1,
        "every answer was cut off. If answers should end, raise --max-new-tokens or set --missing-eos-penalty 1",
    ),
)


def find_alarms(first: Numbers, now: Numbers) -> list[Alarm]:
    return [alarm for alarm in ALARMS if alarm.sounds(first, now)]
