"""The mathematics of learning by trial: golden values, definitions, and faults that must show."""

from __future__ import annotations

import math

import pytest
import torch

from tunesmith.rl.advantage import (
    Controller,
    dr_grpo_PK,
    gae_BT,
    grpo_PK,
    k1,
    k2,
    k3,
    rloo_PK,
    shaped_rewards_BT,
    whiten,
)
from tunesmith.rl.losses import Clip, policy_loss_N, value_loss_N, weights_N

MASK_BT = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])


def test_divergences_have_their_golden_values() -> None:
    logp, ref = torch.tensor(-1.0), torch.tensor(-1.5)
    assert k1(logp, ref).item() == 0.5
    assert k2(logp, ref).item() == 0.125
    assert k3(logp, ref).item() == pytest.approx(0.1065306597, rel=1e-6)


def test_the_estimators_estimate() -> None:
    """k1 and k3 have the mean that is the KL of two known distributions; k2 comes near it."""
    torch.manual_seed(0)
    p, q = torch.randn(6).log_softmax(0), torch.randn(6).log_softmax(0)
    exact = (p.exp() * (p - q)).sum()
    for estimator in (k1, k3):
        assert torch.allclose((p.exp() * estimator(p, q)).sum(), exact, atol=1e-6)
    near = p + 0.01 * (q - p)
    near = near.log_softmax(0)
    assert torch.allclose((p.exp() * k2(p, near)).sum(), (p.exp() * (p - near)).sum(), rtol=0.05)


def test_the_cost_of_divergence_is_steered() -> None:
    controller = Controller(target=6, horizon=10_000)
    assert controller.adjust(0.15, 12, 512) == pytest.approx(0.151536, abs=1e-6)
    assert controller.adjust(0.15, 5.7, 512) == pytest.approx(0.149616, abs=1e-6)
    assert Controller().adjust(0.15, 12, 512) == 0.15


def test_whitening_has_its_golden_values() -> None:
    rewards = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
    every = torch.ones_like(rewards, dtype=torch.bool)
    population = [[0.0508, 0.4381, 0.8254], [1.2127, 1.6, 1.9873], [2.3746, 2.7619, 3.1492]]
    assert torch.allclose(whiten(rewards, every, shift_mean=False), torch.tensor(population), atol=1e-4)
    unbiased = whiten(rewards, every, shift_mean=False, unbiased=True)
    assert torch.allclose(unbiased[0], torch.tensor([0.1394, 0.5046, 0.8697]), atol=1e-4)


def test_whitening_sees_the_mask_alone() -> None:
    x_BT = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    white = whiten(torch.where(MASK_BT, x_BT, 1e6), MASK_BT)
    assert white[MASK_BT].mean().item() == pytest.approx(0, abs=1e-6)
    assert white[MASK_BT].var(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert (white[~MASK_BT] == 0).all()
    with pytest.raises(ValueError, match="two numbers"):
        whiten(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))


def test_groups_have_their_golden_values() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    assert torch.allclose(rloo_PK(scores), torch.tensor([-2.6667, -1.3333, 0, 4]), atol=1e-4)
    assert torch.allclose(grpo_PK(scores), torch.tensor([-0.9258, -0.4629, 0, 1.3887]), atol=1e-4)
    assert torch.equal(dr_grpo_PK(scores), torch.tensor([[-2.0, -1.0, 0.0, 3.0]]))


def test_leaving_one_out_is_its_definition() -> None:
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    for row, found in zip(scores, rloo_PK(scores), strict=True):
        for place in range(5):
            others = torch.cat([row[:place], row[place + 1 :]])
            assert found[place].item() == pytest.approx((row[place] - others.mean()).item(), abs=1e-6)


def test_answers_alike_teach_nothing() -> None:
    alike = torch.full((2, 4), 3.0)
    assert (grpo_PK(alike) == 0).all()
    assert (rloo_PK(alike) == 0).all()


def test_the_score_stands_at_the_last_token() -> None:
    rewards_BT = shaped_rewards_BT(torch.tensor([5.0, 7.0, 9.0]), torch.ones(3, 4), MASK_BT, beta=0.5)
    expected = [[-0.5, -0.5, -0.5, 4.5], [-0.5, 6.5, 0, 0], [8.5, 0, 0, 0]]
    assert torch.equal(rewards_BT, torch.tensor(expected))


def defined_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The sum as it stands in the paper, over one answer without padding."""
    ahead = [*values[1:], 0.0]
    deltas = [r + gamma * w - v for r, v, w in zip(rewards, values, ahead, strict=True)]
    return [
        sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, len(deltas))) for t in range(len(deltas))
    ]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_advantages_are_their_definition(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards_BT, values_BT = (torch.randn(3, 4, generator=generator) for _ in range(2))
    found_BT, returns_BT = gae_BT(rewards_BT, values_BT, MASK_BT, gamma, lam)
    for row, mask in enumerate(MASK_BT):
        length = int(mask.sum())
        rewards, values = rewards_BT[row, :length].tolist(), values_BT[row, :length].tolist()
        expected = defined_gae(rewards, values, gamma, lam)
        assert found_BT[row, :length].tolist() == pytest.approx(expected, abs=1e-5)
        assert returns_BT[row, :length].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, values, strict=True)], abs=1e-5
        )
    assert (found_BT[~MASK_BT] == 0).all()
    assert (returns_BT[~MASK_BT] == 0).all()


def test_what_stands_behind_an_answer_is_nothing() -> None:
    """A value behind the last token, or the score one place late, would change advantages."""
    rewards_BT, values_BT = torch.ones(3, 4), torch.full((3, 4), 0.5)
    clean, _ = gae_BT(rewards_BT, values_BT, MASK_BT, 1.0, 0.95)
    dirty, _ = gae_BT(torch.where(MASK_BT, rewards_BT, 9.0), torch.where(MASK_BT, values_BT, 9.0), MASK_BT, 1.0, 0.95)
    assert torch.equal(clean, dirty)
    everything = torch.ones_like(MASK_BT)
    unmasked, _ = gae_BT(rewards_BT, values_BT, everything, 1.0, 0.95)
    assert not torch.allclose(unmasked[1, :2], clean[1, :2])


def test_the_policy_loss_by_hand() -> None:
    old_N, advantage_N = torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0])
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5])
    found = policy_loss_N(ratios.log(), old_N, advantage_N, Clip(0.2, 0.28))
    assert found.tolist() == pytest.approx([-1.28, -0.5, 1.5, 0.8], rel=1e-6)


def test_a_second_clip_bounds_what_a_bad_token_weighs() -> None:
    old_N, advantage_N = torch.zeros(4), torch.tensor([-1.0, -1.0, -2.0, 1.0])
    logp_N = torch.tensor([5.0, 2.5, 5.0, 5.0]).log().requires_grad_()
    found_N = policy_loss_N(logp_N, old_N, advantage_N, Clip(0.2, 0.2, dual=3.0))
    assert found_N.tolist() == pytest.approx([3.0, 2.5, 6.0, -1.2], rel=1e-6)
    found_N.sum().backward()
    assert logp_N.grad is not None
    assert logp_N.grad.tolist() == pytest.approx([0.0, 2.5, 0.0, 0.0]), "beyond it nothing pulls"


def test_the_first_policy_gradient_is_the_plain_one() -> None:
    """Where old and new are the same the gradient is -A grad log pi."""
    logp_N = torch.tensor([-1.0, -2.0], requires_grad=True)
    policy_loss_N(logp_N, logp_N.detach(), torch.tensor([3.0, -4.0]), Clip()).sum().backward()
    assert logp_N.grad is not None
    assert logp_N.grad.tolist() == [-3.0, 4.0]


def test_the_value_loss_by_hand() -> None:
    value_N, old_N, return_N = torch.tensor([1.0, 0.1]), torch.zeros(2), torch.tensor([2.0, 2.0])
    assert value_loss_N(value_N, old_N, return_N, 0.2).tolist() == pytest.approx([1.62, 1.805])
    assert value_loss_N(value_N, old_N, return_N, None).tolist() == pytest.approx([0.5, 1.805])


def test_weights_of_tokens() -> None:
    lengths = torch.tensor([1, 3])
    assert weights_N(lengths, "sequence", 10).tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert weights_N(lengths, "token", 10).tolist() == pytest.approx([1 / 4] * 4)
    assert weights_N(lengths, "constant", 10).tolist() == pytest.approx([1 / 20] * 4)
    assert math.isclose(float(weights_N(torch.tensor([5, 7, 2]), "sequence", 9).sum()), 1, rel_tol=1e-6)
