"""Losses and gradients of pre-training beside transformers' own: next words, and masked words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from tests.parity.tiny import ENCODERS, make_model, make_tokenizer
from tunesmith.data.corrupt import Marks, Masked, Noised
from tunesmith.data.pack import pack
from tunesmith.data.stream import Stream, Tokens
from tunesmith.models.load import load_network
from tunesmith.records import PackedBatch
from tunesmith.train.objective import judged_losses

MARKS = Marks(mask=5, first=3, last=2, special=frozenset({0, 1, 2, 3, 5}), size=96)


def stream() -> Stream:
    ids = np.random.default_rng(0).integers(6, 96, size=70).astype(np.int32)
    return Stream(Tokens(ids, 200, 1), 24)


def losses_and_gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_next_words(kind: str, tmp_path: Path) -> None:
    model = make_model(kind, "text")
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    rows = list(stream())
    total, num = torch.zeros(()), sum(len(row.input_ids) - 1 for row in rows)
    for row in rows:
        ids = torch.tensor([row.input_ids])
        total = total + model(ids, labels=ids).loss * (ids.shape[1] - 1)
    expected = losses_and_gradients(model, total / num)
    network = load_network(str(tmp_path), "text")
    batch = pack(rows, share=True)
    losses, _ = judged_losses(network, batch)
    found = losses_and_gradients(network.model, losses.mean())
    assert losses.mean().item() == pytest.approx((total / num).item(), rel=1e-5)
    assert len(losses) == num
    _compare(found, expected)
    # The same places judged by their own token, as without the shift, would be noticed.
    wrong = replace(batch, targets=batch.input_ids[batch.predict_from])
    assert judged_losses(network, wrong)[0].mean().item() != pytest.approx((total / num).item(), rel=1e-4)


def _masked_model(kind: str, folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(ENCODERS[kind](), attn_implementation="eager").eval()
    with torch.no_grad():  # a bias that begins at nothing would hide that it is left out
        model.get_output_embeddings().bias.normal_()
    model.save_pretrained(folder)
    make_tokenizer(model.config.pad_token_id).save_pretrained(folder)
    return model


def _rows(kind: str) -> PackedBatch:
    return pack(list(Masked(stream(), 0.3, MARKS, seed=1)))


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_masked_words(kind: str, tmp_path: Path) -> None:
    model = _masked_model(kind, tmp_path)
    total, num = torch.zeros(()), 0
    for row in Masked(stream(), 0.3, MARKS, seed=1):
        labels = torch.full((1, len(row.input_ids)), -100)
        labels[0, torch.tensor(row.trained)] = torch.tensor(row.target)
        total = total + model(torch.tensor([row.input_ids]), labels=labels).loss * row.num_trained
        num += row.num_trained
    expected = losses_and_gradients(model, total / num)
    network = load_network(str(tmp_path), "text")
    assert network.new_modules == ()
    batch = _rows(kind)
    losses, _ = judged_losses(network, batch)
    found = losses_and_gradients(network.model, losses.mean())
    assert losses.mean().item() == pytest.approx((total / num).item(), rel=1e-5)
    _compare(found, expected)
    # Predicting from the place before, as decoders do, would be noticed.
    wrong = replace(batch, predict_from=batch.predict_from - 1)
    assert judged_losses(network, wrong)[0].mean().item() != pytest.approx((total / num).item(), rel=1e-4)


def _compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.filterwarnings("ignore:Version v4.12.0:FutureWarning")  # of EncoderDecoderModel with labels
@pytest.mark.parametrize("kind", ["t5", "bart", "bert2bert"])
def test_what_was_left_out(kind: str, tmp_path: Path) -> None:
    """Spans behind masks, and the whole text to be written: transformers' own loss, row by row."""
    model = make_model(kind, "text")
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    start = model.config.decoder_start_token_id
    rows = list(Noised(stream(), 0.3, replace(MARKS, start=start), seed=1))
    total, num = torch.zeros(()), 0
    for row, whole in zip(rows, stream(), strict=True):
        source, target = (
            [token for token, is_target in zip(row.input_ids, row.trained, strict=True) if is_target == side]
            for side in (False, True)
        )
        assert target[-len(whole.input_ids) - 1 : -1] == list(whole.input_ids)
        num_out = len(whole.input_ids) + 2 - len(source) + source.count(MARKS.mask)
        assert num_out == round(0.3 * len(whole.input_ids))
        ids, labels = torch.tensor([source]), torch.tensor([target])
        total = total + model(input_ids=ids, labels=labels).loss * len(target)
        num += len(target)
    network = load_network(str(tmp_path), "text")
    batch = pack(rows)
    losses, _ = judged_losses(network, batch)
    assert losses.mean().item() == pytest.approx((total / num).item(), rel=1e-5)
    wrong = replace(batch, targets=batch.targets.roll(1))
    assert judged_losses(network, wrong)[0].mean().item() != pytest.approx((total / num).item(), rel=1e-4)
