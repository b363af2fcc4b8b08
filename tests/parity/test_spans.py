"""Answers as spans: the packed step against transformers' own loss, windows against its tokenizers' own, and the search
over windows against one that tries every span. Theirs is told from ours by planted faults.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.parity.test_packed import gradients, twin
from tests.parity.tiny import DECODERS, ENCODERS, VOCABULARY, make_network, make_tokenizer
from tunesmith.data import share
from tunesmith.data.pack import pack
from tunesmith.data.tokenize import tokenize
from tunesmith.errors import InputError
from tunesmith.evaluation.spans import find_answers
from tunesmith.models.load import Network
from tunesmith.records import UNANSWERABLE, Examples, Origin, PackedBatch, SpanQuestion, TokenizedExample
from tunesmith.train.losses import Penalty
from tunesmith.train.objective import judged_losses
from tunesmith.train.spans import best_span, best_spans
from tunesmith.train.validate import RowOutputs

LARGEST_GRADIENT_GAP = 1e-6
LENGTHS = (9, 4, 17, 5, 12, 12, 7)
WITHOUT_SPANS = {"gemma2", "gemma3"}  # transformers has no class for them
KINDS = [kind for kind in DECODERS | ENCODERS if kind not in WITHOUT_SPANS]


def make_windows() -> list[TokenizedExample]:
    """Two tokens of question, the rest passage; every third window has no answer."""
    rng = random.Random(1)
    rows = []
    for index, length in enumerate(LENGTHS):
        ids = tuple(rng.randrange(5, VOCABULARY) for _ in range(length))
        first = rng.randrange(2, length)
        answer = (0, 0) if index % 3 == 2 else (first, rng.randrange(first, length))
        offsets = tuple(number for place in range(length) for number in ((0, 0) if place < 2 else (place, place + 1)))
        trained = tuple(answer[0] <= place <= answer[1] for place in range(length))
        rows.append(TokenizedExample(ids, trained, answer, 0, index, 2, offsets=offsets))
    return rows


def gap(network: Network, batch: PackedBatch, rows: list[TokenizedExample]) -> float:
    """Largest difference between the packed step and theirs, window by window without padding: of the loss, and of any
    gradient. (In a padded batch their softmax goes over the padding, too.)"""
    plain = twin(network)
    ours = judged_losses(network, batch)[0].mean()
    theirs = torch.zeros(())
    for row in rows:
        types = {"token_type_ids": torch.tensor([[0] * row.second_at + [1] * (len(row.input_ids) - row.second_at)])}
        assert isinstance(row.target, tuple)
        first, last = (torch.tensor([int(place)]) for place in row.target)
        given = types if getattr(plain.config, "type_vocab_size", 0) > 1 else {}
        theirs = theirs + plain(
            input_ids=torch.tensor([row.input_ids]), start_positions=first, end_positions=last, **given
        ).loss / len(rows)
    ours.backward()
    theirs.backward()
    others = gradients(plain)
    worst = max(float((grad - others[name]).abs().max()) for name, grad in gradients(network.model).items())
    return max(abs(ours.item() - theirs.item()), worst)


@pytest.fixture
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Network:
    return make_network(request.param, "extractive-qa", tmp_path)


@pytest.mark.parametrize("network", KINDS, indirect=True)
def test_loss_and_gradients_are_those_of_transformers(network: Network) -> None:
    rows = make_windows()
    assert gap(network, pack(rows), rows) <= LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", ["llama"], indirect=True)
def test_a_shared_beginning_is_judged_for_each_window(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "LEAST_SAVED", 0)
    rows = make_windows()
    rows += [replace(rows[4], input_ids=(*rows[4].input_ids[:-1], 7), row=len(rows))]
    batch = pack(rows, share=True)
    assert max(batch.parents) >= 0
    assert gap(network, batch, rows) <= LARGEST_GRADIENT_GAP


def swap_ends(batch: PackedBatch) -> PackedBatch:
    """Fault: an answer begins where it should end."""
    return replace(batch, targets=batch.targets[:, [1, 0, 2]])


def count_the_next(batch: PackedBatch) -> PackedBatch:
    """Fault: the softmax of the first row goes over a place of the next one."""
    moved = torch.zeros_like(batch.targets)
    moved[:2, 2] = torch.tensor([1, -1])
    return replace(batch, targets=batch.targets + moved)


def forget_types(batch: PackedBatch) -> PackedBatch:
    """Fault: every token is of the question."""
    return replace(batch, token_types=None)


@pytest.mark.parametrize("network", ["bert"], indirect=True)
@pytest.mark.parametrize("fault", [swap_ends, count_the_next, forget_types])
def test_a_planted_fault_is_caught(network: Network, fault: Callable[[PackedBatch], PackedBatch]) -> None:
    rows = make_windows()
    assert gap(network, fault(pack(rows)), rows) > 1000 * LARGEST_GRADIENT_GAP


@pytest.mark.parametrize("network", ["distilbert"], indirect=True)
def test_what_a_penalty_adds(network: Network) -> None:
    batch = pack(make_windows())
    plain, logits_N2 = judged_losses(network, batch)
    added = judged_losses(network, batch, Penalty(z_loss=0.1))[0] - plain
    assert logits_N2 is not None
    normalisers = [part.logsumexp(0).square().mean() for part in logits_N2.split(batch.lengths)]
    torch.testing.assert_close(added, 0.1 * torch.stack(normalisers))


# Windows


def paired() -> PreTrainedTokenizerFast:
    """As BERT lays a pair out, with types; signs are tokens of their own."""
    tokenizer = make_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    parts = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def question(context: str, answer: str | None, asked: str = "w7 w8") -> SpanQuestion:
    starts = () if answer is None else (context.index(answer),)
    return SpanQuestion(asked, context, () if answer is None else (answer,), starts, Origin("d.jsonl", 1))


def ask(*rows: SpanQuestion, names: tuple[str, ...] = ()) -> Examples:
    return Examples("extractive-qa", rows, names, "", "")


PASSAGE = " ".join(f"w{number}" for number in range(10, 40))


@pytest.mark.parametrize(("room", "stride"), [(12, 4), (17, 0), (20, 14), (200, 8)])
def test_windows_are_those_of_the_tokenizer(room: int, stride: int) -> None:
    tokenizer = paired()
    tokenizer.init_kwargs["doc_stride"] = stride
    limits = {"truncation": "only_second", "max_length": room, "stride": stride}
    theirs = tokenizer(
        "w7 w8",
        PASSAGE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        **limits,
    )
    stride_is_kept = stride <= (room - 5) // 2
    ours = tokenize(ask(question(PASSAGE, None)), tokenizer, room)
    if not stride_is_kept:
        assert len(ours) < len(theirs["input_ids"])
        return
    assert [list(row.input_ids) for row in ours] == theirs["input_ids"]
    for at, row in enumerate(ours):
        kinds = theirs.sequence_ids(at)
        offsets = [
            pair if kind == 1 else (0, 0) for pair, kind in zip(theirs["offset_mapping"][at], kinds, strict=True)
        ]
        assert np.array(row.offsets).reshape(-1, 2).tolist() == [list(pair) for pair in offsets]


def test_an_answer_is_trained_where_it_stands_whole() -> None:
    tokenizer = paired()
    tokenizer.init_kwargs["doc_stride"] = 4
    rows = tokenize(ask(question(PASSAGE, "w20 w21 w22"), question(PASSAGE, None)), tokenizer, 15)
    assert list(rows.examples) == [0] * 5 + [1] * 5
    taught = []
    for row in rows:
        assert isinstance(row.target, tuple)
        first, last = map(int, row.target)
        places = [place for place, trained in enumerate(row.trained) if trained]
        assert places == list(range(first, last + 1))
        taught.append(tokenizer.decode([row.input_ids[place] for place in places]))
        assert row.offsets[:8] == (0,) * 8
        if first:
            assert PASSAGE[row.offsets[2 * first] : row.offsets[2 * last + 1]] == "w20 w21 w22"
    assert taught == ["<s>", "w20 w21 w22", *["<s>"] * 8]
    assert "windows of 2 questions, 9 without an answer in them" in str(rows.signal)


@pytest.mark.parametrize(("answer", "taught"), [("w20", "w20"), ("w20,w2", "w20 <unk> w21"), ("w19 w2", "w19 w20")])
def test_an_answer_is_every_token_that_has_a_letter_of_it(answer: str, taught: str) -> None:
    tokenizer = paired()
    (row,) = tokenize(ask(question("w18 w19 w20,w21 w22", answer)), tokenizer, 60)
    assert (
        tokenizer.decode([token for token, trained in zip(row.input_ids, row.trained, strict=True) if trained])
        == taught
    )


def test_a_question_that_cannot_be_taught_is_named() -> None:
    long = " ".join(f"w{number}" for number in range(10, 25))
    with pytest.raises(InputError, match=r"d.jsonl:1: its answer of 15 tokens stands whole in no window. Raise --doc"):
        tokenize(ask(question(PASSAGE, long)), paired(), 15)
    with pytest.raises(InputError, match="its question leaves no room for a passage in 15 tokens"):
        tokenize(ask(question(PASSAGE, None, asked=long)), paired(), 15)
    kept = tokenize(ask(question(PASSAGE, long), question(PASSAGE, "w20")), paired(), 15, "skip")
    assert set(kept.examples) == {1}


# The search


def try_all(logits_T2: np.ndarray, row: TokenizedExample, longest: int) -> tuple[float, int, int, float]:
    """Every span, one after the other."""
    best = (-np.inf, 0, 0)
    for first in range(len(row.input_ids)):
        for last in range(first, min(first + longest, len(row.input_ids))):
            if first >= 2 and logits_T2[first, 0] + logits_T2[last, 1] > best[0]:
                best = (logits_T2[first, 0] + logits_T2[last, 1], first, last)
    return (*best, logits_T2[0].sum())


@pytest.mark.parametrize("longest", [1, 3, 100])
def test_the_best_span_is_that_of_a_search_over_all(longest: int) -> None:
    rows = make_windows()
    logits_N2 = np.random.default_rng(0).normal(size=(sum(LENGTHS), 2))
    parts = np.split(logits_N2, np.cumsum(LENGTHS)[:-1])
    expected = [try_all(part, row, longest) for part, row in zip(parts, rows, strict=True)]
    assert best_spans(logits_N2, rows, longest).tolist() == pytest.approx(np.array(expected))


def test_a_window_without_a_passage_has_no_span() -> None:
    row = replace(make_windows()[0], offsets=(0, 0) * LENGTHS[0])
    assert best_span(np.zeros((LENGTHS[0], 2)), row, 30)[0] == -np.inf


@pytest.mark.parametrize("names", [(), (UNANSWERABLE,)])
def test_an_answer_is_the_best_of_all_windows(names: tuple[str, ...]) -> None:
    """As the example of transformers does it (run_qa.py, utils_qa.py), with all spans for its twenty best starts and
    ends."""
    tokenizer = paired()
    tokenizer.init_kwargs["doc_stride"] = 4
    examples = ask(*(question(PASSAGE, None) for _ in range(6)), names=names)
    rows = tokenize(examples, tokenizer, 15)
    draw = np.random.default_rng(3)
    logits = [draw.normal(size=(len(row.input_ids), 2)) * 2 for row in rows]
    outputs = RowOutputs(np.zeros(len(rows)), np.ones(len(rows)), best_spans(np.concatenate(logits), list(rows), 3))
    found = find_answers(examples, rows, outputs, names)
    silent = 0
    for index, one in enumerate(found):
        spans, null = [], np.inf
        for row, part, example in zip(rows, logits, rows.examples, strict=True):
            if example != index:
                continue
            null = min(null, part[0].sum())
            inside = [place for place in range(len(part)) if row.offsets[2 * place + 1]]
            for first in inside:
                for last in inside:
                    if first <= last < first + 3:
                        text = PASSAGE[row.offsets[2 * first] : row.offsets[2 * last + 1]]
                        spans.append((part[first, 0] + part[last, 1], text))
        best, text = max(spans)
        is_silent = bool(names) and null > best
        silent += is_silent
        assert one.text == ("" if is_silent else text)
        assert one.margin == pytest.approx(best - null, abs=1e-6)
    assert not silent
    unsure = replace(outputs, logits=outputs.logits + np.array([0, 0, 0, 99.0]))
    said = {one.text for one in find_answers(examples, rows, unsure, names)}
    assert (said == {""}) == bool(names)
