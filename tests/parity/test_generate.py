"""Answers of our own loop against transformers' `generate`, token for token, and their log-probabilities against a
plain pass; draws against the distribution they are drawn from.

And injected faults that these comparisons must catch: a step at the wrong position, a window that is not obeyed, an
answer that sees another's tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GenerationConfig, TopKLogitsWarper, TopPLogitsWarper

from tests.models.test_prefix import applied
from tests.parity.tiny import DECODERS, VOCABULARY, make_network
from tunesmith.data import share
from tunesmith.data.ids import stop_token_ids
from tunesmith.errors import InputError
from tunesmith.models import cache, generate
from tunesmith.models.attention import unpacked
from tunesmith.models.choose import choose
from tunesmith.models.decode import can_decode
from tunesmith.models.generate import Answer, Decoding, sample
from tunesmith.models.load import Network
from tunesmith.records import Message

MOST_NEW = 20


@pytest.fixture
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Network:
    return make_network(request.param, "generation", tmp_path / "model")


def make_prompts(count: int = 5, seed: int = 0) -> list[list[int]]:
    """Lengths that differ; the last two share a beginning."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(5, VOCABULARY) for _ in range(3 + 4 * index)] for index in range(count - 1)]
    return [*prompts, [*prompts[-1][:10], *(rng.randrange(5, VOCABULARY) for _ in range(4))]]


def reference(network: Network, prompt: Sequence[int], most_new: int = MOST_NEW) -> list[int]:
    """The likeliest tokens after one prompt, unpadded, as transformers makes them."""
    config = GenerationConfig(
        max_new_tokens=most_new, do_sample=False, eos_token_id=list(stop_token_ids(network.tokenizer)), pad_token_id=0
    )
    wrapper: Any = network.root
    ids = torch.tensor([list(prompt)])
    with unpacked(network.model):
        made = wrapper.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return [int(token) for token in made[0, len(prompt) :]]


def greedy(network: Network, prompts: Sequence[Sequence[int]], num_answers: int = 1) -> list[list[Answer]]:
    return sample(network, prompts, Decoding(MOST_NEW), torch.float32, num_answers)


def stop_after(monkeypatch: pytest.MonkeyPatch, network: Network, tokens: Sequence[int]) -> None:
    """Tiny models seldom say their stop token, so others are made to stop them: rows then end at unlike times."""
    stops = tuple(tokens)
    monkeypatch.setattr(generate, "stop_token_ids", lambda _: stops)
    monkeypatch.setitem(globals(), "stop_token_ids", lambda _: stops)


@pytest.mark.parametrize("network", DECODERS, indirect=True)
def test_greedy_answers_equal_those_of_transformers(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "LEAST_SAVED", 4)
    assert can_decode(network.model)
    prompts = make_prompts()
    whole = [reference(network, prompt) for prompt in prompts]
    # Tokens that some rows say in the middle: these rows leave, the others go on.
    stop_after(monkeypatch, network, {whole[0][3], whole[2][9], whole[4][1]})
    expected = [reference(network, prompt) for prompt in prompts]
    assert len({len(ids) for ids in expected}) > 2
    for answers, ids in zip(greedy(network, prompts, num_answers=3), expected, strict=True):
        assert [list(answer.ids) for answer in answers] == [ids] * 3
        assert answers[0].finished == (ids[-1] in stop_token_ids(network.tokenizer))


@pytest.mark.parametrize("network", DECODERS, indirect=True)
def test_logprobs_equal_a_pass_over_prompt_and_answer(network: Network) -> None:
    prompts = make_prompts()
    made = sample(network, prompts, Decoding(MOST_NEW, temperature=1.0, seed=3), torch.float32, 3)
    assert len({answer.ids for answers in made for answer in answers}) == 15
    for prompt, answers in zip(prompts, made, strict=True):
        for answer in answers:
            ids = torch.tensor([[*prompt, *answer.ids]])
            with unpacked(network.model), torch.no_grad():
                logits = network.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
            torch.testing.assert_close(torch.tensor(answer.logprobs), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", ["lora", "bottleneck", "prompt", "prefix"])
def test_methods_answer_as_through_transformers(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = applied("llama", "generation", method, tmp_path)
    torch.manual_seed(1)
    for parameter in network.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    network.model.eval()
    prompts = make_prompts()
    ours = greedy(network, prompts)
    monkeypatch.setattr(generate, "can_decode", lambda _: False)
    theirs = greedy(network, prompts)
    assert [one[0].ids for one in ours] == [one[0].ids for one in theirs]
    gaps = np.subtract([one[0].logprobs for one in ours], [one[0].logprobs for one in theirs])
    assert np.abs(gaps).max() < 2e-5


@pytest.mark.parametrize("network", ["gemma3"], indirect=True)
@pytest.mark.parametrize("fault", ["position", "window", "leak"])
def test_injected_faults_are_caught(network: Network, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = make_prompts()
    expected = [reference(network, prompt) for prompt in prompts]
    if fault == "position":
        sound = cache.Cache.positions_R.fget
        monkeypatch.setattr(cache.Cache, "positions_R", property(lambda self: sound(self) + 1))
    elif fault == "window":
        sound_mask = cache.Cache.prompt_mask
        monkeypatch.setattr(cache.Cache, "prompt_mask", lambda self, window: sound_mask(self, None))
    else:
        sound_add = cache.Cache.add
        monkeypatch.setattr(cache.Cache, "add", lambda self, i, k, v: sound_add(self, i, k.flip(2), v.flip(2)))
    assert [list(one[0].ids) for one in greedy(network, prompts)] != expected


@pytest.mark.parametrize("network", ["llama"], indirect=True)
def test_an_answer_does_not_depend_on_its_batch(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = make_prompts()
    decoding = Decoding(MOST_NEW, temperature=1.2, top_p=0.9, seed=5)
    together = sample(network, prompts, decoding, torch.float32, 3)
    fewer = sample(network, prompts, decoding, torch.float32, 2)
    monkeypatch.setattr(generate, "ROWS_PER_BATCH", 2)
    apart = sample(network, prompts, decoding, torch.float32, 3)
    assert [[a.ids for a in one] for one in apart] == [[a.ids for a in one] for one in together]
    assert [[a.ids for a in one] for one in fewer] == [[a.ids for a in one[:2]] for one in together]
    other = sample(network, prompts, Decoding(MOST_NEW, temperature=1.2, top_p=0.9, seed=6), torch.float32, 3)
    assert [[a.ids for a in one] for one in other] != [[a.ids for a in one] for one in together]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(0)) * 2
    count = 20_000
    numbers = torch.from_numpy(generate.draw_numbers(0, 0, 0, count))
    tokens, logprobs = choose(logits.expand(count, -1), numbers, Decoding(temperature=temperature))
    expected = (logits.double() / temperature).softmax(-1).numpy() * count
    assert stats.chisquare(np.bincount(tokens, minlength=12), expected).pvalue > 0.001
    # The model's own log-probabilities, whatever the temperature.
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[tokens])


@pytest.mark.parametrize("cut", [{"top_p": 0.6}, {"top_k": 4}, {"top_k": 30, "top_p": 0.5}, {"top_p": 0.999}])
def test_cuts_keep_the_tokens_that_transformers_keeps(cut: dict[str, Any]) -> None:
    size, count = 400, 4_000
    logits = torch.randn(size, generator=torch.Generator().manual_seed(0)) * 3
    kept = logits[None].clone()
    if "top_k" in cut:
        kept = TopKLogitsWarper(cut["top_k"])(None, kept)
    if "top_p" in cut:
        kept = TopPLogitsWarper(cut["top_p"])(None, kept)
    chances = kept[0].double().softmax(-1).numpy()
    numbers = (torch.arange(count) + 0.5) / count
    tokens, _ = choose(logits.expand(count, -1), numbers, Decoding(temperature=1.0, **cut))
    # Evenly spread numbers must hit each token as often as its share says, to the nearest one or two.
    assert np.abs(np.bincount(tokens, minlength=size) - chances * count).max() < 2
    assert set(tokens.tolist()) <= set(np.flatnonzero(chances))


@pytest.mark.parametrize("number", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_numbers_at_the_ends_of_their_range_draw_possible_tokens(number: float) -> None:
    logits = torch.full((1, 50_000), -200.0)
    logits[0, 20_000:20_003] = 0
    token, _ = choose(logits, torch.tensor([number], dtype=torch.float32), Decoding(temperature=1.0))
    assert 20_000 <= int(token) < 20_003


@pytest.mark.parametrize("network", ["llama"], indirect=True)
def test_answers_end_where_the_model_does(network: Network) -> None:
    prompts = [list(range(5, 5 + length)) for length in (62, 30)]
    made = sample(network, prompts, Decoding(50), torch.float32)
    assert [len(one[0].ids) for one in made] == [2, 34]
    with pytest.raises(InputError, match=r"the prompt has 64 tokens, .* takes 64 in all"):
        sample(network, [list(range(5, 69))], Decoding(4), torch.float32)


@pytest.mark.parametrize("setting", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}])
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        Decoding(**setting)


@pytest.mark.parametrize("network", ["llama"], indirect=True)
def test_pieces_of_a_stream_are_the_answer(network: Network) -> None:
    messages = (Message("user", "w7 w8 w9"),)
    decoding = Decoding(MOST_NEW)
    pieces = list(generate.stream(network, messages, decoding, torch.float32))
    assert len(pieces) > 3
    assert "".join(pieces) == generate.generate(network, [messages], decoding, torch.float32, quiet=True)[0]
