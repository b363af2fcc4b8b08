"""What a training holds on to: against plain transformers, scipy's divergence, and updates worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from tests.faults.survival import make_base, make_rows
from tests.methods.test_informed import plain_squares
from tests.methods.test_methods import config
from tests.parity import test_packed
from tests.parity.tiny import make_model, make_network
from torch import nn

from tunesmith.config import TuneConfig
from tunesmith.errors import InputError
from tunesmith.methods.keeping import remember
from tunesmith.methods.table import METHODS
from tunesmith.models.load import load_network
from tunesmith.train import step
from tunesmith.train.kept import ROWS_A_STEP, Kept, ask, count_judged, divergence, divergence_of
from tunesmith.train.losses import likeliest_divergence_N
from tunesmith.train.optim import hold_near_start
from tunesmith.tuning import tune

ALL = 10**6  # more than any vocabulary has


def distributions(vocabulary: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    return 2 * torch.randn(6, vocabulary), 2 * torch.randn(6, vocabulary)


def test_divergence_over_the_vocabulary_is_scipys() -> None:
    base_NV, tuned_NV = distributions()
    logprobs_NK, ids_NK = base_NV.log_softmax(-1).topk(40)
    found_N = likeliest_divergence_N(tuned_NV, ids_NK, logprobs_NK)
    p, q = (each.double().softmax(-1).numpy() for each in (base_NV, tuned_NV))
    np.testing.assert_allclose(found_N.numpy(), rel_entr(p, q).sum(-1), rtol=1e-4)


def test_divergence_of_some_is_that_with_the_others_as_one() -> None:
    base_NV, tuned_NV = distributions()
    logprobs_NK, ids_NK = base_NV.log_softmax(-1).topk(5)
    found_N = likeliest_divergence_N(tuned_NV, ids_NK, logprobs_NK)
    p, q = (each.double().softmax(-1).gather(-1, ids_NK).numpy() for each in (base_NV, tuned_NV))
    p, q = (np.concatenate([each, 1 - each.sum(-1, keepdims=True)], -1) for each in (p, q))
    np.testing.assert_allclose(found_N.numpy(), rel_entr(p, q).sum(-1), rtol=1e-4)
    whole_N = likeliest_divergence_N(tuned_NV, *reversed(base_NV.log_softmax(-1).topk(40)))
    assert (found_N < whole_N).all()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_value_and_gradient_are_those_of_plain_models(kind: str, tmp_path: Path) -> None:
    """Rows packed and the base asked beforehand, against one row at a time in two plain models."""
    network, rows = make_network(kind, "generation", tmp_path), test_packed.make_rows("generation")
    said = ask(network, rows, torch.float32, ALL)
    base, tuned = make_model(kind, "generation"), make_model(kind, "generation")
    for model in (network.model, tuned):
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    kl_N = divergence_of(network, rows, said, range(len(rows)))
    kl_N.mean().backward()

    by_hand = []
    for row in rows:
        places = [place - 1 for place, trained in enumerate(row.trained) if trained and place]
        logits = [model(torch.tensor([row.input_ids])).logits[0, places] for model in (base, tuned)]
        p, q = logits[0].log_softmax(-1).detach(), logits[1].log_softmax(-1)
        assert count_judged(row) == len(places)
        by_hand.append((p.exp() * (p - q)).sum(-1))
    plain_N = torch.cat(by_hand)
    plain_N.mean().backward()
    assert kl_N.mean().item() > 0.01
    torch.testing.assert_close(kl_N.mean(), plain_N.mean(), rtol=1e-4, atol=1e-6)
    theirs = dict(tuned.named_parameters())
    for name, parameter in network.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-6)


def test_nothing_has_diverged_before_the_first_step(tmp_path: Path) -> None:
    network, rows = make_network("llama", "generation", tmp_path), test_packed.make_rows("generation")
    said = ask(network, rows, torch.float32)
    kl_N = divergence_of(network, rows, said, range(len(rows)))
    assert kl_N.abs().max() < 1e-5
    found = torch.autograd.grad(kl_N.sum(), [network.model.lm_head.weight])[0]
    assert found.abs().max() < 1e-4


def test_the_pull_is_by_what_a_weight_matters() -> None:
    """From w to w0 by rate x (l2_sp + ewc x Fisher), and never beyond w0."""
    weight, other = nn.Parameter(torch.tensor([1.0, 1.0, 1.0])), nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight, other], lr=0.1)
    hold_near_start(optimizer, [weight], 0.5, {weight: torch.tensor([0.0, 2.0, 1e6])}, 3.0)
    weight.data += 1.0
    other.data += 1.0
    weight.grad, other.grad = torch.zeros(3), torch.zeros(1)
    optimizer.step()
    torch.testing.assert_close(weight.data, 1 + torch.tensor([1 - 0.1 * 0.5, 1 - 0.1 * (0.5 + 3 * 2), 0.0]))
    assert other.item() == 2.0


def test_what_matters_is_known_by_squared_gradients(tmp_path: Path) -> None:
    """Fisher's information of plain transformers, one row at a time, divided by its mean."""
    network = make_network("gpt2", "generation", tmp_path)
    rows = test_packed.make_rows("generation")
    data = tmp_path / "rows.jsonl"
    make_rows("generation", data)
    settings = config("full", ewc=1.0, keep_data=str(data))
    METHODS["full"].apply(network, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.methods.keeping._rows_to_keep", lambda *_: rows)
        kept = remember(network, METHODS["full"], settings, torch.float32)
    squares = plain_squares("gpt2", "generation")
    mean = sum(each.sum() for each in squares.values()) / sum(each.size for each in squares.values())
    assert set(kept.fisher) == set(squares)
    for name, found in kept.fisher.items():
        np.testing.assert_allclose(found.numpy(), squares[name] / mean, rtol=2e-3, atol=1e-5)


# Whole runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    make_base("llama", "generation", folder / "base", dropout=0.0)
    make_rows("generation", folder / "rows.jsonl")
    return folder


def settings(place: Path, output: Path, **more: Any) -> TuneConfig:
    given = {"model": str(place / "base"), "data": str(place / "rows.jsonl"), "method": "lora", "output": output}
    fixed = {"per_device_train_batch_size": 8, "num_train_epochs": 3, "precision": "fp32", "device": "cpu"}
    return TuneConfig.read(given=given | fixed | {"learning_rate": 3e-3, "check": False} | more)


def divergences(run: Any) -> list[float]:
    return [line["kl_to_base"] for line in run.metrics() if "kl_to_base" in line]


def test_a_model_that_is_held_moves_less(place: Path, tmp_path: Path) -> None:
    """Beside a run that only watches."""
    free = divergences(tune(settings(place, tmp_path / "free", kl_to_base=1e-9), quiet=True))
    held = divergences(tune(settings(place, tmp_path / "held", kl_to_base=20.0), quiet=True))
    assert free[0] == pytest.approx(0, abs=1e-5)
    assert len(free) == len(held) >= 6
    assert held[-1] < 0.5 * free[-1], (held, free)


def test_weights_that_matter_stay(place: Path, tmp_path: Path) -> None:
    """How far weights went, each by what it matters: the sum that EWC penalises."""
    rows = str(place / "rows.jsonl")
    configs = [settings(place, tmp_path / str(ewc), method="full", ewc=ewc, keep_data=rows) for ewc in (1e-9, 100.0)]
    runs = [tune(one, quiet=True) for one in configs]
    base = load_network(str(place / "base"), "generation")
    METHODS["full"].apply(base, configs[0])
    fisher = remember(base, METHODS["full"], configs[0], torch.float32).fisher
    begun = {name: weight.detach().clone() for name, weight in base.model.named_parameters()}
    free, held = (
        sum(
            float((fisher[name] * (weight.detach() - begun[name]).square()).sum())
            for name, weight in run.network.model.named_parameters()
        )
        for run in runs
    )
    assert held < 0.5 * free, (held, free)


@pytest.mark.parametrize("how", [{"kl_to_base": 1.0}, {"ewc": 10.0, "method": "full", "keep_data": "rows"}])
def test_a_stopped_run_ends_as_if_never_stopped(
    how: dict[str, Any], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept is gathered again, of the model as it was before the first step."""
    how = how | ({"keep_data": str(place / "rows.jsonl")} if "keep_data" in how else {}) | {"num_train_epochs": 1}
    whole = tune(settings(place, tmp_path / "whole", **how), quiet=True)
    accumulate, calls = step.accumulate, iter(range(1, 10**9))

    def broken(*given: Any) -> Any:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return accumulate(*given)

    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.train.loop.accumulate", broken)
        with pytest.raises(KeyboardInterrupt):
            tune(settings(place, tmp_path / "cut", **how), quiet=True)
    resumed = tune(settings(place, tmp_path / "cut", resume=True, **how), quiet=True)
    for (name, ours), (_, theirs) in zip(
        resumed.network.model.named_parameters(), whole.network.model.named_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_replayed_rows_are_among_those_trained(place: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text("".join(f'{{"prompt": "w{i + 30}", "completion": "w90"}}\n' for i in range(10)))
    plain = tune(settings(place, tmp_path / "plain", num_train_epochs=1), quiet=True)
    run = tune(settings(place, tmp_path / "run", num_train_epochs=1, replay=0.5, keep_data=str(more)), quiet=True)
    assert plain.manifest["data"]["fingerprints"] != run.manifest["data"]["fingerprints"]
    tokens = [each.outcome["tokens"] for each in (plain, run)]
    assert tokens[1] > tokens[0]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"replay": 0.5}, "nothing to draw from.*--keep-data"),
        ({"keep_data": "rows"}, "say how with --replay"),
        ({"ewc": 1.0}, "lora trains none"),
        ({"kl_to_base": 1.0, "method": "prompt"}, "changes that"),
    ],
)
def test_what_cannot_be_kept_is_refused(more: dict[str, Any], says: str, place: Path, tmp_path: Path) -> None:
    more = more | ({"keep_data": str(place / "rows.jsonl")} if "keep_data" in more else {})
    with pytest.raises(InputError, match=says):
        tune(settings(place, tmp_path / "run", **more), quiet=True)


def test_a_classifier_has_no_words_to_keep(tmp_path: Path) -> None:
    network = make_network("bert", "classification", tmp_path)
    with pytest.raises(InputError, match="keeps what a model writes"):
        remember(network, METHODS["full"], config("full", kl_to_base=1.0), torch.float32)
    with pytest.raises(InputError, match="no words of its own"):
        remember(network, METHODS["full"], config("full", ewc=1.0), torch.float32)


def test_each_step_has_its_turn(tmp_path: Path) -> None:
    network, rows = make_network("llama", "generation", tmp_path), test_packed.make_rows("generation")
    kept = Kept(rows, 1.0, ask(network, rows, torch.float32))
    counts = [len(divergence(network, kept, number)) for number in range(len(rows))]
    assert sum(counts) == ROWS_A_STEP * sum(count_judged(row) for row in rows)
    assert replace(kept, kl=0.0).kl == 0.0
