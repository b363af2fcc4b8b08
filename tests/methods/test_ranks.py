"""AdaLoRA's ranks: allotted as PEFT allots them, kept through an interruption, and saved as those that are left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from tests.methods import matrix
from tests.methods.test_methods import parts_of, save_base
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from tunesmith.config import TuneConfig
from tunesmith.errors import InputError
from tunesmith.methods.ranks import Budget, allot_ranks, settings_of, triplets_of
from tunesmith.methods.table import METHODS
from tunesmith.models.attention import unpacked
from tunesmith.train.checkpoint import State
from tunesmith.train.loop import trainable
from tunesmith.train.optim import make_optimizer
from tunesmith.tuning import tune

ADALORA = METHODS["adalora"]
STEPS = 12
# PEFT warns of its own choice of names.
PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@PEFT_WARNS
def test_ranks_are_those_of_peft() -> None:
    """Twelve steps of both: the same weights, penalty and all, and the same ranks left. In float64, except norms."""
    network = matrix.put_under("llama", ADALORA)
    network.root.double()
    named = trainable(network)
    ours = State(named, make_optimizer(named, matrix.RATE, 0.0), torch.device("cpu"))
    allot_ranks(network, matrix.small(ADALORA), ours.optimizer, STEPS)
    said = settings_of(network)
    given: dict[str, Any] = {"target_r": said.target_r, "init_r": said.init_r, "lora_alpha": said.lora_alpha}
    given |= {"total_step": STEPS, "tinit": 2, "tfinal": 4, "target_modules": said.target_modules}
    given["task_type"] = "CAUSAL_LM"
    base = AutoModelForCausalLM.from_pretrained(matrix._home("llama").name, attn_implementation="eager")
    theirs = get_peft_model(base, AdaLoraConfig(**given)).double().eval()
    start = {name: p.detach().clone() for name, p in network.root.named_parameters()}
    theirs.load_state_dict(start, strict=False)
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], matrix.RATE, weight_decay=0.0)
    for group in (*ours.optimizer.param_groups, *optimizer.param_groups):
        group["eps"] = 1e-3  # else rounding in norms, divided by the smallest of gradients, would show
    rows = matrix.make_rows(network)
    longest = max(len(row.input_ids) for row in rows)
    ids, mask, labels = (
        torch.tensor([[*of(row)] + [fill] * (longest - len(row.input_ids)) for row in rows])
        for of, fill in (
            (lambda row: row.input_ids, 0),
            (lambda row: [1] * len(row.input_ids), 0),
            (lambda row: [i if t else -100 for i, t in zip(row.input_ids, row.trained, strict=True)], -100),
        )
    )
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        theirs(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
    matrix.train(network, ours, STEPS)
    found = dict(theirs.named_parameters())
    for name, parameter in ours.parameters:
        assert "lora_E" in name or not torch.equal(parameter, start[name])
        torch.testing.assert_close(parameter.detach(), found[name].detach(), atol=1e-7, rtol=1e-4)
    left = [int((layer.e_R1 != 0).sum()) for layer in triplets_of(network)]
    assert sum(left) == said.target_r * len(left) < said.init_r * len(left)
    assert len(set(left)) > 1
    pattern = theirs.peft_config["default"].rank_pattern
    assert left == [sum(pattern[name]) for name in pattern]


def test_a_budget_falls_by_a_third_power() -> None:
    budget = Budget(first=120, last=80, begins=2, ends=10, every=2)
    assert [budget.after(step) for step in range(1, 13)] == [
        *(None, None, None, 80 + int(40 * 0.75**3), None, 80 + 40 // 8, None, 80, None, 80, None, None)
    ]


@PEFT_WARNS
def test_a_run_is_what_plain_peft_loads(tmp_path: Path) -> None:
    save_base("llama", "generation", tmp_path / "base")
    given = {"model": str(tmp_path / "base"), "data": "d", "method": "adalora", "precision": "fp32", "lora_r": 2}
    given |= {"learning_rate": 0.02, "max_steps": 8, "output": tmp_path / "run"}
    run = tune(TuneConfig.read(given=given), parts_of("generation"), quiet=True)
    ids = torch.tensor([[5, 9, 12, 7]])
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "run").eval()
    ranks = [len(p) for name, p in plain.named_parameters() if "lora_A" in name]
    left = [int((layer.e_R1 != 0).sum()) for layer in triplets_of(run.network)]
    assert sum(left) == 2 * len(left)
    assert ranks == [max(rank, 1) for rank in left]
    wrapped: Any = run.network.wrapper
    with torch.no_grad(), unpacked(run.network.model):
        torch.testing.assert_close(
            F.log_softmax(plain(input_ids=ids).logits, -1),
            F.log_softmax(wrapped.eval()(input_ids=ids).logits, -1),
            atol=2e-5,
            rtol=1e-4,
        )


def test_too_few_steps_are_refused(tmp_path: Path) -> None:
    save_base("llama", "generation", tmp_path / "base")
    given = {"model": str(tmp_path / "base"), "data": "d", "method": "adalora", "max_steps": 2}
    with pytest.raises(InputError, match=r"2 steps, of which .* first 1 and the last 1: none is left"):
        tune(TuneConfig.read(given=given | {"output": tmp_path / "run"}), parts_of("generation"), quiet=True)
