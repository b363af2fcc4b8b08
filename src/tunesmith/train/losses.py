"""Losses as sums over what is judged. Whoever calls divides: by all judged places of an accumulation
window, so that one step of 8 rows and 8 steps of 1 row give the same gradient.

Shape letters: N judged places, V vocabulary or classes.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tunesmith.records import Task


def cross_entropy_N(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """-log softmax(logits)[target] in nats, computed in float32. Returns (N,)."""
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="none")


def squared_error_N(predictions_N1: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """(prediction - target)^2 in float32. Returns (N,)."""
    return (predictions_N1.float().squeeze(-1) - targets_N.float()).square()


def judge(task: Task, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of each judged place (N,): tokens for generation, rows otherwise."""
    return squared_error_N(logits, targets) if task == "regression" else cross_entropy_N(logits, targets)
