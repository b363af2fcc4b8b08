"""Stage: two models that write, prompts, and what judges -> how often the one is preferred to the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tunesmith.aligning import turns_of
from tunesmith.config_align import JudgeConfig
from tunesmith.data.parts import load_prompts
from tunesmith.data.split import take
from tunesmith.errors import InputError
from tunesmith.evaluation.duels import Verdicts, duel, length_controlled, win_rate
from tunesmith.evaluation.tasks import open_network
from tunesmith.models.generate import Decoding, generate
from tunesmith.rl.reward import open_rewards
from tunesmith.runtime import choose_precision

NUM_SHOWN = 5


def judge(config: JudgeConfig) -> Mapping[str, Any]:
    """Both models answer the same prompts with the same draws, and the judge scores every answer by itself, so that
    there is no side to prefer. Level scores count half.

    Raises:
        InputError: a model that does not write, or as `open_rewards`.
    """
    examples = load_prompts(config)
    rows = take(examples, config.max_prompts, config.seed).rows
    prompts = [turns_of(row, config) for row in rows]
    decoding = Decoding(config.max_new_tokens, config.temperature, seed=config.seed)
    answers, scores, scorer = [], [], None
    for name in (config.model, config.against):
        network = open_network(name)
        if network.task != "generation":
            raise InputError(f"'{name}' does {network.task}; only models that write can be set against each other")
        device = network.model.device
        scorer = scorer or open_rewards(config.reward, (), config, device)
        answers.append(generate(network, prompts, decoding, choose_precision("auto", device)))
        scores.append(scorer(prompts, answers[-1]))
    lengths = [np.array([len(text) for text in texts], dtype=float) for texts in answers]
    verdicts = Verdicts(duel(scores[0], scores[1]), lengths[0] - lengths[1])
    shown = [
        {"prompt": prompts[place][-1].content, **{key: texts[place] for key, texts in zip(SIDES, answers, strict=True)}}
        for place in range(min(NUM_SHOWN, len(prompts)))
    ]
    return {
        "prompts": len(prompts),
        "win_rate": win_rate(verdicts),
        "at_equal_length": length_controlled(verdicts),
        "level": float((verdicts.won_D == 0.5).mean()),
        "mean_score": {key: float(score.mean()) for key, score in zip(SIDES, scores, strict=True)},
        "mean_length": {key: float(length.mean()) for key, length in zip(SIDES, lengths, strict=True)},
        "samples": shown,
    }


SIDES = ("model", "against")
