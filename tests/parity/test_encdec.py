"""Encoder-decoders: the packed step against plain transformers' padded step, and answers against its `generate`.

And faults that the comparison must catch: a target that reads its neighbour's source, sources that see each other, a
label shifted by one, T5's distances taken from the pack instead of from the row.
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

from tests.parity.test_packed import gradients
from tests.parity.tiny import ENCODER_DECODERS, VOCABULARY, kept_for_backward, make_model, make_network
from tunesmith.data.ids import Encoder, Ids, prompt_ids
from tunesmith.data.pack import pack
from tunesmith.errors import InputError
from tunesmith.models import attention, packed, segments, seq2seq
from tunesmith.models.choose import Decoding
from tunesmith.models.generate import sample
from tunesmith.models.load import Network, load_network
from tunesmith.records import Conversation, Message, Origin, PackedBatch, PackedSource, TokenizedExample
from tunesmith.train import losses
from tunesmith.train.losses import Penalty
from tunesmith.train.objective import judged_losses

# Relative to the largest gradient of the model.
LARGEST_GAP = 3e-6
SIZES = ((9, 4), (3, 7), (17, 2), (5, 11), (12, 12), (12, 5), (7, 1))


def make_rows(network: Network) -> list[TokenizedExample]:
    rng = random.Random(1)
    rows = []
    for index, (source, target) in enumerate(SIZES):
        ids = tuple(rng.randrange(5, VOCABULARY) for _ in range(source + target))
        trained = (False,) * source + (True,) * target
        rows.append(TokenizedExample(ids, trained, None, 0, index, start=network.model.config.decoder_start_token_id))
    return rows


def split(row: TokenizedExample) -> tuple[tuple[int, ...], tuple[int, ...]]:
    border = len(row.input_ids) - row.num_trained
    return row.input_ids[:border], row.input_ids[border:]


def padded(rows: Sequence[Sequence[int]], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def padded_loss(
    model: PreTrainedModel, rows: Sequence[TokenizedExample], penalty: Penalty | None = None
) -> torch.Tensor:
    """The textbook way: pad both sides on the right, mask, shift the targets, let transformers do the rest."""
    pad_id = model.config.pad_token_id
    sources, targets = zip(*map(split, rows), strict=True)
    ids, mask = padded(sources, pad_id)
    labels, _ = padded(targets, -100)
    shifted, seen = padded([(model.config.decoder_start_token_id, *target[:-1]) for target in targets], pad_id)
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": shifted, "decoder_attention_mask": seen}
    logits = model(**inputs).logits.flatten(0, 1)
    smoothing = 0.0 if penalty is None else penalty.label_smoothing
    return F.cross_entropy(logits, labels.flatten(), ignore_index=-100, label_smoothing=smoothing)


def packed_loss(network: Network, batch: PackedBatch) -> torch.Tensor:
    return judged_losses(network, batch)[0].mean()


def gap(network: Network, plain: PreTrainedModel, batch: PackedBatch, rows: Sequence[TokenizedExample]) -> float:
    """Largest difference of any gradient between the packed and the padded step, by the largest gradient."""
    network.model.zero_grad()
    plain.zero_grad()
    packed_loss(network, batch).backward()
    padded_loss(plain, rows).backward()
    ours, theirs = gradients(network.model), gradients(plain)
    assert ours.keys() == theirs.keys()
    largest = max(float(grad.abs().max()) for grad in theirs.values())
    return max(float((ours[name] - grad).abs().max()) for name, grad in theirs.items()) / largest


def twin(network: Network, kind: str) -> PreTrainedModel:
    """The same weights in a plain model with eager attention."""
    model = make_model(kind, "generation")
    model.load_state_dict(network.model.state_dict())
    return model


@pytest.fixture
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Network:
    made = make_network(request.param, "generation", tmp_path)
    # Norms and biases away from where they begin, where a fault in them would not show.
    draw = torch.Generator().manual_seed(3)
    for tensor in (*made.model.parameters(), *made.model.buffers()):
        if tensor.dtype.is_floating_point and (tensor.dim() == 1 or tensor.shape[0] == 1):
            tensor.data.add_(torch.randn(tensor.shape, generator=draw), alpha=0.3)
    return made


def kind_of(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["network"])


every = pytest.mark.parametrize("network", ENCODER_DECODERS, indirect=True)
some = pytest.mark.parametrize("network", ["t5", "bart", "bert2bert"], indirect=True)


@every
def test_packed_gradients_equal_padded_ones(network: Network, request: pytest.FixtureRequest) -> None:
    rows, plain = make_rows(network), twin(network, kind_of(request))
    theirs = padded_loss(plain, rows)
    assert packed_loss(network, pack(rows)).item() == pytest.approx(theirs.item(), rel=1e-6)
    assert gap(network, plain, pack(rows), rows) <= LARGEST_GAP


@some
def test_long_rows_give_the_same(
    network: Network, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "LONGEST_FOR_MATMUL", 6)
    rows = make_rows(network)
    assert gap(network, twin(network, kind_of(request)), pack(rows), rows) <= LARGEST_GAP


@some
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_grouping_changes_nothing(
    network: Network, share: float, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows in one padded group, or each pair of lengths in a group of its own."""
    monkeypatch.setattr(segments, "SHORTEST_SHARE", share)
    monkeypatch.setattr(segments, "SMALL_GROUP", 0)
    rows = make_rows(network)
    assert gap(network, twin(network, kind_of(request)), pack(rows), rows) <= LARGEST_GAP


@every
@pytest.mark.parametrize("frozen", [False, True])
def test_chunks_of_the_vocabulary_change_nothing(
    network: Network, frozen: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits two rows at a time, the gradient of a frozen head made in the forward pass."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 2 * VOCABULARY)
    rows, plain = make_rows(network), twin(network, kind_of(request))
    if frozen:
        for model in (network.model, plain):
            model.get_output_embeddings().requires_grad_(False)
    assert gap(network, plain, pack(rows), rows) <= LARGEST_GAP


@every
def test_a_head_that_is_wrapped_gives_the_same_logits(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the output layer is no plain product, it computes for itself."""
    batch = pack(make_rows(network))
    ours = judged_losses(network, batch)[0]
    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.train.objective.find_language_head", lambda _: None)
        torch.testing.assert_close(judged_losses(network, batch)[0], ours, atol=1e-5, rtol=1e-5)


@some
def test_smoothed_labels_are_transformers_own(network: Network, request: pytest.FixtureRequest) -> None:
    rows, penalty = make_rows(network), Penalty(label_smoothing=0.1)
    theirs = padded_loss(twin(network, kind_of(request)), rows, penalty)
    assert judged_losses(network, pack(rows), penalty)[0].mean().item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("network", ["t5"], indirect=True)
def test_no_bias_as_large_as_the_pack_is_kept(network: Network) -> None:
    """Distances within a row are few; within a pack they are the square of all its tokens."""
    many = [row for row in make_rows(network) for _ in range(8)]
    heads, number = 4, 4
    largest = max(kept_for_backward(lambda: packed_loss(network, pack(many))).values())
    assert largest < heads * number * sum(source for source, _ in SIZES) ** 2 * 8**2 / 10


# Faults


def read_the_neighbours_source(batch: PackedBatch) -> PackedBatch:
    """The sources stand in another order than the targets: lengths alike, contents of the neighbour."""
    assert batch.source is not None
    ids, places = (x.split(batch.source.lengths) for x in (batch.source.input_ids, batch.source.position_ids))
    order = [*range(1, len(ids)), 0]
    moved = [torch.cat([part[index] for index in order]) for part in (ids, places)]
    return replace(batch, source=PackedSource(*moved, tuple(batch.source.lengths[index] for index in order)))


def shift_labels(batch: PackedBatch) -> PackedBatch:
    return replace(batch, targets=batch.targets.roll(1))


@pytest.mark.parametrize("fault", [read_the_neighbours_source, shift_labels])
@some
def test_a_fault_in_the_batch_is_caught(network: Network, fault, request: pytest.FixtureRequest) -> None:  # type: ignore[no-untyped-def]
    rows = make_rows(network)
    assert gap(network, twin(network, kind_of(request)), fault(pack(rows)), rows) > 1000 * LARGEST_GAP


@some
def test_cross_attention_to_the_next_row_is_caught(
    network: Network, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [replace(row, row=index) for index, row in enumerate([make_rows(network)[4]] * 2)]
    rows[1] = replace(rows[1], input_ids=tuple(reversed(rows[1].input_ids)))
    attend = attention._attend_crossing

    def attend_next(q, k, v, crossing, rule):  # type: ignore[no-untyped-def]
        half = len(k) // 2
        return attend(q, k.roll(half, 0), v.roll(half, 0), crossing, rule)

    plain = twin(network, kind_of(request))
    assert gap(network, plain, pack(rows), rows) <= LARGEST_GAP
    monkeypatch.setattr(attention, "_attend_crossing", attend_next)
    assert gap(network, plain, pack(rows), rows) > 1000 * LARGEST_GAP


@some
def test_sources_that_see_each_other_are_caught(
    network: Network, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, plain = make_rows(network), twin(network, kind_of(request))
    right = packed.plan_segments
    monkeypatch.setattr(packed, "plan_segments", lambda lengths, parents, device: right([sum(lengths)], [-1], device))
    assert gap(network, plain, pack(rows), rows) > 1000 * LARGEST_GAP


@pytest.mark.parametrize("network", ["t5", "mt5"], indirect=True)
def test_distances_of_another_row_are_caught(
    network: Network, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, plain = make_rows(network), twin(network, kind_of(request))
    right = seq2seq._bias_of_longest
    monkeypatch.setattr(seq2seq, "_bias_of_longest", lambda *of: right(*of).roll(1, -1))
    assert gap(network, plain, pack(rows), rows) > 1000 * LARGEST_GAP


# Answers


@every
def test_answers_are_those_of_transformers(network: Network, request: pytest.FixtureRequest) -> None:
    """Greedy, sources of several lengths together; transformers answers each alone, and without a cache, since the one
    it makes fails where the decoder has more layers than the encoder."""
    plain = twin(network, kind_of(request))
    sources = [split(row)[0] for row in make_rows(network)]
    answers = sample(network, sources, Decoding(max_new_tokens=9), torch.float32)
    for source, (answer,) in zip(sources, answers, strict=True):
        options = {"max_new_tokens": 9, "do_sample": False, "num_beams": 1, "use_cache": False}
        theirs = plain.generate(torch.tensor([source]), **options)[0].tolist()
        assert theirs[0] == plain.config.decoder_start_token_id
        assert list(answer.ids) == theirs[1:]


@every
def test_logprobs_of_an_answer_are_those_of_training(network: Network) -> None:
    sources = [split(row)[0] for row in make_rows(network)]
    answers = sample(network, sources, Decoding(max_new_tokens=6, temperature=1.0, seed=4), torch.float32)
    start = network.model.config.decoder_start_token_id
    for source, (answer,) in zip(sources, answers, strict=True):
        trained = (False,) * len(source) + (True,) * len(answer.ids)
        row = TokenizedExample((*source, *answer.ids), trained, None, 0, 0, start=start)
        torch.testing.assert_close(
            judged_losses(network, pack([row]))[0].detach(), -torch.tensor(answer.logprobs), atol=1e-4, rtol=1e-4
        )


@every
def test_a_prompt_has_the_ids_of_training(network: Network) -> None:
    turns = tuple(Message(role, text) for role, text in [("system", "w5 w6"), ("user", "w7"), ("assistant", "w9 w10")])
    tokenizer = network.tokenizer
    encoder = Encoder(tokenizer, 64, "refuse", {})
    (made,) = encoder.encode([Conversation(turns, Origin("here", 1))])
    assert isinstance(made, Ids)
    prompt = prompt_ids(turns[:2], tokenizer)
    assert made.ids.tolist()[: len(prompt)] == list(prompt)
    assert made.trained.tolist() == [False] * len(prompt) + [True] * (len(made.ids) - len(prompt))
    assert list(prompt) == tokenizer("w5 w6\n\nw7")["input_ids"]
    begun = tokenizer("w9 w10")["input_ids"]
    is_twice = begun[0] == network.model.config.decoder_start_token_id
    assert made.ids.tolist()[len(prompt) :] == begun[is_twice:]


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    make_model("bart", "generation").save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(text.replace('"bart"', '"mbart"'), encoding="utf-8")
    with pytest.raises(InputError, match="kind unknown here"):
        load_network(str(tmp_path), "generation")


@pytest.mark.parametrize("network", ["t5"], indirect=True)
def test_classes_are_refused(network: Network) -> None:
    with pytest.raises(InputError, match="writes texts"):
        load_network(network.folder, "classification", ("a", "b"))
