"""Losses of rankings and preferences: golden values, and equalities that must hold."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch.nn import functional as F

from tunesmith.train.losses import Penalty, ranking_loss_S
from tunesmith.train.preference import RULES, Pairs, Preference, log1mexp, preference_loss_S


def ranking(rewards: list[float], ranks: list[int], penalty: Penalty | None = None) -> float:
    return ranking_loss_S(torch.tensor(rewards)[:, None], torch.tensor([ranks]), penalty or Penalty()).item()


def test_rankings_have_their_golden_values() -> None:
    assert ranking([2, 1, 0], [1, 2, 3]) == pytest.approx(0.2511504601, rel=1e-6)
    assert ranking([2, 1, 0], [1, 2, 2]) == pytest.approx(0.2200948493, rel=1e-6)
    assert ranking([1, 0], [1, 1], Penalty(tied=1.0)) == pytest.approx(0.8132616875, rel=1e-6)
    assert ranking([1, 0], [1, 1]) == 0.0, "tied answers are no pair"


def test_whole_orders_have_their_golden_value() -> None:
    whole = Penalty(ranking="plackett-luce")
    assert ranking([2, 1, 0], [1, 2, 3], whole) == pytest.approx(0.7208676520, rel=1e-6)
    assert ranking([0, 2, 1], [3, 1, 2], whole) == pytest.approx(0.7208676520, rel=1e-6)
    assert ranking([1, 0], [1, 2], whole) == pytest.approx(ranking([1, 0], [1, 2]), rel=1e-6), "two are a pair"
    assert ranking([1, 0], [1, 1], whole) == 0.0, "tied answers have no order"


def test_a_whole_order_is_one_draw_after_the_other() -> None:
    """With rankings of other lengths beside; and of the best alone it is a cross-entropy."""
    rewards_A1 = torch.randn(7, 1, generator=torch.Generator().manual_seed(0))
    ranks_SK = torch.tensor([[2, 4, 1, 3], [1, 2, 2, 0]])
    found_S = ranking_loss_S(rewards_A1, ranks_SK, Penalty(ranking="plackett-luce"))
    left, expected = rewards_A1[[2, 0, 3, 1], 0], 0.0
    while len(left):
        expected -= left.log_softmax(0)[0].item()
        left = left[1:]
    assert found_S[0].item() == pytest.approx(expected, rel=1e-6)
    best_alone = F.cross_entropy(rewards_A1[4:, 0], torch.tensor(0))
    assert found_S[1].item() == pytest.approx(best_alone.item(), rel=1e-6)


def test_every_prompt_counts_alike() -> None:
    """A prompt with four answers has six pairs and counts as much as one with two."""
    rewards_A1 = torch.randn(6, 1, generator=torch.Generator().manual_seed(0))
    found_S = ranking_loss_S(rewards_A1, torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]]))
    first = rewards_A1[:4, 0]
    pairs = [-F.logsigmoid(first[a] - first[b]).item() for a, b in combinations(range(4), 2)]
    assert found_S[0].item() == pytest.approx(sum(pairs) / 6, rel=1e-6)
    assert found_S[1].item() == pytest.approx(-F.logsigmoid(rewards_A1[4, 0] - rewards_A1[5, 0]).item(), rel=1e-6)
    at_once = [*pairs, found_S[1].item()]
    assert found_S.mean().item() != pytest.approx(sum(at_once) / 7, rel=1e-3), "that would be InstructGPT's mistake"


def test_the_order_in_which_answers_stand_is_nothing() -> None:
    rewards, ranks = [0.3, -1.2, 2.0, 0.1], [2, 4, 1, 2]
    turned = ranking(rewards[::-1], ranks[::-1], Penalty(tied=1.0, centre=0.1))
    assert ranking(rewards, ranks, Penalty(tied=1.0, centre=0.1)) == pytest.approx(turned, rel=1e-6)


def test_smoothing_and_centring() -> None:
    better, worse = 0.7, 0.2
    gap = torch.tensor(better - worse)
    smooth = 0.9 * -F.logsigmoid(gap) + 0.1 * -F.logsigmoid(-gap)
    assert ranking([better, worse], [1, 2], Penalty(label_smoothing=0.1)) == pytest.approx(smooth.item(), rel=1e-6)
    centred = -F.logsigmoid(gap) + 0.01 * (better + worse) ** 2
    assert ranking([better, worse], [1, 2], Penalty(centre=0.01)) == pytest.approx(centred.item(), rel=1e-6)


def test_a_strong_preference_is_to_be_further_ahead() -> None:
    """Llama 2's loss (Touvron et al. 2023, equation 2): m(r) is 1 for the strongest of four, 0 for the weakest."""
    small = Penalty(margin=1 / 3)
    for worse, ahead in ((2, 0.0), (3, 1 / 3), (4, 2 / 3), (5, 1.0)):
        expected = -F.logsigmoid(torch.tensor(0.7 - 0.2 - ahead)).item()
        assert ranking([0.7, 0.2], [1, worse], small) == pytest.approx(expected, rel=1e-6)
        assert ranking([0.2, 0.7], [worse, 1], small) == pytest.approx(expected, rel=1e-6)
    both = (ranking([2, 1], [1, 2], small), ranking([2, 0], [1, 3], small), ranking([1, 0], [1, 2], small))
    assert ranking([2, 1, 0], [1, 2, 3], small) == pytest.approx(sum(both) / 3, rel=1e-6)
    tied = Penalty(margin=1.0, tied=1.0)
    assert ranking([1, 0], [1, 1], tied) == ranking([1, 0], [1, 1], Penalty(tied=1.0)), "none is to be ahead"


def pairs(pi: list[list[float]], ref: list[list[float]], lengths: list[list[float]], good: list[bool]) -> Pairs:
    return Pairs(torch.tensor(pi), torch.tensor(ref), torch.tensor(lengths), torch.tensor(good))


def test_preferences_have_their_golden_values() -> None:
    moved = pairs([[-9.0, -11.0]], [[-10.0, -10.0]], [[4.0, 4.0]], [True])
    assert preference_loss_S(moved, Preference("dpo", 0.1)).item() == pytest.approx(0.5981388694, rel=1e-6)
    means = pairs([[-2.0, -4.0]], [[0.0, 0.0]], [[4.0, 4.0]], [True])
    odds = means.mean_S2 - log1mexp(means.mean_S2)
    assert (odds[0, 0] - odds[0, 1]).item() == pytest.approx(0.9740769841, rel=1e-6)
    whole = preference_loss_S(means, Preference("orpo", 1.0)).item()
    assert whole - 0.5 == pytest.approx(0.3202997852, rel=1e-6)
    # z is 0.2 by the answers to other prompts
    kto = pairs([[1.0, 0.2], [-1.0, 0.2]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [True, False])
    good, bad = preference_loss_S(kto, Preference("kto", 0.1)).tolist()
    assert good == pytest.approx(0.4800106598, rel=1e-6)
    assert bad == pytest.approx(0.4700359482, rel=1e-6)


def test_nothing_learned_yet_is_log_2() -> None:
    same = pairs([[-3.0, -7.0]], [[-3.0, -7.0]], [[2.0, 5.0]], [True])
    for rule in ("dpo", "robust-dpo"):
        assert preference_loss_S(same, Preference(rule, 0.1)).item() == pytest.approx(math.log(2), rel=1e-6)
    assert preference_loss_S(same, Preference("kto", 0.1)).item() == 0.5
    assert preference_loss_S(same, Preference("ipo", 0.5)).item() == 1.0


def test_robust_is_right_in_the_mean() -> None:
    """Over preferences of which a fifth is turned round the robust loss is DPO's on the true ones; cDPO's is not."""
    true = pairs([[-3.0, -5.0]], [[-4.0, -3.5]], [[2.0, 2.0]], [True])
    turned = replace(true, pi_S2=true.pi_S2.flip(1), ref_S2=true.ref_S2.flip(1))
    clean = preference_loss_S(true, Preference("dpo", 0.3)).item()

    def mean(preference: Preference) -> float:
        right, wrong = (preference_loss_S(one, preference).item() for one in (true, turned))
        return 0.8 * right + 0.2 * wrong

    assert mean(Preference("robust-dpo", 0.3, noise=0.2)) == pytest.approx(clean, rel=1e-5)
    assert mean(Preference("dpo", 0.3, noise=0.2)) != pytest.approx(clean, rel=1e-2)


def test_simpo_and_the_likelihood_beside() -> None:
    one = pairs([[-4.0, -9.0]], [[0.0, 0.0]], [[4.0, 6.0]], [True])
    expected = -F.logsigmoid(torch.tensor(2.0 * (-1.0 + 1.5) - 0.5)).item()
    assert preference_loss_S(one, Preference("simpo", 2.0, margin=0.5)).item() == pytest.approx(expected, rel=1e-6)
    plain = preference_loss_S(one, Preference("dpo", 0.1)).item()
    assert preference_loss_S(one, Preference("dpo", 0.1, sft=0.5)).item() == pytest.approx(plain + 0.5, rel=1e-6)


def test_through_the_baseline_of_kto_goes_no_gradient() -> None:
    given = pairs([[1.0, 0.7], [-1.0, 0.2]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [True, False])
    pi_S2 = given.pi_S2.requires_grad_()
    preference_loss_S(replace(given, pi_S2=pi_S2), Preference("kto", 0.1)).sum().backward()
    assert pi_S2.grad is not None
    assert pi_S2.grad[:, 1].tolist() == [0.0, 0.0]
    assert pi_S2.grad[0, 0] < 0 < pi_S2.grad[1, 0], "good answers become likelier, bad ones less so"


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "kto"])
def test_every_rule_raises_the_better_answer(rule: str) -> None:
    given = pairs([[-6.0, -6.5]], [[-6.0, -6.5]], [[3.0, 3.0]], [True])
    pi_S2 = given.pi_S2.requires_grad_()
    preference_loss_S(replace(given, pi_S2=pi_S2), Preference(rule, 0.1)).sum().backward()  # type: ignore[arg-type]
    assert pi_S2.grad is not None
    assert pi_S2.grad[0, 0] < 0 < pi_S2.grad[0, 1]


def test_log1mexp_keeps_its_digits() -> None:
    x = torch.tensor([-1e-3, -0.3, -0.9, -15.0])
    exact = torch.log(-torch.expm1(x.double()))
    assert torch.allclose(log1mexp(x).double(), exact, rtol=1e-5, atol=1e-15)
