"""Full tuning: every weight is trained."""

from __future__ import annotations

from tunesmith.config import TrainingConfig
from tunesmith.models.load import Network


def train_everything(network: Network, config: TrainingConfig) -> None:
    network.model.requires_grad_(True)
