"""From rankings to pairs, strengths and shares."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from tunesmith.feedback.forms import Candidate, Ranked
from tunesmith.feedback.pairs import comparisons, preferences
from tunesmith.feedback.strengths import fit_strengths, rate_first_place, rate_longer, rate_models, rate_ties

RANKS = st.dictionaries(st.sampled_from("abcdefghi"), st.one_of(st.none(), st.integers(1, 5)), min_size=2)


@given(RANKS)
def test_a_ranking_of_k_answers_holds_all_their_pairs(ranks: dict[str, int | None]) -> None:
    found = list(comparisons(ranks))
    num_unranked = sum(rank is None for rank in ranks.values())
    assert len(found) == math.comb(len(ranks), 2) - math.comb(num_unranked, 2)
    assert len({(pair.first, pair.second) for pair in found}) == len(found)
    assert all(pair.first < pair.second for pair in found)
    assert len(list(preferences(ranks))) == sum(pair.outcome != 0 for pair in found)


@given(RANKS)
def test_pairs_keep_the_order_and_nothing_else(ranks: dict[str, int | None]) -> None:
    worst = 99
    full = {name: worst if rank is None else rank for name, rank in ranks.items()}
    for pair in preferences(ranks):
        assert full[pair.winner] < full[pair.loser]
    turned = {name: -rank for name, rank in full.items()}
    forward = {(pair.winner, pair.loser) for pair in preferences(full)}
    backward = {(pair.loser, pair.winner) for pair in preferences(turned)}
    assert forward == backward


def wins_of(outcomes: list[tuple[int, int, float]], size: int) -> np.ndarray:
    wins = np.zeros((size, size))
    for one, other, outcome in outcomes:
        wins[one, other] += outcome
        wins[other, one] += 1 - outcome
    return wins


def test_strengths_are_those_of_a_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([0.8, 0.1, -0.3, -0.6])
    outcomes = []
    for _ in range(600):
        one, other = rng.choice(4, 2, replace=False)
        chance = 1 / (1 + np.exp(truth[other] - truth[one]))
        outcomes.append((int(one), int(other), float(rng.random() < chance)))
    rows = np.zeros((600, 4))
    for at, (one, other, _) in enumerate(outcomes):
        rows[at, one], rows[at, other] = 1, -1
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=10_000)
    model.fit(rows, [outcome for _, _, outcome in outcomes])
    expected = model.coef_[0] - model.coef_[0].mean()
    assert fit_strengths(wins_of(outcomes, 4), prior=0) == pytest.approx(expected, abs=1e-4)
    assert fit_strengths(wins_of(outcomes, 4)) == pytest.approx(truth, abs=0.35)


def test_two_models_have_the_odds_as_strength() -> None:
    strong, weak = fit_strengths(np.array([[0.0, 30.0], [10.0, 0.0]]), prior=0)
    assert strong - weak == pytest.approx(math.log(3))


def test_what_never_lost_has_an_end_to_its_strength() -> None:
    strengths = fit_strengths(np.array([[0.0, 5.0], [0.0, 0.0]]))
    assert np.isfinite(strengths).all()
    assert strengths[0] > 1


def ranked(item: str, ranks: Mapping[str, int | None], shown: str) -> Ranked:
    return Ranked(1, 0.0, item, "ann", False, False, ranks, tuple(shown), 1.0)


def test_models_are_rated_by_what_was_said_of_their_answers() -> None:
    candidates = {f"{at}": {"a": Candidate("x" * 3, "good"), "b": Candidate("x", "bad")} for at in range(20)}
    rankings = [ranked(f"{at}", {"a": 1, "b": 2} if at < 15 else {"a": 2, "b": 1}, "ab") for at in range(20)]
    good, bad = rate_models(rankings, candidates)
    assert (good.model, bad.model) == ("good", "bad")
    assert good.win_rate == 0.75
    assert good.low < good.strength < good.high
    assert good.strength - bad.strength == pytest.approx(math.log(15.1 / 5.1))
    assert rate_models(rankings, {"0": {"a": Candidate("", "only"), "b": Candidate("x", "only")}} | candidates)
    alone = {key: {name: Candidate(one.text, "only") for name, one in of.items()} for key, of in candidates.items()}
    assert rate_models(rankings, alone) == []


def test_place_length_and_ties_are_told() -> None:
    candidates = {"0": {"a": Candidate("long text", "m"), "b": Candidate("mid", "m"), "c": Candidate("s", "m")}}
    rankings = [ranked("0", {"a": 1, "b": 2, "c": 2}, "cab"), ranked("0", {"a": 1, "b": 2, "c": 3}, "abc")]
    first = rate_first_place(rankings)
    assert (first.value, first.count) == (2 / 3, 3)  # c lost to a; a beat b and c; c and b tied
    longer = rate_longer(rankings, candidates)
    assert (longer.value, longer.count) == (1.0, 5)
    assert rate_ties(rankings).value == pytest.approx(1 / 6)
    assert rate_ties([]).value is None


def test_chance_alone_prefers_no_place() -> None:
    rng = np.random.default_rng(1)
    rankings = []
    for _ in range(400):
        order, places = rng.permutation(4), rng.permutation(4)
        ranks: dict[str, int | None] = {"abcd"[name]: int(at) + 1 for at, name in enumerate(order)}
        rankings.append(ranked("0", ranks, "".join("abcd"[at] for at in places)))
    share = rate_first_place(rankings)
    assert share.low is not None
    assert share.high is not None
    assert share.low < 0.5 < share.high
    assert share.high - share.low < 0.12
