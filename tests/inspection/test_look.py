"""What is shown of a model is what transformers computes, for every family."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn import functional as F
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tests.inspection.houses import ANSWER, KINDS, TEXT, make_plain, save_model
from tests.parity.tiny import ENCODER_DECODERS, ENCODERS
from tunesmith.errors import InputError
from tunesmith.inspection import attention, reading
from tunesmith.inspection.changes import effective_rank
from tunesmith.inspection.embeddings import map_vectors
from tunesmith.inspection.look import Sampling, inspect
from tunesmith.inspection.next_word import shape_distribution
from tunesmith.inspection.tokens import tokens_of


def close(one: Any, other: Any, places: float = 1e-5) -> None:
    torch.testing.assert_close(torch.as_tensor(one).double(), torch.as_tensor(other).double(), atol=places, rtol=1e-4)


def opened(kind: str, folder: Path) -> SimpleNamespace:
    """A text looked at by us, and the same ids in the plain model."""
    plain = save_model(kind, folder)
    found = inspect(str(folder), TEXT, answer="" if kind in ENCODERS else ANSWER)
    first = found.readings[0]
    inputs = {"input_ids": torch.tensor([first.source or first.ids])}
    if first.source is not None:
        inputs["decoder_input_ids"] = torch.tensor([first.ids])
    with torch.inference_mode():
        out = plain(**inputs, output_attentions=True, output_hidden_states=True)
    return SimpleNamespace(plain=plain, found=found, first=first, out=out)


@pytest.fixture(scope="module", params=KINDS)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    both = opened(request.param, tmp_path_factory.mktemp(request.param))
    both.kind = request.param
    return both


def test_states_and_attention(seen: SimpleNamespace) -> None:
    is_two_sided = seen.kind in ENCODER_DECODERS
    states = seen.out.decoder_hidden_states if is_two_sided else seen.out.hidden_states
    for ours, theirs in zip(seen.first.states, states, strict=True):
        close(ours, theirs[0])
    names = {"own": "decoder_attentions", "source": "encoder_attentions", "cross": "cross_attentions"}
    for side, name in names.items() if is_two_sided else [("own", "attentions")]:
        theirs = seen.out[name]
        for layer, weights in enumerate(theirs):
            close(seen.found.head(layer, 1, side), weights[0, 1])
            close(seen.found.head(layer, -1, side), weights[0].mean(0))
        small = torch.tensor(seen.found.grid(side))
        assert small.shape[:2] == (len(theirs), theirs[0].shape[1])
        close(small[0, 0], theirs[0][0, 0])  # short texts are not made smaller


def test_rollout_is_the_product_of_layers(seen: SimpleNamespace) -> None:
    is_two_sided = seen.kind in ENCODER_DECODERS
    layers = seen.out.decoder_attentions if is_two_sided else seen.out.attentions
    flow = np.eye(len(seen.first.ids))
    for weights in layers:
        flow = (0.5 * weights[0].mean(0).double().numpy() + 0.5 * np.eye(len(flow))) @ flow
    close(seen.found.rollout(), flow)


def test_next_word(seen: SimpleNamespace) -> None:
    place = 2
    ids = list(seen.first.ids)
    if seen.kind in ENCODERS:
        true, ids[place] = ids[place], seen.first.subject.tokenizer.mask_token_id
        logits = seen.plain(input_ids=torch.tensor([ids])).logits[0, place].detach()
    else:
        logits, true = seen.out.logits[0, place], ids[place + 1]
    word = seen.found.next_word(place, count=5)
    probabilities = logits.double().softmax(-1)
    best = probabilities.topk(5)
    assert [each.id for each in word.words] == best.indices.tolist()
    close([each.probabilities[0] for each in word.words], best.values)
    close(word.rests, [1 - best.values.sum()])
    close(word.entropies, [-(probabilities * probabilities.log2()).sum()])
    assert word.ranks == [int((logits > logits[true]).sum()) + 1]


def test_answer(seen: SimpleNamespace) -> None:
    if seen.kind in ENCODERS:
        with pytest.raises(InputError, match="--answer"):
            seen.found.said()
        return
    start = seen.first.num_given
    targets = torch.tensor(seen.first.ids[start:])
    losses = F.cross_entropy(seen.out.logits[0, start - 1 : -1].double(), targets, reduction="none")
    said = seen.found.said()
    assert len(said) == 3
    close([each.logprobs[0] for each in said], -losses)
    assert [each.token.id for each in said] == targets.tolist()


def test_lens_ends_in_the_model_itself(seen: SimpleNamespace) -> None:
    """The last layer but one, sent through norm and head by hand, and the last."""
    lens = seen.found.lens()[0]
    probabilities = seen.out.logits[0].softmax(-1).amax(-1)
    close([value for _, value in lens[-1]], probabilities)
    assert len(lens) == len(seen.first.states)
    by_hand = head_of(seen.kind, seen.plain)(seen.first.states[-2]).softmax(-1).max(-1)
    close([value for _, value in lens[-2]], by_hand.values)
    texts = [token.text for token in tokens_of(by_hand.indices.tolist(), seen.first.subject.tokenizer)]
    assert [text for text, _ in lens[-2]] == texts


def head_of(kind: str, plain: Any) -> Any:
    """From an inner layer's states to logits, as each class of transformers writes it."""
    heads = {  # looked up when it is known that the model has such parts
        "gpt2": lambda x: plain.lm_head(plain.transformer.ln_f(x)),
        "llama": lambda x: plain.lm_head(plain.model.norm(x)),
        "gemma2": lambda x: 30.0 * torch.tanh(plain.lm_head(plain.model.norm(x)) / 30.0),
        "bert": lambda x: plain.cls(x + 0),
        "roberta": lambda x: plain.lm_head(x + 0),
        "t5": lambda x: plain.lm_head(plain.decoder.final_layer_norm(x) * 32**-0.5),
        "bart": lambda x: plain.lm_head(x) + plain.final_logits_bias[0],
        "marian": lambda x: plain.lm_head(x) + plain.final_logits_bias[0],
        "bert2bert": lambda x: plain.decoder.cls(x + 0),
    }
    return torch.inference_mode()(heads[kind])


def test_numbers(seen: SimpleNamespace) -> None:
    owner = seen.plain.get_decoder() if seen.kind == "bert2bert" else seen.plain
    table = owner.get_input_embeddings().weight
    place, token = 2, seen.first.ids[2]
    (numbers,) = seen.found.numbers(place, count=3)
    close(numbers.vector, table[token])
    close(numbers.norm, table[token].norm())
    cosines = F.normalize(table, dim=-1) @ F.normalize(table[token], dim=0)
    best = cosines.topk(4)
    assert [token, *(other for other, _ in numbers.neighbours)] == best.indices.tolist()
    close([cosine for _, cosine in numbers.neighbours], best.values[1:])
    tables = {
        "gpt2": lambda: plain.transformer.wpe.weight[place],
        "bert": lambda: plain.bert.embeddings.position_embeddings.weight[place],
        "roberta": lambda: plain.roberta.embeddings.position_embeddings.weight[place + 2],
        "bart": lambda: plain.model.decoder.embed_positions.weight[place + 2],
        "marian": lambda: plain.model.decoder.embed_positions.weight[place],
        "bert2bert": lambda: plain.decoder.bert.embeddings.position_embeddings.weight[place],
    }
    plain = seen.plain
    if seen.kind in tables:
        close(numbers.position, tables[seen.kind]())
    else:
        assert numbers.position is None
        assert "no table" in numbers.position_note


def test_occlusion_is_the_text_without_the_token(seen: SimpleNamespace) -> None:
    first, at = seen.first, 1
    shorter = list(first.source or first.ids)
    del shorter[at]
    inputs = {"input_ids": torch.tensor([shorter])}
    if first.source is not None:
        inputs["decoder_input_ids"] = torch.tensor([first.ids])
    with torch.inference_mode():
        after = seen.plain(**inputs).logits[0, -1].log_softmax(-1)
    before = seen.out.logits[0, -1].log_softmax(-1)
    word = before.argmax()
    (found,) = seen.found.occlusion()
    close(found[at], before[word] - after[word])
    assert len(found) == len(shorter) + 1


# The same for all families


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, 0, 1.0), (1.5, 10, 1.0), (1.0, 0, 0.6), (0.8, 20, 0.7)]
)
def test_sampling_is_that_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = 3 * torch.randn(1, 200)
    steps: list[Any] = [TemperatureLogitsWarper(temperature)]
    steps += [TopKLogitsWarper(top_k)] if top_k else []
    steps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    theirs = LogitsProcessorList(steps)(torch.zeros(1, 1, dtype=torch.long), logits).softmax(-1)[0]
    close(shape_distribution(logits[0], temperature, top_k, top_p), theirs, 1e-6)


def test_at_temperature_zero_one_word_is_left(tmp_path: Path) -> None:
    save_model("llama", tmp_path)
    word = inspect(str(tmp_path), TEXT).next_word(sampling=Sampling(temperature=0))
    assert [each.probabilities for each in word.words] == [[1.0]]
    assert word.entropies == [0.0]
    with pytest.raises(InputError, match="temperature"):
        Sampling(temperature=-1)


def test_two_models_and_their_difference(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    save_model("llama", one)
    save_model("llama", other, seed=1)
    both, alone = inspect(str(one), TEXT, str(other), ANSWER), inspect(str(other), TEXT, answer=ANSWER)
    word = both.next_word(count=4)
    assert 4 <= len(word.words) <= 8
    for each in word.words:
        assert each.difference == each.probabilities[0] - each.probabilities[1]
    second = {each.id: each.probabilities[0] for each in alone.next_word(count=96).words}
    assert all(second[each.id] == each.probabilities[1] for each in word.words)
    assert [each.logprobs[1] for each in both.said()] == [each.logprobs[0] for each in alone.said()]
    base, tuned = make_plain("llama", 1).state_dict(), make_plain("llama", 0).state_dict()
    for change in both.changes():
        before, after = base[_named(change.name, base)].double(), tuned[_named(change.name, base)].double()
        close(change.relative, (after - before).norm() / before.norm() if before.norm() else 0.0)


def _named(name: str, weights: Any) -> str:
    return name if name in weights else f"model.{name}"


def test_effective_rank() -> None:
    left, right = torch.randn(30, 1), torch.randn(1, 50)
    assert effective_rank(left @ right) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.eye(30, 50)) == pytest.approx(30)
    matrix = torch.randn(50, 20)
    sizes = np.linalg.svd(matrix.numpy(), compute_uv=False)
    shares = sizes / sizes.sum()
    assert effective_rank(matrix) == pytest.approx(float(np.exp(-(shares * np.log(shares)).sum())), rel=1e-4)


def test_map_is_that_of_scikit_learn() -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 6))
    pca = PCA(2, svd_solver="full").fit(vectors)
    found = map_vectors(vectors)
    close(np.abs(found.points), np.abs(pca.transform(vectors)))
    close(found.explained, pca.explained_variance_ratio_)
    assert len(map_vectors(vectors, "tsne").points) == 20
    with pytest.raises(InputError, match="three"):
        map_vectors(vectors[:2])


def test_rows_that_do_not_sum_to_one_are_caught() -> None:
    with pytest.raises(AssertionError, match="layer 1"):
        reading._check_rows({"own": [torch.eye(4)[None], 0.9 * torch.eye(4)[None]]})


def test_too_long_for_attention_is_said_and_the_rest_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model("llama", tmp_path)
    whole = inspect(str(tmp_path), TEXT)
    monkeypatch.setattr(reading.psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * 4 * 3 * 4 * 25))
    found = inspect(str(tmp_path), TEXT)
    assert "There is room for 5 tokens" in found.notes[0]
    with pytest.raises(InputError, match="room for 5"):
        found.head(0, 0)
    close(found.readings[0].logits, whole.readings[0].logits)


def test_too_long_for_the_model_is_refused(tmp_path: Path) -> None:
    save_model("llama", tmp_path)
    with pytest.raises(InputError, match="takes 64"):
        inspect(str(tmp_path), "w5 " * 70)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    """Eager attention holds for the call alone."""
    save_model("llama", tmp_path)
    found = inspect(str(tmp_path), TEXT)
    config = found.readings[0].subject.model.config
    assert config._attn_implementation == "tunesmith_packed"
    found.occlusion(), found.lens()
    assert config._attn_implementation == "tunesmith_packed"


def test_wrong_places_are_refused(tmp_path: Path) -> None:
    save_model("llama", tmp_path)
    found = inspect(str(tmp_path), TEXT)
    for ask, says in (
        (lambda: found.head(9), "layers 0 to 2"),
        (lambda: found.next_word(99), "places 0 to 7"),
        (lambda: found.numbers(99), "places 0 to 7"),
        (lambda: found.head(0, 0, "cross"), "no cross"),
        (found.changes, "--beside"),
        (lambda: found.tokens("source"), "one text"),
    ):
        with pytest.raises(InputError, match=says):
            ask()


def test_attention_is_said_to_be_no_explanation() -> None:
    assert "not why" in attention.CAVEAT


@cache
def letters() -> Any:
    from transformers import AutoTokenizer

    from tunesmith.models.load import resolve_model

    return AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct"))


@pytest.mark.fetch
@pytest.mark.parametrize("text", ["Möglich 🙂 \t<b>\n", "naïve 北京", "\u0000\u00ad\u007f"])
def test_bytes_are_those_of_the_text(text: str) -> None:
    ids = letters()(text, add_special_tokens=False)["input_ids"]
    found = tokens_of(ids, letters())
    assert bytes.fromhex(" ".join(token.data for token in found)).decode() == text
