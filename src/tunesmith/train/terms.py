"""A training by its configuration: its plan, what its loss is like, and what a preference is measured from."""

from __future__ import annotations

from typing import cast

import torch

from tunesmith.config import TrainingConfig
from tunesmith.config_align import AlignConfig, RewardConfig
from tunesmith.data.tokens import TokenRows
from tunesmith.models.load import Network
from tunesmith.train.losses import Penalty
from tunesmith.train.preference import Preference, Rule
from tunesmith.train.step import Plan
from tunesmith.train.validate import validate


def make_plan(config: TrainingConfig, learning_rate: float, device: torch.device, dtype: torch.dtype) -> Plan:
    return Plan(
        learning_rate=learning_rate,
        num_epochs=config.num_train_epochs,
        batch_size=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        optim=config.optim,
        galore_rank=config.galore_rank,
        weight_decay=config.weight_decay,
        l2_sp=config.l2_sp,
        terms=terms_of(config),
        max_grad_norm=config.max_grad_norm,
        optimizer_in_backward=config.optimizer_in_backward,
        warmup_ratio=config.warmup_ratio,
        schedule=config.lr_scheduler_type,
        eval_steps=config.eval_steps,
        patience=config.early_stopping_patience,
        max_steps=config.max_steps,
        save_steps=config.save_steps,
        save_minutes=config.save_minutes,
        on_nonfinite=config.on_nonfinite,
        seed=config.seed,
        device=device,
        dtype=dtype,
    )


def terms_of(config: TrainingConfig) -> Penalty | Preference:
    """A penalty, or the rule by which answers are preferred."""
    if isinstance(config, AlignConfig) and not config.is_online:
        return Preference(
            rule=cast(Rule, config.algorithm),
            beta=config.strength,
            noise=config.noise,
            margin=config.margin,
            sft=config.sft_weight,
            good=config.desirable_weight,
            bad=config.undesirable_weight,
        )
    if isinstance(config, RewardConfig):
        tied = 1.0 if config.ties == "half" else 0.0
        centre = config.center_rewards_coefficient
        smoothing = config.label_smoothing_factor
        return Penalty(smoothing, config.z_loss, tied, centre, config.ranking_loss, config.margin)
    return Penalty(config.label_smoothing_factor, config.z_loss)


def with_reference(network: Network, rows: TokenRows, preference: Preference, dtype: torch.dtype) -> TokenRows:
    """Rows of two ranked answers with the targets that `preference_losses` takes: whether the first is a good one, and
    what the network, as it is before its first step, says of both. That is the reference; it is asked once for each
    row, and no second model is held."""
    signs = [1.0 if row.target == (1, 2) else -1.0 for row in rows]
    aimed = rows.aimed([(sign, 0.0, 0.0) for sign in signs])
    if not preference.needs_reference:
        return aimed
    network.model.eval()
    said = validate(network, aimed, dtype, preference).logits.tolist()
    return rows.aimed([(sign, *logprobs) for sign, logprobs in zip(signs, said, strict=True)])
