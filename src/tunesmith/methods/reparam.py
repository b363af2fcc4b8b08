"""Reparameterised tuning: the change of a frozen matrix is written as something smaller.

Parameters and files are PEFT's. For LoRA and DoRA the computation is ours (`lowrank.py`).
"""

from __future__ import annotations

from peft import LoraConfig, TaskType
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.config import TrainingConfig
from tunesmith.errors import InputError
from tunesmith.models.layers import linear_names
from tunesmith.models.load import Network
from tunesmith.models.lowrank import fuse
from tunesmith.models.wrap import wrap


def add_lora(network: Network, config: TrainingConfig) -> None:
    """W + (alpha / r) B A with B zero at the start (Hu et al. 2022, arXiv 2106.09685)."""
    _add(network, config, use_dora=False)


def add_dora(network: Network, config: TrainingConfig) -> None:
    """LoRA on the direction of W, its column norms trained apart (Liu et al. 2024, arXiv 2402.09353)."""
    _add(network, config, use_dora=True)


def _add(network: Network, config: TrainingConfig, use_dora: bool) -> None:
    present = linear_names(network.model)
    targets = list(config.target_modules or present)
    unknown = [target for target in targets if target not in present]
    if unknown:
        raise InputError(
            f"target_modules: '{network.source}' has no linear layer called '{unknown[0]}'. It has {', '.join(present)}"
        )
    head = network.head_modules
    peft_config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if network.task == "generation" else TaskType.SEQ_CLS,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        # The names of layers in the body may stand in the head too ("dense" in BERT's pooler).
        exclude_modules=rf"(.*\.)?({'|'.join(head)})(\..*)?" if head else None,
        modules_to_save=list(head) or None,
        use_dora=use_dora,
        fan_in_fan_out=_has_transposed_linears(network.model),
        base_model_name_or_path=network.folder,
    )
    adopt_lora(network, wrap(network.model, peft_config))


def adopt_lora(network: Network, wrapped: nn.Module) -> None:
    """Takes over a PEFT model: its base runs, it saves."""
    network.wrapper = wrapped
    fuse(wrapped)


def _has_transposed_linears(model: nn.Module) -> bool:
    return any(isinstance(module, Conv1D) for module in model.modules())
