"""Optimizers as they begin."""

from __future__ import annotations

import torch
from torch import nn

from tunesmith.train.optim import make_optimizer


def test_adamw_begins_with_the_states_that_torch_makes_in_its_first_step() -> None:
    ours, theirs = ([nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3)), nn.Parameter(torch.ones(3))] for _ in range(2))
    optimizer = make_optimizer([("weight", ours[0]), ("bias", ours[1])], 1e-2, 0.0)
    torch_optimizer = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.0, fused=True)
    begun = {parameter: {key: value.clone() for key, value in optimizer.state[parameter].items()} for parameter in ours}
    for number in range(3):
        for parameter in [*ours, *theirs]:
            parameter.grad = (parameter.detach() + number).sin()
        optimizer.step()
        torch_optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
        made = torch_optimizer.state[other]
        assert {key: (value.shape, value.dtype) for key, value in begun[one].items()} == {
            key: (value.shape, value.dtype) for key, value in made.items()
        }
        assert not any(value.any() for value in begun[one].values())
