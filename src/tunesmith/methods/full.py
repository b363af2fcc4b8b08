"""Full tuning: every weight is trained."""

from __future__ import annotations

from tunesmith.config import TrainingConfig
from tunesmith.methods.method import Method
from tunesmith.models.load import Network


def train_everything(network: Network, config: TrainingConfig) -> None:
    network.model.requires_grad_(True)


ROWS = (Method("full", "full", "every weight", "", (7.5e-5, 1.5e-4), train_everything),)
