"""Losses beside TRL's, on the very batches that its trainers make. TRL is a peer and no part: without it nothing is
run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.parity.tiny import make_model, make_network, make_tokenizer
from tunesmith.config_align import AlignConfig
from tunesmith.data.pack import pack
from tunesmith.models.load import Network, load_network
from tunesmith.records import TokenizedExample
from tunesmith.rl.advantage import dr_grpo_PK, grpo_PK, rloo_PK
from tunesmith.rl.algorithms import Lesson, losses_N
from tunesmith.rl.losses import weights_N
from tunesmith.rl.rollout import Said
from tunesmith.train.losses import Penalty
from tunesmith.train.objective import answer_logprobs, judged_losses
from tunesmith.train.preference import Preference

trl = pytest.importorskip("trl")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

ROWS = [
    {"prompt": f"w{5 + i} w{20 + i} ", "chosen": f"w{30 + i} w{9 + i} w7", "rejected": f"w{50 - i} w8"}
    for i in range(4)
]
SETTINGS = {"use_cpu": True, "report_to": "none", "bf16": False, "per_device_train_batch_size": 4, "max_length": None}


def answer_row(ids: torch.Tensor, mask: torch.Tensor, attended: torch.Tensor) -> tuple[list[int], list[int]]:
    """Prompt and completion in a padded row."""
    real = attended.bool()
    pairs = list(zip(ids[real].tolist(), mask[real].tolist(), strict=True))
    return [token for token, is_answer in pairs if not is_answer], [token for token, is_answer in pairs if is_answer]


def to_row(prompt: Sequence[int], answers: Sequence[Sequence[int]], target: Any, row: int) -> TokenizedExample:
    ids, begins = list(prompt), []
    for answer in answers:
        begins.append(len(ids))
        ids += answer
    trained = tuple(place >= len(prompt) for place in range(len(ids)))
    return TokenizedExample(tuple(ids), trained, target, 0, row, answers=tuple(begins))


@pytest.fixture
def networks(tmp_path: Path) -> tuple[Network, Network]:
    """The model, and another one as the reference."""
    own = make_network("llama", "preference", tmp_path / "own")
    make_model("llama", "generation", seed=7).save_pretrained(tmp_path / "ref")
    make_tokenizer().save_pretrained(tmp_path / "ref")
    return own, load_network(str(tmp_path / "ref"), "preference")


def with_reference(rows: Sequence[TokenizedExample], reference: Network, signs: Sequence[float]) -> Any:
    with torch.no_grad():
        said, _ = answer_logprobs(reference, pack(rows, share=True))
    targets = [(sign, *refs) for sign, refs in zip(signs, said.tolist(), strict=True)]
    return pack([to_like(row, target) for row, target in zip(rows, targets, strict=True)], share=True)


def to_like(row: TokenizedExample, target: Any) -> TokenizedExample:
    return replace(row, target=target)


@pytest.mark.parametrize(
    ("loss_type", "smoothing", "ours"),
    [
        ("sigmoid", 0.0, Preference("dpo", 0.3)),
        ("robust", 0.2, Preference("robust-dpo", 0.3, noise=0.2)),
        ("ipo", 0.0, Preference("ipo", 0.3)),
    ],
)
def test_dpo(
    loss_type: str, smoothing: float, ours: Preference, networks: tuple[Network, Network], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    plain, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("own", "ref"))
    config = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"), beta=0.3, loss_type=[loss_type], label_smoothing=smoothing, **SETTINGS
    )
    trainer = trl.DPOTrainer(
        model=plain,
        ref_model=other,
        args=config,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=make_tokenizer(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer._compute_loss(trainer.model, batch, False)
    parts = [
        answer_row(*one)
        for one in zip(batch["input_ids"], batch["completion_mask"], batch["attention_mask"], strict=True)
    ]
    half = len(parts) // 2
    rows = [to_row(parts[i][0], [parts[i][1], parts[i + half][1]], (0.0,) * 3, i) for i in range(half)]
    found, _ = judged_losses(networks[0], with_reference(rows, networks[1], [1.0] * half), ours)
    assert found.mean().item() == pytest.approx(theirs.item(), rel=1e-5)


def test_kto(networks: tuple[Network, Network], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("own", "ref"))
    config = trl.KTOConfig(output_dir=str(tmp_path / "trl"), beta=0.3, desirable_weight=1.5, **SETTINGS)
    data = [{"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2 == 0} for i, row in enumerate(ROWS)]
    trainer = trl.KTOTrainer(
        model=plain,
        ref_model=other,
        args=config,
        train_dataset=Dataset.from_list(data),
        processing_class=make_tokenizer(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer._compute_loss(trainer.model, batch, False)
    own = zip(batch["input_ids"], batch["completion_mask"], batch["attention_mask"], strict=True)
    others = zip(batch["KL_input_ids"], batch["KL_completion_mask"], batch["KL_attention_mask"], strict=True)
    rows, signs = [], [1.0 if label else -1.0 for label in batch["label"]]
    for index, (one, another) in enumerate(zip(own, others, strict=True)):
        prompt, answer = answer_row(*one)
        same, mismatched = answer_row(*another)
        assert prompt == same
        rows.append(to_row(prompt, [answer, mismatched], (0.0,) * 3, index))
    found, _ = judged_losses(networks[0], with_reference(rows, networks[1], signs), Preference("kto", 0.3, good=1.5))
    assert found.mean().item() == pytest.approx(theirs.item(), rel=1e-5)


def test_reward(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    network = make_network("llama", "ranking", tmp_path / "own")
    config = trl.RewardConfig(output_dir=str(tmp_path / "trl"), center_rewards_coefficient=0.01, **SETTINGS)
    trainer = trl.RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(tmp_path / "own", num_labels=1),
        args=config,
        train_dataset=Dataset.from_list([row | {"margin": 0.5 * (place % 3)} for place, row in enumerate(ROWS)]),
        processing_class=make_tokenizer(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    strengths = [round(margin / 0.5) for margin in batch["margin"].tolist()]
    assert len(set(strengths)) > 1
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    half = len(ids) // 2
    rows = []
    for index in range(half):
        good, bad = ids[index], ids[index + half]
        same = next(place for place, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b)
        rows.append(to_row(good[:same], [good[same:], bad[same:]], (1, 2 + strengths[index]), index))
    found, _ = judged_losses(network, pack(rows, share=True), Penalty(centre=0.01, margin=0.5))
    assert found.mean().item() == pytest.approx(theirs.item(), rel=1e-5)


def by_trial(kind: str, tmp_path: Path, **more: Any) -> tuple[Any, dict[str, torch.Tensor], Any]:
    """A trainer of TRL's, a batch of answers as it has them, and what the model says of their tokens."""
    from transformers import AutoModelForCausalLM

    make_network("llama", "generation", tmp_path / "own")
    config_type, trainer_type = getattr(trl, f"{kind}Config"), getattr(trl, f"{kind}Trainer")
    settings = {key: value for key, value in SETTINGS.items() if key != "max_length"}
    config = config_type(
        output_dir=str(tmp_path / "trl"), num_generations=4, max_completion_length=6, **settings, **more
    )
    trainer = trainer_type(
        model=AutoModelForCausalLM.from_pretrained(tmp_path / "own"),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in ROWS]),
        processing_class=make_tokenizer(),
    )
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    mask = torch.tensor([[1] * n + [0] * (6 - n) for n in (6, 3, 1, 5)])
    inputs = {
        "prompt_ids": torch.randint(5, 90, (4, 5), generator=generator),
        "prompt_mask": torch.ones(4, 5, dtype=torch.long),
        "completion_ids": torch.randint(5, 90, (4, 6), generator=generator),
        "completion_mask": mask,
        "advantages": draw(4),
        "num_items_in_batch": mask.sum(),
    }
    whole = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    logits = trainer.model(whole).logits[:, 4:-1]
    logp = logits.log_softmax(-1).gather(-1, inputs["completion_ids"][..., None])[..., 0]
    return trainer, inputs | {"drift": 0.3 * draw(4, 6), "away": 0.5 * draw(4, 6)}, logp


@pytest.mark.parametrize(("theirs", "ours"), [("grpo", "sequence"), ("dapo", "token"), ("dr_grpo", "constant")])
def test_grpo(theirs: str, ours: str, tmp_path: Path) -> None:
    more = {"loss_type": theirs, "beta": 0.1, "epsilon_high": 0.28, "use_bias_correction_kl": False}
    trainer, inputs, logp = by_trial("GRPO", tmp_path, **more)
    old, ref = logp.detach() + inputs.pop("drift"), logp.detach() + inputs.pop("away")
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = 1
    expected = trainer._compute_loss(trainer.model, inputs | {"old_per_token_logps": old, "ref_per_token_logps": ref})
    mask, lengths = inputs["completion_mask"].bool(), inputs["completion_mask"].sum(1)
    config = AlignConfig(
        model="m", data="d", algorithm="grpo", reward=("a:b",), beta=0.1, cliprange_high=0.28, loss_type=ours
    )
    lesson = Lesson(inputs["advantages"].repeat_interleave(lengths))
    found = losses_N(Said(logp[mask]), Said(old[mask]), ref[mask], lesson, lengths, config)
    loss = (weights_N(lengths, config.aggregation, 6) * sum(found.values())).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_rloo(tmp_path: Path) -> None:
    trainer, inputs, logp = by_trial("RLOO", tmp_path)
    mask, lengths = inputs["completion_mask"].bool(), inputs["completion_mask"].sum(1)
    old = logp.detach() + 0.1 * inputs.pop("drift")
    inputs.pop("away")
    expected = trainer._compute_loss(trainer.model, inputs | {"old_logps": (old * mask).sum(1)})
    config = AlignConfig(model="m", data="d", algorithm="rloo", reward=("a:b",))
    lesson = Lesson(inputs["advantages"].repeat_interleave(lengths))
    found = losses_N(Said(logp[mask]), Said(old[mask]), old[mask], lesson, lengths, config)
    loss = (weights_N(lengths, config.aggregation, 6) * found["policy"]).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_advantages_by_their_formulas() -> None:
    """As its trainers compute them, written down here, since they stand in the middle of a long method there."""
    rewards = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    mean, deviation = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
    torch.testing.assert_close(grpo_PK(rewards), (rewards - mean) / (deviation + 1e-4))
    torch.testing.assert_close(dr_grpo_PK(rewards), rewards - mean)
    torch.testing.assert_close(rloo_PK(rewards), rewards - (rewards.sum(1, keepdim=True) - rewards) / 3)
