"""Agreement beside other libraries, textbook values and definitions; undefined values explain themselves."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations
from typing import Any

import krippendorff
import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats import inter_rater

from tunesmith.feedback import agreement
from tunesmith.feedback.agreement import (
    add_up_taus,
    add_up_votes,
    agreement_by_labeler,
    bootstrap,
    by_item,
    cohen_kappa,
    coincide,
    contested,
    count_pairs,
    cross_tabulate,
    filled,
    fleiss_kappa,
    krippendorff_alpha,
    mean_tau,
    measure_agreement,
    pairwise_agreement,
    votes_on_pairs,
)
from tunesmith.feedback.pairs import Ranks, compare

ANSWERS = "abcd"


def some_ranks(rng: random.Random, base: list[int] | None = None) -> Ranks:
    """A ranking with ties and, sometimes, unranked answers; near to another one when that is given."""
    values = [rng.randint(1, 3) for _ in ANSWERS] if base is None or rng.random() < 0.4 else list(base)
    levels = sorted(set(values))
    ranks: dict[str, int | None] = {name: levels.index(value) + 1 for name, value in zip(ANSWERS, values, strict=True)}
    if rng.random() < 0.3:
        worst = max(value for value in ranks.values() if value is not None)
        ranks = {name: None if rank == worst and worst > 1 else rank for name, rank in ranks.items()}
    return ranks


def some_items(people: int, count: int = 40, seed: int = 0) -> dict[str, dict[str, Ranks]]:
    rng = random.Random(seed)
    items = {}
    for number in range(count):
        base = [rng.randint(1, 3) for _ in ANSWERS]
        items[f"item {number}"] = {f"person {who}": some_ranks(rng, base) for who in range(people)}
    return items


def total(items: dict[str, dict[str, Ranks]], add_up: Callable[[Any], Any]) -> Any:
    return sum(add_up(rankings) for rankings in items.values())


def test_pairwise_agreement_is_its_definition() -> None:
    items = some_items(3)
    agreed = judged = 0
    for rankings in items.values():
        for one, other in combinations(rankings.values(), 2):
            for a, b in combinations(ANSWERS, 2):
                x, y = compare(one[a], one[b]), compare(other[a], other[b])
                if x and y:
                    judged, agreed = judged + 1, agreed + (x == y)
    assert pairwise_agreement(total(items, count_pairs)) == pytest.approx(agreed / judged)
    assert judged > 100


def test_cohens_kappa_is_scikit_learns() -> None:
    items = some_items(2)
    said: tuple[list[int], list[int]] = ([], [])
    for rankings in items.values():
        one, other = rankings["person 0"], rankings["person 1"]
        for a, b in combinations(ANSWERS, 2):
            x, y = compare(one[a], one[b]), compare(other[a], other[b])
            if x is not None and y is not None:
                said[0].append(x)
                said[1].append(y)
    assert cohen_kappa(total(items, cross_tabulate)) == pytest.approx(cohen_kappa_score(*said), abs=1e-12)


def test_fleiss_kappa_is_statsmodels() -> None:
    items = some_items(5)
    votes = np.concatenate([votes_on_pairs(rankings) for rankings in items.values()])
    whole = votes[votes.sum(1) == 5]  # statsmodels wants as many votes on each
    sizes = whole.sum(1)
    shares = ((whole**2).sum(1) - sizes) / (sizes * (sizes - 1))
    ours = fleiss_kappa(np.array([shares.sum(), len(whole), *whole.sum(0)]))
    assert ours == pytest.approx(inter_rater.fleiss_kappa(whole), abs=1e-12)
    everybody = {name: {who: {**ranks} for who, ranks in of.items()} for name, of in some_items(5, seed=1).items()}
    ranked = {name: {who: filled(ranks) for who, ranks in of.items()} for name, of in everybody.items()}
    table = np.concatenate([votes_on_pairs(rankings) for rankings in ranked.values()])
    assert fleiss_kappa(total(ranked, add_up_votes)) == pytest.approx(inter_rater.fleiss_kappa(table), abs=1e-12)


def test_fleiss_kappa_of_the_paper() -> None:
    """Fleiss 1971, as worked out in textbooks: 10 subjects, 14 raters, 5 categories, kappa 0.210."""
    rows = "0 0 0 0 14|0 2 6 4 2|0 0 3 5 6|0 3 9 2 0|2 2 8 1 1|7 7 0 0 0|3 2 6 3 0|2 5 3 2 2|6 5 2 1 0|0 2 2 3 7"
    votes = np.array([[int(cell) for cell in row.split()] for row in rows.split("|")], dtype=float)
    shares = ((votes**2).sum(1) - 14) / (14 * 13)
    assert fleiss_kappa(np.array([shares.sum(), 10, *votes.sum(0)])) == pytest.approx(0.210, abs=5e-4)


@pytest.mark.parametrize("people", [2, 3, 6])
def test_krippendorffs_alpha_is_the_librarys(people: int) -> None:
    items = some_items(people, seed=people)
    data = [
        [filled(rankings[f"person {who}"])[name] for rankings in items.values() for name in ANSWERS]
        for who in range(people)
    ]
    expected = krippendorff.alpha(reliability_data=data, level_of_measurement="ordinal")
    assert krippendorff_alpha(total(items, coincide)) == pytest.approx(expected, abs=1e-12)


def test_krippendorffs_alpha_of_the_paper() -> None:
    """Krippendorff 2011, example C: four observers, units 1 to 11, ordinal alpha 0.815."""
    observers = {
        "A": "1 2 3 3 2 1 4 1 2 . .",
        "B": "1 2 3 3 2 2 4 1 2 5 .",
        "C": ". 3 3 3 2 3 4 2 2 5 1",
        "D": "1 2 3 3 2 4 4 1 2 5 1",
    }
    rankings = {
        name: {f"u{at}": int(value) for at, value in enumerate(values.split()) if value != "."}
        for name, values in observers.items()
    }
    assert krippendorff_alpha(coincide(rankings)) == pytest.approx(0.815, abs=5e-4)


def tau_b(one: list[int], other: list[int]) -> float:
    return float(kendalltau(one, other).statistic)


def test_kendalls_tau_is_scipys_and_of_rank_vectors() -> None:
    items = some_items(3, seed=4)
    values = []
    for rankings in items.values():
        for one, other in combinations((filled(ranks) for ranks in rankings.values()), 2):
            vectors = [[ranks[name] for name in ANSWERS] for ranks in (one, other)]
            if all(len(set(vector)) > 1 for vector in vectors):
                values.append(tau_b(*vectors))
    assert mean_tau(total(items, add_up_taus)) == pytest.approx(np.mean(values), abs=1e-12)
    orders = [[1, 2, 0, 3], [3, 1, 0, 2]]  # which answer stands first, second, ...
    vectors = [{ANSWERS[name]: order.index(name) + 1 for name in range(4)} for order in orders]
    assert mean_tau(add_up_taus({"one": vectors[0], "other": vectors[1]})) == pytest.approx(-1 / 3)
    assert tau_b(*orders) == pytest.approx(1 / 3), "what a confusion of orders and ranks would give"


def test_everybody_alike_is_full_agreement() -> None:
    items = {}
    for number in range(3):
        ranks: Ranks = {ANSWERS[(place + number) % 4]: place + 1 for place in range(4)}
        items[f"item {number}"] = {"ann": ranks, "ben": ranks}
    assert [one.value for one in measure_agreement(items)] == [1.0] * 5
    assert all(one.low == one.high == 1 for one in measure_agreement(items))


def test_an_undefined_value_says_why() -> None:
    ties: Ranks = dict.fromkeys(ANSWERS, 1)
    found = {one.name: one for one in measure_agreement({"item": {"ann": ties, "ben": ties}})}
    assert all(one.value is None and one.why for one in found.values())
    assert "told the same two answers apart" in found["pairwise agreement"].why
    alone = measure_agreement({"item": {"ann": {"a": 1, "b": 2}}})
    assert all(one.value is None and "ranked by two people" in one.why for one in alone)
    three = {f"person {who}": {"a": 1, "b": 2} for who in range(3)}
    assert "these are 3" in {one.name: one.why for one in measure_agreement({"item": three})}["Cohen's kappa"]


def test_intervals_hold_what_they_should() -> None:
    """Of 200 draws of 60 items whose pairs agree with probability 0.7, some 95 % of the intervals hold 0.7."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        agreed = rng.binomial(5, 0.7, 60).astype(float)
        sums = np.stack([agreed, np.full(60, 5.0)], 1)
        _, low, high = bootstrap(sums, pairwise_agreement, resamples=300)
        assert low is not None
        assert high is not None
        held += low <= 0.7 <= high
    assert 180 <= held <= 199


def test_who_agrees_and_where_people_quarrel() -> None:
    rows = [
        ("one", "ann", {"a": 1, "b": 2}),
        ("one", "ben", {"a": 1, "b": 2}),
        ("one", "cem", {"a": 2, "b": 1}),
        ("two", "ann", {"a": 1, "b": 2}),
        ("two", "ben", {"a": 1, "b": 2}),
    ]
    items = by_item(rows)
    assert agreement_by_labeler(items) == {"ann": pytest.approx(2 / 3), "ben": pytest.approx(2 / 3), "cem": 0.0}
    assert contested(items) == [("one", pytest.approx(2 / 3))]


@pytest.mark.parametrize("fault", ["average of orders", "nominal differences", "ties count as agreement"])
def test_a_planted_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparisons above can fail: each of these slips moves a value by more than they allow."""
    items = some_items(3)
    if fault == "average of orders":
        orders = []
        for rankings in items.values():
            for one, other in combinations((filled(ranks) for ranks in rankings.values()), 2):
                vectors = [[ord(name) for name in sorted(ANSWERS, key=ranks.__getitem__)] for ranks in (one, other)]
                orders.append(tau_b(*vectors))
        assert abs(np.mean(orders) - mean_tau(total(items, add_up_taus))) > 1e-3
    elif fault == "nominal differences":
        data = [
            [filled(rankings[f"person {who}"])[name] for rankings in items.values() for name in ANSWERS]
            for who in range(3)
        ]
        nominal = krippendorff.alpha(reliability_data=data, level_of_measurement="nominal")
        assert abs(krippendorff_alpha(total(items, coincide)) - nominal) > 1e-3
    else:
        before = pairwise_agreement(total(items, count_pairs))
        monkeypatch.setattr(agreement, "compare", lambda one, other: compare(one, other) or 1)
        assert abs(pairwise_agreement(total(items, count_pairs)) - before) > 1e-3
