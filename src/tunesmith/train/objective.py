"""What is minimised: from a packed batch to the loss of each place that is judged."""

from __future__ import annotations

import torch

from tunesmith.models.heads import find_language_head
from tunesmith.models.load import Network
from tunesmith.models.packed import packed_hidden, packed_logits
from tunesmith.records import PackedBatch
from tunesmith.runtime import working_dtype
from tunesmith.train.losses import PLAIN, Penalty, cross_entropy_N, linear_cross_entropy_N, squared_error_N


def judged_losses(
    network: Network, batch: PackedBatch, penalty: Penalty = PLAIN
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Losses (N,) of the judged places, and for classification and regression the logits (S, C).

    Run it under `autocast`; losses are float32 whatever the model computes in.
    """
    if network.task != "generation":
        logits = packed_logits(network, batch)
        if network.task == "regression":
            return squared_error_N(logits, batch.targets), logits
        return cross_entropy_N(logits, batch.targets, penalty), logits
    head = find_language_head(network.model)
    if head is None:
        return cross_entropy_N(packed_logits(network, batch), batch.targets, penalty), None
    hidden_ND = packed_hidden(network, batch)[batch.predict_from]
    dtype = working_dtype(hidden_ND)
    if head.enter is not None:
        hidden_ND = head.enter(hidden_ND)
    weight_VD, bias_V = head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype)
    return linear_cross_entropy_N(hidden_ND.to(dtype), weight_VD, batch.targets, head.softcap, penalty, bias_V), None
