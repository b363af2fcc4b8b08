"""Rows that share a beginning, computed once, against plain transformers' padded rows: same loss, same gradients.

And injected faults that this comparison must catch: rows that see each other, positions that begin anew behind the
beginning, rows that do not see their beginning.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch

from tests.models.test_prefix import applied
from tests.parity.test_packed import LARGEST_GRADIENT_GAP, gap, network, packed_loss, twin  # noqa: F401
from tests.parity.tiny import DECODERS, VOCABULARY
from tunesmith.data import share
from tunesmith.data.pack import pack, token_batches
from tunesmith.data.share import Family, find_families
from tunesmith.models import segments
from tunesmith.models.load import Network
from tunesmith.models.packed import packed_hidden
from tunesmith.models.prefix import cached_prefix
from tunesmith.records import PackedBatch, Task, TokenizedExample
from tunesmith.train.validate import validate

# Two families of three and two rows, and two rows alone.
BEGINNINGS = ((0, 1, 2), (3, 4), (5,), (6,))
CASES = [(kind, task) for kind in DECODERS for task in ("generation", "classification")]


@pytest.fixture(autouse=True)
def _share_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "LEAST_SAVED", 4)


def make_rows(task: Task) -> list[TokenizedExample]:
    """Some trained places lie in the beginning, some in what follows, and not the same ones in each row."""
    rng = random.Random(3)
    rows = []
    for number, members in enumerate(BEGINNINGS):
        beginning = [rng.randrange(5, VOCABULARY) for _ in range(11 - 2 * number)]
        for index in members:
            ids = (*beginning, *(rng.randrange(5, VOCABULARY) for _ in range(2 + 3 * (index % 3))))
            trained = tuple(task == "generation" and place % (2 + index % 2) == 1 for place in range(len(ids)))
            rows.append(TokenizedExample(ids, trained, None if task == "generation" else index % 3, 0, index))
    return rows


@pytest.mark.parametrize("network", CASES, indirect=True, ids="-".join)
def test_gradients_equal_those_of_padded_rows(network: Network) -> None:  # noqa: F811
    rows = make_rows(network.task)
    batch = pack(rows, share=True)
    assert len(batch.input_ids) == sum(len(row.input_ids) for row in rows) - 2 * 11 - 9
    assert batch.num_tokens == sum(len(row.input_ids) for row in rows)
    assert gap(network, twin(network), batch, rows) <= LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", [("llama", "generation"), ("gemma3", "generation")], indirect=True, ids="-".join)
def test_long_rows_and_unlike_ones_give_the_same(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(segments, "LONGEST_FOR_MATMUL", 4)
    rows = make_rows(network.task)
    assert gap(network, twin(network), pack(rows, share=True), rows) <= LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", [("llama", "generation")], indirect=True)
def test_virtual_tokens_stand_before_the_beginning_once(network: Network) -> None:  # noqa: F811
    rows = make_rows("generation")
    table = torch.nn.Parameter(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))
    network.prompt, network.num_virtual = lambda: table, 3
    gradients = []
    for sharing in (False, True):
        table.grad = None
        packed_loss(network, pack(rows, 3, sharing)).backward()
        gradients.append(table.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)
    assert gradients[0].abs().max() > 0.01


def test_frozen_blocks_answer_for_a_beginning_too(tmp_path: Path) -> None:
    network, rows = applied("llama", "generation", "last-layers", tmp_path), make_rows("generation")  # noqa: F811
    loss = packed_loss(network, pack(rows, share=True)).item()
    with cached_prefix(network, rows, torch.float32, quiet=True):
        torch.nn.init.zeros_(network.model.get_input_embeddings().weight)  # asked no more
        again = packed_loss(network, pack(rows, share=True)).item()
    assert again == pytest.approx(loss, abs=1e-6)


def merge_rows(batch: PackedBatch) -> PackedBatch:
    """Fault: what follows a beginning is one row."""
    own = [[n for n, p in zip(batch.lengths, batch.parents, strict=True) if p == parent] for parent in (2, 6)]
    lengths, parents = list(batch.lengths), list(batch.parents)
    assert parents == [-1, -1, -1, 2, 2, 2, -1, 6, 6]
    return replace(
        batch, lengths=(*lengths[:3], sum(own[0]), lengths[6], sum(own[1])), parents=(*parents[:3], 2, -1, 4)
    )


def begin_anew(batch: PackedBatch) -> PackedBatch:
    """Fault: positions of what follows count from 0."""
    starts = torch.cumsum(torch.tensor(batch.lengths), 0) - torch.tensor(batch.lengths)
    places = torch.repeat_interleave(starts, torch.tensor(batch.lengths))
    return replace(batch, position_ids=torch.arange(len(places)) - places)


def forget(batch: PackedBatch) -> PackedBatch:
    """Fault: what follows does not see the beginning."""
    return replace(batch, parents=(-1,) * len(batch.lengths))


@pytest.mark.parametrize("fault", [merge_rows, begin_anew, forget])
@pytest.mark.parametrize("network", [("gpt2", "generation")], indirect=True)
def test_an_injected_fault_is_caught(network: Network, fault) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    rows = make_rows("generation")
    assert gap(network, twin(network), fault(pack(rows, share=True)), rows) > 1000 * LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", [("llama", "generation")], indirect=True)
def test_validation_knows_its_rows(network: Network) -> None:  # noqa: F811
    """Sharing lays rows down in another order; each must still have its own loss."""
    rows = make_rows("generation")
    with torch.no_grad():
        alone = [packed_loss(network, pack([row])).item() * row.num_trained for row in rows]
    found = validate(network, [replace(row, row=100 - row.row) for row in rows], torch.float32)
    assert found.losses == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("network", [("bert", "classification")], indirect=True)
def test_an_encoder_refuses(network: Network) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="only under causal attention"):
        packed_hidden(network, pack(make_rows("classification"), share=True))


def count_left(rows: Sequence[tuple[int, ...]], families: Sequence[Family]) -> int:
    left = sum(len(row) for row in rows)
    for family in families:
        assert len({rows[index][: family.num_shared] for index in family.rows}) == 1
        assert all(len(rows[index]) > family.num_shared for index in family.rows)
        left -= family.num_shared * (len(family.rows) - 1) - (share.LEAST_SAVED if family.num_shared else 0)
    return left


def test_no_division_leaves_fewer_tokens() -> None:
    """Beside all divisions of small sets, found by trying."""

    def best(rows: list[tuple[int, ...]], indices: tuple[int, ...]) -> int:
        if not indices:
            return 0
        first, rest = indices[0], indices[1:]
        found = len(rows[first]) + best(rows, rest)
        for size in range(1, len(rest) + 1):
            for others in combinations(rest, size):
                family = [rows[index] for index in (first, *others)]
                limit = min(len(row) for row in family) - 1
                same = next((n for n in range(limit, 0, -1) if len({row[:n] for row in family}) == 1), 0)
                left = tuple(index for index in rest if index not in others)
                cost = sum(map(len, family)) - same * size + share.LEAST_SAVED
                found = min(found, cost + best(rows, left))
        return found

    rng = random.Random(0)
    for _ in range(60):
        rows = [tuple(rng.randrange(2) for _ in range(rng.randrange(1, 12))) for _ in range(6)]
        families = find_families(rows)
        assert sorted(index for family in families for index in family.rows) == list(range(6))
        assert count_left(rows, families) == best(rows, tuple(range(6)))


def test_batches_hold_what_fits_when_beginnings_count_once() -> None:
    rng = random.Random(0)
    for _ in range(40):
        heads = [tuple(rng.randrange(9) for _ in range(rng.randrange(30))) for _ in range(3)]
        ids = [(*rng.choice(heads), *(rng.randrange(9) for _ in range(rng.randrange(1, 9)))) for _ in range(20)]
        rows = [TokenizedExample(row, (False,) * len(row), None, 0, index) for index, row in enumerate(ids)]
        batches = token_batches(rows, 60, share=True)
        assert sorted(index for batch in batches for index in batch) == list(range(20))
        for batch in batches:
            laid = len(pack([rows[index] for index in batch], share=True).input_ids)
            # A division of the batch alone may take a few tokens more, each family counting LEAST_SAVED.
            assert laid <= 60 + share.LEAST_SAVED * len(batch) or len(batch) == 1
        assert len(batches) <= len(token_batches(rows, 60))


def test_examples_before_every_question_are_read_once_a_batch() -> None:
    shown = tuple(range(5, 95)) * 10
    rows = [TokenizedExample((*shown, 5 + at, 7, 8), (False,) * 903, None, 0, at) for at in range(50)]
    (batch,) = token_batches(rows, 2048, share=True)
    assert len(pack([rows[index] for index in batch], share=True).input_ids) == 900 + 50 * 3
    assert len(token_batches(rows, 2048)) == 25
