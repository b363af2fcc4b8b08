"""Multi-label and token classification, and pairs of texts: the packed step against plain transformers' padded one.

Theirs is the loss that transformers' own classes compute from labels. Same value, same gradients, in float32, and
faults that the comparison must catch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.parity.test_packed import gradients, twin
from tests.parity.tiny import DECODERS, ENCODERS, VOCABULARY, make_network
from tunesmith.data import share
from tunesmith.data.pack import pack
from tunesmith.errors import InputError
from tunesmith.models.load import Network
from tunesmith.models.prefix import cached_prefix
from tunesmith.records import PackedBatch, Task, TokenizedExample
from tunesmith.train.objective import judged_losses

LARGEST_GRADIENT_GAP = 1e-6
LENGTHS = (9, 3, 17, 5, 12, 12, 7)
WITHOUT_TAGS = {"gemma3"}  # transformers has no class for it
CASES: list[tuple[str, Task]] = [(kind, "multi-label") for kind in DECODERS | ENCODERS]
CASES += [(kind, "token-classification") for kind in DECODERS | ENCODERS if kind not in WITHOUT_TAGS]
NUM_CLASSES = 3


def make_rows(task: Task, pairs: bool = False) -> list[TokenizedExample]:
    rng = random.Random(1)
    rows = []
    for index, length in enumerate(LENGTHS):
        ids = tuple(rng.randrange(5, VOCABULARY) for _ in range(length))
        # Words of one to three tokens; the first and the last token are no words'.
        begins = [place for place in range(1, length - 1) if place == 1 or rng.random() < 0.6]
        trained = tuple(task == "token-classification" and place in begins for place in range(length))
        targets = {
            "token-classification": tuple(rng.randrange(NUM_CLASSES) for _ in begins),
            "multi-label": tuple(rng.random() < 0.4 for _ in range(NUM_CLASSES)),
            "classification": index % NUM_CLASSES,
            "regression": index / 4,
        }
        rows.append(TokenizedExample(ids, trained, targets[task], 0, index, length // 2 if pairs else 0))
    return rows


def padded_loss(model: PreTrainedModel, rows: Sequence[TokenizedExample], task: Task) -> torch.Tensor:
    """The textbook way: pad on the right, mask, -100 where nothing is judged, and transformers' own loss."""
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.full((len(rows), longest), model.config.pad_token_id)
    mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
    tags = torch.full_like(ids, -100)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        ids[index, :length] = torch.tensor(row.input_ids)
        mask[index, :length] = 1
        if row.second_at:
            types[index, row.second_at : length] = 1
        if task == "token-classification":
            tags[index, :length][torch.tensor(row.trained)] = torch.tensor(row.target)
    labels = tags if task == "token-classification" else torch.tensor([row.target for row in rows])
    kwargs = {"token_type_ids": types} if getattr(model.config, "type_vocab_size", 0) > 1 else {}
    labels = labels.float() if task == "multi-label" else labels
    loss: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels, **kwargs).loss
    return loss


def gap(network: Network, batch: PackedBatch, rows: list[TokenizedExample]) -> tuple[float, float]:
    """Largest absolute difference between the packed and the padded step: of the loss, and of any gradient."""
    plain = twin(network)
    ours, theirs = judged_losses(network, batch)[0].mean(), padded_loss(plain, rows, network.task)
    ours.backward()
    theirs.backward()
    others = gradients(plain)
    worst = max(float((grad - others[name]).abs().max()) for name, grad in gradients(network.model).items())
    return abs(ours.item() - theirs.item()), worst


@pytest.fixture
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Network:
    kind, task = request.param
    return make_network(kind, task, tmp_path, NUM_CLASSES)


@pytest.mark.parametrize("network", CASES, indirect=True, ids="-".join)
def test_loss_and_gradients_are_those_of_transformers(network: Network) -> None:
    rows = make_rows(network.task)
    loss, gradient = gap(network, pack(rows), rows)
    assert loss <= 1e-6
    assert gradient <= LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", [("llama", "token-classification")], indirect=True)
def test_a_shared_beginning_is_judged_for_each_row(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "LEAST_SAVED", 0)
    rows = make_rows(network.task)
    rows += [replace(rows[2], input_ids=(*rows[2].input_ids[:-1], 7), row=len(rows))]
    batch = pack(rows, share=True)
    assert max(batch.parents) >= 0
    assert len(batch.predict_from) == sum(row.num_trained for row in rows)
    assert max(gap(network, batch, rows)) <= LARGEST_GRADIENT_GAP


PAIRS: list[tuple[str, Task]] = [("bert", "classification"), ("bert", "regression"), ("bert", "multi-label")]
PAIRS += [("roberta", "regression"), ("distilbert", "classification"), ("llama", "classification")]


@pytest.mark.parametrize("network", PAIRS, indirect=True, ids="-".join)
def test_pairs_have_the_types_of_their_tokens(network: Network) -> None:
    rows = make_rows(network.task, pairs=True)
    assert max(gap(network, pack(rows), rows)) <= LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", [("bert", "classification")], indirect=True)
def test_frozen_blocks_tell_equal_ids_of_other_types_apart(network: Network) -> None:
    rows = make_rows(network.task, pairs=True)
    rows += [replace(row, second_at=1, row=row.row + len(rows)) for row in rows[:2]]
    for parameter in network.body.parameters():
        parameter.requires_grad_(False)
    expected = judged_losses(network, pack(rows))[0]
    with cached_prefix(network, rows, torch.float32, quiet=True):
        assert network.prefix is not None
        torch.testing.assert_close(judged_losses(network, pack(rows))[0], expected)


def forget_types(batch: PackedBatch) -> PackedBatch:
    """Fault: every token is of the first text."""
    return replace(batch, token_types=None)


def judge_the_next(batch: PackedBatch) -> PackedBatch:
    """Fault: a word is judged at the token after its first."""
    return replace(batch, predict_from=batch.predict_from + 1)


def swap_classes(batch: PackedBatch) -> PackedBatch:
    """Fault: the answers to two classes are exchanged."""
    return replace(batch, targets=batch.targets[:, [1, 0, 2]])


FAULTS = [
    (("bert", "classification"), forget_types),
    (("bert", "token-classification"), judge_the_next),
    (("gpt2", "token-classification"), judge_the_next),
    (("modernbert", "multi-label"), swap_classes),
]


@pytest.mark.parametrize(("network", "fault"), FAULTS, indirect=["network"])
def test_a_planted_fault_is_caught(network: Network, fault: Callable[[PackedBatch], PackedBatch]) -> None:
    rows = make_rows(network.task, pairs=fault is forget_types)
    assert max(gap(network, fault(pack(rows)), rows)) > 1000 * LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("kind", sorted(WITHOUT_TAGS))
def test_an_architecture_without_such_a_head_is_refused(kind: str, tmp_path: Path) -> None:
    from tests.parity.tiny import make_model, make_tokenizer
    from tunesmith.models.load import load_network

    make_model(kind, "generation").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="transformers has no model of this architecture for token-classification"):
        load_network(str(tmp_path), "token-classification", ("a", "b"))
