"""Gradients of a large embedding that touch only the rows a batch has used.

torch makes a zeroed gradient of the whole table at every step: 47 MB of fresh memory for MiniLM's
30,522 words, of which a batch uses some hundred. Here one gradient stays with the weight, rows are
added to it in place, and clearing it clears those rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

# Below this many elements a whole gradient costs nothing worth saving.
SMALLEST_TABLE = 2**20


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight_VD, ids, module):  # type: ignore[no-untyped-def]
        ctx.module = module
        ctx.save_for_backward(ids)
        return F.embedding(ids, weight_VD)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (ids,) = ctx.saved_tensors
        ctx.module.add_gradient(ids.flatten(), grad.flatten(0, -2))
        return None, None, None


class RowGradientEmbedding(nn.Embedding):
    """nn.Embedding whose `weight.grad` is kept and changed by rows. `used` holds the ids of the rows."""

    used: list[torch.Tensor]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not (self.weight.requires_grad and torch.is_grad_enabled()):
            return super().forward(input)
        rows: torch.Tensor = _Rows.apply(self.weight, input, self)  # type: ignore[no-untyped-call]
        return rows

    def add_gradient(self, ids: torch.Tensor, grad_TD: torch.Tensor) -> None:
        """Adds the gradient of the rows `ids`; the padding row learns nothing, as in nn.Embedding."""
        if self.padding_idx is not None:
            grad_TD = grad_TD * (ids != self.padding_idx)[:, None]
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        self.used.append(ids)  # first: an interruption between the two must not leave a row that is never cleared
        self.weight.grad.index_add_(0, ids, grad_TD.to(self.weight.dtype))

    def clear_gradient(self) -> None:
        if self.weight.grad is not None:
            for ids in self.used:
                self.weight.grad[ids] = 0
        self.used = []


def use_row_gradients(model: PreTrainedModel) -> None:
    """Lets every large trained embedding on a CPU keep its gradient. Not one that is the output head too:
    a head's gradient reaches all rows."""
    head: Any = model.get_output_embeddings()
    for module in model.modules():
        if type(module) is not nn.Embedding or module.weight.numel() < SMALLEST_TABLE:
            continue
        is_head = head is not None and head.weight is module.weight
        if module.weight.requires_grad and module.weight.device.type == "cpu" and not is_head:
            module.__class__ = RowGradientEmbedding
            vars(module)["used"] = []
            module.weight.grad = torch.zeros_like(module.weight)  # now, for it stays: not among a batch's leftovers


def clear_gradients(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """After a step: kept gradients are zeroed where they were used, all others are let go."""
    kept = [module for module in model.modules() if isinstance(module, RowGradientEmbedding)]
    gradients = [module.weight.grad for module in kept]
    optimizer.zero_grad(set_to_none=True)
    for module, gradient in zip(kept, gradients, strict=True):
        module.weight.grad = gradient
        module.clear_gradient()
