"""Losses in chunks, with what training may add to them, against torch's own cross-entropy and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tunesmith.config import TuneConfig
from tunesmith.errors import InputError
from tunesmith.train import losses
from tunesmith.train.losses import Penalty, cross_entropy_N, linear_cross_entropy_N

PENALTIES = [Penalty(), Penalty(0.1), Penalty(0.0, 1e-2), Penalty(0.3, 0.05)]


def textbook(logits_NV: torch.Tensor, targets_N: torch.Tensor, penalty: Penalty) -> torch.Tensor:
    """Cross-entropy with the smoothed targets written out, plus the square of the normaliser."""
    size = logits_NV.shape[1]
    wanted_NV = F.one_hot(targets_N, size) * (1 - penalty.label_smoothing) + penalty.label_smoothing / size
    own_N = -(wanted_NV * logits_NV.log_softmax(-1)).sum(-1)
    return own_N + penalty.z_loss * logits_NV.exp().sum(-1).log().square()


def results(loss_N: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    weights_N = torch.linspace(0.5, 2.0, len(loss_N), dtype=loss_N.dtype)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [loss_N.detach(), *torch.autograd.grad((loss_N * weights_N).sum(), wanted)]


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("is_trained", [False, True])
def test_chunks_are_the_textbook(
    penalty: Penalty, softcap: float | None, is_trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 4 * 23)
    hidden_ND = torch.randn(11, 8).requires_grad_()
    weight_VD = torch.randn(23, 8).requires_grad_(is_trained)
    targets_N = torch.randint(0, 23, (11,))
    found = results(linear_cross_entropy_N(hidden_ND, weight_VD, targets_N, softcap, penalty), [hidden_ND, weight_VD])
    exact = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in (hidden_ND, weight_VD)]
    logits_NV = exact[0] @ exact[1].T
    logits_NV = logits_NV if softcap is None else softcap * torch.tanh(logits_NV / softcap)
    expected = results(textbook(logits_NV, targets_N, penalty), exact)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_classes_are_the_textbook(penalty: Penalty) -> None:
    logits_NC = torch.randn(7, 5).requires_grad_()
    targets_N = torch.randint(0, 5, (7,))
    exact = logits_NC.detach().double().requires_grad_()
    found = results(cross_entropy_N(logits_NC, targets_N, penalty), [logits_NC])
    expected = results(textbook(exact, targets_N, penalty), [exact])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("key", "value"), [("label_smoothing_factor", 1.0), ("z_loss", -1.0)])
def test_weights_out_of_range_are_refused(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=key):
        TuneConfig.read(given={"model": "m", "data": "d", key: value})
