"""A function as a reward: the sentiment of an answer by a lexicon, which knows nothing of models.

    pip install vaderSentiment
    tunesmith align --reward examples/valence.py:valence ...

It is the sum of the ratings of an answer's words, with VADER's rules for negation and emphasis (Hutto & Gilbert 2014).
The package squeezes that sum s to s / sqrt(s^2 + 15); here it is taken back, for a reward that stops growing teaches
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence


def valence(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    squeezed = [analyzer.polarity_scores(answer)["compound"] for answer in answers]
    return [score * (15 / max(1e-3, 1 - score * score)) ** 0.5 for score in squeezed]
