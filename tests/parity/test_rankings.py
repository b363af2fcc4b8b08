"""All answers to a prompt in one row, the prompt computed once, against the naive way: every pair by itself, every
answer with its own prompt, padded, in plain transformers. Same losses and gradients; and faults that must show."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from tests.parity.test_packed import gradients, twin
from tests.parity.tiny import DECODERS, ENCODERS, VOCABULARY, make_network
from tunesmith.data import share
from tunesmith.data.pack import pack
from tunesmith.models.load import Network
from tunesmith.models.prefix import cached_prefix
from tunesmith.records import PackedBatch, Task, TokenizedExample
from tunesmith.train.losses import Penalty
from tunesmith.train.objective import answer_logprobs, judged_losses
from tunesmith.train.preference import Preference
from tunesmith.train.validate import validate, watch

LARGEST_GRADIENT_GAP = 2e-6
RANKS = ((1, 2, 3, 4), (2, 1, 2), (1, 2))


@pytest.fixture(autouse=True)
def _share_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "LEAST_SAVED", 4)


def make_rows(has_prompt: bool = True) -> list[TokenizedExample]:
    rng = random.Random(5)
    rows = []
    for index, ranks in enumerate(RANKS):
        prompt = [rng.randrange(5, VOCABULARY) for _ in range(7 + 2 * index)] if has_prompt else []
        ids, borders = list(prompt), []
        for _ in ranks:
            borders.append(len(ids))
            ids += [rng.randrange(5, VOCABULARY) for _ in range(rng.randrange(2, 8))]
        trained = tuple(place >= max(1, len(prompt)) for place in range(len(ids)))
        rows.append(TokenizedExample(tuple(ids), trained, ranks, 0, index, answers=tuple(borders)))
    return rows


def answers_of(row: TokenizedExample) -> list[tuple[list[int], int]]:
    """Prompt and answer, and where the answer begins."""
    prompt = list(row.input_ids[: row.answers[0]])
    ends = [*row.answers[1:], len(row.input_ids)]
    return [(prompt + list(row.input_ids[a:b]), len(prompt)) for a, b in zip(row.answers, ends, strict=True)]


def padded(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), model.config.pad_token_id)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return model(input_ids=ids, attention_mask=mask).logits


def naive_ranking_loss(model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> torch.Tensor:
    losses = []
    for row in rows:
        pairs = []
        for a, b in combinations(answers_of(row), 2):
            ranks = [row.target[answers_of(row).index(one)] for one in (a, b)]
            if ranks[0] != ranks[1]:
                rewards = padded(model, [a[0], b[0]])[:, 0]
                gap = rewards[0] - rewards[1]
                pairs.append(-F.logsigmoid(gap if ranks[0] < ranks[1] else -gap))
        losses.append(torch.stack(pairs).mean())
    return torch.stack(losses).mean()


def naive_logprobs(model: PreTrainedModel, row: TokenizedExample) -> list[torch.Tensor]:
    found = []
    for ids, start in answers_of(row):
        logp_TV = padded(model, [ids])[0].log_softmax(-1)
        found.append(torch.stack([logp_TV[place - 1, ids[place]] for place in range(start, len(ids))]).sum())
    return found


@pytest.fixture
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Network:
    kind, task = request.param
    return make_network(kind, task, tmp_path)


def largest_gap(network: Network, plain: PreTrainedModel, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    ours.backward()
    theirs.backward()
    expected = gradients(plain)
    return max(float((one - expected[name]).abs().max()) for name, one in gradients(network.model).items())


RANKING: list[tuple[str, Task]] = [(kind, "ranking") for kind in DECODERS]
JUDGES: list[tuple[str, Task]] = [(kind, "ranking") for kind in ENCODERS]
WRITERS: list[tuple[str, Task]] = [(kind, "preference") for kind in DECODERS]


@pytest.mark.parametrize("network", RANKING, indirect=True, ids="-".join)
def test_a_ranking_is_all_of_its_pairs(network: Network) -> None:
    rows = make_rows()
    batch = pack(rows, share=True)
    assert len(batch.input_ids) == sum(len(row.input_ids) for row in rows), "every prompt stands there once"
    plain = twin(network)
    ours = judged_losses(network, batch)[0].mean()
    assert largest_gap(network, plain, ours, naive_ranking_loss(plain, rows)) <= LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", JUDGES, indirect=True, ids="-".join)
def test_an_encoder_reads_prompt_and_answer_whole(network: Network) -> None:
    rows = make_rows(has_prompt=False)
    plain = twin(network)
    ours = judged_losses(network, pack(rows))[0].mean()
    assert largest_gap(network, plain, ours, naive_ranking_loss(plain, rows)) <= LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", WRITERS, indirect=True, ids="-".join)
def test_log_probabilities_of_answers(network: Network) -> None:
    rows = [replace(row, target=(1.0, 0.0, 0.0)) for row in make_rows()[2:]]
    plain = twin(network)
    found, lengths = answer_logprobs(network, pack(rows, share=True))
    expected = torch.stack(naive_logprobs(plain, rows[0]))
    assert torch.allclose(found[0], expected, atol=1e-4)
    assert lengths.tolist() == [[len(ids) - start for ids, start in answers_of(rows[0])]]
    ours = judged_losses(network, pack(rows, share=True), Preference("dpo", 0.5))[0].mean()
    theirs = -F.logsigmoid(0.5 * (expected[0] - expected[1]))
    assert largest_gap(network, plain, ours, theirs) <= LARGEST_GRADIENT_GAP


def break_order(batch: PackedBatch) -> PackedBatch:
    return replace(batch, targets=batch.targets.flip(0))


def break_owners(batch: PackedBatch) -> PackedBatch:
    assert batch.answers is not None
    return replace(batch, answers=replace(batch.answers, owners=batch.answers.owners.flip(0)))


def break_parents(batch: PackedBatch) -> PackedBatch:
    """Answers that do not see their prompt."""
    return replace(batch, parents=(-1,) * len(batch.parents))


@pytest.mark.parametrize("network", [("llama", "ranking")], indirect=True)
def test_a_wrong_order_shows(network: Network) -> None:
    rows = [row for row in make_rows() if len(row.answers) == 2] * 2
    rows[1] = replace(rows[0], target=(2, 1), row=1)
    rows[0] = replace(make_rows()[2], input_ids=tuple(reversed(make_rows()[2].input_ids)))
    right = judged_losses(network, pack(rows, share=True))[0].mean().item()
    wrong = judged_losses(network, break_order(pack(rows, share=True)))[0].mean().item()
    assert abs(right - wrong) > 1e-3


@pytest.mark.parametrize("network", [("llama", "preference")], indirect=True)
@pytest.mark.parametrize("fault", [break_owners])
def test_a_token_of_the_wrong_answer_shows(network: Network, fault: object) -> None:
    rows = make_rows()[2:]
    right, _ = answer_logprobs(network, pack(rows, share=True))
    wrong, _ = answer_logprobs(network, fault(pack(rows, share=True)))  # type: ignore[operator]
    assert (right - wrong).abs().max() > 1e-2


@pytest.mark.parametrize("network", [("llama", "ranking"), ("gpt2", "ranking")], indirect=True, ids="-".join)
def test_frozen_blocks_are_computed_once_for_each_answer(network: Network) -> None:
    rows = make_rows()
    expected = judged_losses(network, pack(rows, share=True))[0]
    network.model.requires_grad_(False)
    for parameter in network.model.score.parameters():
        parameter.requires_grad_(True)
    with cached_prefix(network, rows, torch.float32, quiet=True):
        assert network.prefix is not None
        found = judged_losses(network, pack(rows, share=True))[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", [("llama", "ranking")], indirect=True)
def test_validation_keeps_answers_in_order(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.data.pack.TOKENS_PER_PASS", 20)
    rows = make_rows()
    outputs = validate(network, rows, torch.float32)
    plain = twin(network)
    with torch.no_grad():
        expected = [padded(plain, [ids])[0, 0].item() for row in rows for ids, _ in answers_of(row)]
    assert outputs.logits[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    seen = watch("ranking", outputs, rows)
    right = num = 0
    place = 0
    for row in rows:
        rewards = expected[place : place + len(row.answers)]
        place += len(row.answers)
        for a, b in combinations(range(len(rewards)), 2):
            if row.target[a] != row.target[b]:
                num += 1
                right += (rewards[a] > rewards[b]) == (row.target[a] < row.target[b])
    assert seen["validation_accuracy"] == pytest.approx(right / num)


@pytest.mark.parametrize("network", [("llama", "ranking")], indirect=True)
def test_passes_over_parts_have_the_gradient_of_the_whole(network: Network) -> None:
    rows = make_rows()
    penalty = Penalty(tied=1.0, centre=0.01)
    judged_losses(network, pack(rows, share=True), penalty)[0].mean().backward()
    whole = gradients(network.model)
    whole = {name: one.clone() for name, one in whole.items()}
    network.model.zero_grad()
    for row in rows:
        (judged_losses(network, pack([row], share=True), penalty)[0].sum() / len(rows)).backward()
    for name, one in gradients(network.model).items():
        assert (one - whole[name]).abs().max() <= LARGEST_GRADIENT_GAP
