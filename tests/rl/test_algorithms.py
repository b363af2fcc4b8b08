"""What the algorithms teach and minimise, against the same said in another way."""

from __future__ import annotations

import pytest
import torch

from tunesmith.config_align import AlignConfig
from tunesmith.rl.algorithms import Judged, losses_N, teach_online_dpo
from tunesmith.rl.losses import weights_N
from tunesmith.rl.rollout import Said
from tunesmith.train.preference import Pairs, Preference, preference_loss_S

LENGTHS = torch.tensor([2, 1, 3, 1, 4, 2])
SCORES = torch.tensor([0.5, 3.0, -1.0, 2.0, 2.0, 2.0])


def online_dpo(now_N: torch.Tensor, ref_N: torch.Tensor) -> torch.Tensor:
    """The loss of two prompts with three answers each, of which the second's are alike in score."""
    config = AlignConfig(model="m", data="d", algorithm="online-dpo", reward=("m:f",), beta=0.3, num_generations=3)
    mask_BT = torch.arange(4) < LENGTHS[:, None]
    judged = Judged(SCORES, 3, Said(now_N.detach()), ref_N, mask_BT)
    found = losses_N(Said(now_N), judged.old, ref_N, teach_online_dpo(judged, 0.3, config), LENGTHS, config)
    return (weights_N(LENGTHS, config.aggregation, 4) * found["policy"]).sum()


def test_online_dpo_is_dpo_on_the_best_and_the_worst() -> None:
    generator = torch.Generator().manual_seed(0)
    now_N, ref_N = (torch.randn(13, generator=generator).requires_grad_() for _ in range(2))
    loss = online_dpo(now_N, ref_N.detach())
    (gradient_N,) = torch.autograd.grad(loss, now_N)
    now, ref = (torch.stack([part.sum() for part in x_N.split(LENGTHS.tolist())]) for x_N in (now_N, ref_N.detach()))
    pair = Pairs(now[[1, 2]][None], ref[[1, 2]][None], LENGTHS[[1, 2]][None], torch.tensor([True]))
    # Scores alike teach nothing and cost log 2.
    expected = (preference_loss_S(pair, Preference("dpo", 0.3)).sum() + torch.tensor(2.0).log()) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient_N, torch.autograd.grad(expected, now_N)[0])
    assert (gradient_N[6:] == 0).all()
