"""The packed step against plain transformers' padded step: same loss, same gradients, in float32.

And three injected faults that this comparison must catch: rows that see each other, a label shifted
by one, positions that run on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from tests.parity.tiny import DECODERS, ENCODERS, VOCABULARY, kept_for_backward, make_model, make_network
from tunesmith.data.pack import pack
from tunesmith.models import embedding, packed, scores, segments
from tunesmith.models.attention import PACKED
from tunesmith.models.heads import find_language_head
from tunesmith.models.load import Network
from tunesmith.models.segments import plan_segments
from tunesmith.records import PackedBatch, Task, TokenizedExample
from tunesmith.train import losses
from tunesmith.train.objective import judged_losses

LARGEST_GRADIENT_GAP = 2e-6
LENGTHS = (9, 3, 17, 5, 12, 12, 7)
CASES = [(kind, task) for kind in DECODERS for task in ("generation", "classification")] + [
    (kind, task) for kind in ENCODERS for task in ("classification", "regression")
]


def make_rows(task: Task) -> list[TokenizedExample]:
    rng = random.Random(1)
    rows = []
    for index, length in enumerate(LENGTHS):
        ids = tuple(rng.randrange(5, VOCABULARY) for _ in range(length))
        trained = tuple(task == "generation" and place >= length // 2 for place in range(length))
        target = {"generation": None, "classification": index % 3, "regression": index / 4}[task]
        rows.append(TokenizedExample(ids, trained, target, 0, index))
    return rows


def padded_loss(model: PreTrainedModel, rows: Sequence[TokenizedExample], task: Task) -> torch.Tensor:
    """The textbook way: pad on the right, mask, let transformers do the rest."""
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.full((len(rows), longest), model.config.pad_token_id)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        ids[index, :length] = torch.tensor(row.input_ids)
        mask[index, :length] = 1
        labels[index, :length] = torch.tensor(
            [token if trained else -100 for token, trained in zip(row.input_ids, row.trained, strict=True)]
        )
    logits = model(input_ids=ids, attention_mask=mask).logits
    if task == "generation":
        logits = logits[:, -longest:]  # without those of virtual tokens
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    targets = torch.tensor([row.target for row in rows])
    return F.mse_loss(logits[:, 0], targets) if task == "regression" else F.cross_entropy(logits, targets)


def packed_loss(network: Network, batch: PackedBatch) -> torch.Tensor:
    return judged_losses(network, batch)[0].mean()


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A weight without a gradient counts as one with gradient zero."""
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in model.named_parameters()
    }


def gap(network: Network, plain: PreTrainedModel, batch: PackedBatch, rows: list[TokenizedExample]) -> float:
    """Largest absolute difference of any gradient between the packed and the padded step."""
    packed_loss(network, batch).backward()
    padded_loss(plain, rows, network.task).backward()
    theirs = gradients(plain)
    return max(float((ours - theirs[name]).abs().max()) for name, ours in gradients(network.model).items())


@pytest.fixture
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Network:
    kind, task = request.param
    return make_network(kind, task, tmp_path)


def twin(network: Network) -> PreTrainedModel:
    """The same weights in a plain model with eager attention."""
    kind = {"gemma3_text": "gemma3"}.get(network.model.config.model_type, network.model.config.model_type)
    model = make_model(kind, network.task)
    model.load_state_dict(network.model.state_dict())
    return model


@pytest.mark.parametrize("network", CASES, indirect=True, ids="-".join)
def test_packed_gradients_equal_padded_ones(network: Network) -> None:
    rows = make_rows(network.task)
    plain = twin(network)
    theirs = padded_loss(plain, rows, network.task)
    assert packed_loss(network, pack(rows)).item() == pytest.approx(theirs.item(), abs=1e-6)
    assert gap(network, plain, pack(rows), rows) <= LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", [("llama", "generation"), ("bert", "classification")], indirect=True)
def test_long_rows_give_the_same(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LONGEST_FOR_MATMUL", 6)
    rows = make_rows(network.task)
    assert gap(network, twin(network), pack(rows), rows) <= LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", [("gemma3", "generation"), ("modernbert", "regression")], indirect=True)
def test_long_rows_obey_the_window(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LONGEST_FOR_MATMUL", 6)
    rows = make_rows(network.task)
    assert gap(network, twin(network), pack(rows), rows) <= LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("network", [("qwen2", "generation"), ("roberta", "classification")], indirect=True)
def test_grouping_changes_nothing(network: Network, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows in one padded group, or each length in a group of its own."""
    monkeypatch.setattr(segments, "SHORTEST_SHARE", share)
    monkeypatch.setattr(segments, "SMALL_GROUP", 0)
    rows = make_rows(network.task)
    groups = plan_segments(sorted(LENGTHS, reverse=True), [-1] * len(LENGTHS), torch.device("cpu")).parts
    assert len(groups) == (1 if share == 0.0 else len(set(LENGTHS)))
    assert gap(network, twin(network), pack(rows), rows) <= LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", [("gemma2", "generation"), ("gpt2", "generation")], indirect=True)
@pytest.mark.parametrize("frozen", [False, True])
def test_chunks_of_the_vocabulary_change_nothing(
    network: Network, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits two rows at a time, with the gradient made in the forward or in the backward pass."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 2 * VOCABULARY)
    rows, plain = make_rows("generation"), twin(network)
    assert find_language_head(network.model) is not None
    if frozen:
        for model in (network.model, plain):
            model.get_input_embeddings().weight.requires_grad_(False)
    assert gap(network, plain, pack(rows), rows) <= LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", [("llama", "generation")], indirect=True)
def test_a_head_of_its_own_kind_computes_for_itself(network: Network) -> None:
    """A scaled head is not taken for a plain product: the model's own forward makes the logits."""
    network.model.config.logit_scale = 0.5
    assert find_language_head(network.model) is None
    rows = make_rows("generation")
    assert gap(network, twin(network), pack(rows), rows) <= LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", [("bert", "classification"), ("roberta", "regression")], indirect=True)
def test_gradients_by_row_change_nothing(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice in a row, so that a gradient that was not cleared would show."""
    monkeypatch.setattr(embedding, "SMALLEST_TABLE", 0)
    embedding.use_row_gradients(network.model)
    assert any(isinstance(module, embedding.RowGradientEmbedding) for module in network.model.modules())
    optimizer = torch.optim.SGD(network.model.parameters(), lr=0.0)
    rows, plain = make_rows(network.task), twin(network)
    assert gap(network, plain, pack(rows), rows) <= LARGEST_GRADIENT_GAP
    embedding.clear_gradients(network.model, optimizer)
    plain.zero_grad()
    assert gap(network, plain, pack(rows[:2]), rows[:2]) <= LARGEST_GRADIENT_GAP


def kept_bytes(network: Network, batch: PackedBatch) -> int:
    return sum(kept_for_backward(lambda: packed_loss(network, batch)).values())


@pytest.mark.parametrize("network", [("llama", "generation"), ("bert", "classification")], indirect=True)
def test_attention_weights_are_not_kept(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads x places x places, the largest tensor of long rows, is made again on the way back."""
    batch = pack(make_rows(network.task))
    ours = kept_bytes(network, batch)

    class Plain:
        @staticmethod
        def apply(q, k, v, mask, rule):  # type: ignore[no-untyped-def]
            return torch.bmm(scores._weights(q, k, mask, rule), v)

    monkeypatch.setattr(scores, "_Attend", Plain)
    layers, heads, number = 3, 4, 4  # bytes of a float
    assert kept_bytes(network, batch) - ours >= layers * heads * number * sum(n * n for n in LENGTHS)


def merge_rows(batch: PackedBatch) -> PackedBatch:
    """Fault: all rows as one segment, so each sees the ones before it."""
    return replace(batch, lengths=(sum(batch.lengths),), parents=(-1,))


def shift_labels(batch: PackedBatch) -> PackedBatch:
    """Fault: logits read one place too late."""
    return replace(batch, predict_from=batch.predict_from + 1)


def run_on(batch: PackedBatch) -> PackedBatch:
    """Fault: positions count through the pack."""
    return replace(batch, position_ids=torch.arange(len(batch.position_ids)))


@pytest.mark.parametrize("fault", [merge_rows, shift_labels, run_on])
@pytest.mark.parametrize("network", [("gpt2", "generation")], indirect=True)
def test_an_injected_fault_is_caught(network: Network, fault) -> None:  # type: ignore[no-untyped-def]
    rows = make_rows("generation")[:3]  # so few that positions stay within the model's reach
    assert gap(network, twin(network), fault(pack(rows)), rows) > 1000 * LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", [("bert", "classification")], indirect=True)
def test_a_leak_between_rows_of_an_encoder_is_caught(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows("classification")
    batch = pack(rows)
    whole = plan_segments([sum(batch.lengths)], [-1], torch.device("cpu"))
    monkeypatch.setattr(packed, "plan_segments", lambda lengths, parents, device: whole)
    assert gap(network, twin(network), batch, rows) > 1000 * LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", [("llama", "generation")], indirect=True)
def test_splitting_a_batch_changes_nothing(network: Network) -> None:
    """8 rows in one pass, or one by one: the same gradient (accumulation is by judged tokens)."""
    from tunesmith.train.step import Plan, backward

    rows = make_rows("generation")
    whole = pack(rows)
    backward(network, whole, len(whole.targets), Plan(1e-3))
    at_once = {name: grad.clone() for name, grad in gradients(network.model).items()}
    network.model.zero_grad()
    for row in rows:
        backward(network, pack([row]), len(whole.targets), Plan(1e-3))
    for name, grad in gradients(network.model).items():
        torch.testing.assert_close(grad, at_once[name], atol=1e-6, rtol=0)


def test_packed_attention_refuses_a_plain_call(tmp_path: Path) -> None:
    network = make_network("llama", "generation", tmp_path)
    assert network.model.config._attn_implementation == PACKED
    with pytest.raises(ValueError, match="unpacked"):
        network.model(input_ids=torch.tensor([[5, 6, 7]]))
