"""Muon beside torch's own, and its orthogonal matrices beside a singular value decomposition."""

from __future__ import annotations

import pytest
import torch

from tunesmith.train.muon import Muon, is_hidden_matrix, orthogonal
from tunesmith.train.optim import make_optimizer


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_directions_are_those_of_the_gradient_and_all_as_long(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    lengths = torch.linalg.svdvals(found)
    assert lengths.min() > 0.5
    assert lengths.max() < 1.3
    inside = u.T @ found @ vh.T
    assert (inside - inside.diag().diag()).abs().max() < 1e-3, "no direction is turned into another"
    assert torch.linalg.svdvals(matrix).max() > 3, "which they were not before"


def test_a_step_is_that_of_torch() -> None:
    """torch computes the orthogonal matrix in bfloat16."""
    start = torch.randn(24, 40)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.1}
    optimizers = [
        make_optimizer([("layers.0.q_proj.weight", ours)], 0.02, 0.1, "muon"),
        torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw"),
    ]
    for number in range(3):
        torch.manual_seed(number)
        ours.grad = torch.randn_like(start)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved
    theirs_without_momentum = start - 0.02 * orthogonal(ours.grad)
    assert (ours - theirs_without_momentum).norm() > 0.1 * moved


def test_vectors_and_words_learn_by_adamw() -> None:
    names = {"layers.0.q_proj.weight": (4, 6), "embed_tokens.weight": (9, 4), "layers.0.norm.weight": (4,)}
    parameters = [(name, torch.nn.Parameter(torch.ones(shape))) for name, shape in names.items()]
    assert [is_hidden_matrix(name, parameter) for name, parameter in parameters] == [True, False, False]
    optimizer = make_optimizer(parameters, 0.01, 0.0, "muon")
    assert isinstance(optimizer, Muon)
    for _, parameter in parameters:
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    for _, parameter in parameters[1:]:
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, 0.99))
