"""Forgetting: nothing where nothing has changed, and each number beside one made in another way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.parity.tiny import make_model, make_tokenizer

from tunesmith import cli
from tunesmith.data.ids import prompt_ids
from tunesmith.evaluation import probe
from tunesmith.evaluation.drift import cosines, linear_cka
from tunesmith.evaluation.forgetting import Change, measure_network
from tunesmith.evaluation.own_words import diverge, write_own_words
from tunesmith.models.attention import unpacked
from tunesmith.models.load import Network, load_network
from tunesmith.records import Message

FLOAT = torch.float32


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What base models say here is none of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("TUNESMITH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module", autouse=True)
def precision() -> Iterator[None]:
    """As on a machine where products in float32 are faster: found out by timing, which costs more than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.evaluation.forgetting.choose_precision", lambda *_: FLOAT)
        yield


def save(folder: Path, family: str, task: str) -> Path:
    torch.manual_seed(1)
    model = make_model(family, task)
    if family == "llama":
        model.config.max_position_embeddings = 512
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("tiny-llama"), "llama", "generation")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("tiny-bert"), "bert", "classification")


def shaken(network: Network, by: float) -> Network:
    with torch.no_grad():
        for parameter in network.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=by)
    return network


@torch.no_grad()
def plain_logits(network: Network, ids: torch.Tensor) -> torch.Tensor:
    with unpacked(network.model):
        return network.model(input_ids=ids).logits[0]


def by_name(changes: list[Change]) -> dict[str, Change]:
    return {f"{one.measure}/{one.metric}": one for one in changes}


def test_nothing_is_forgotten_where_nothing_has_changed_and_the_base_is_asked_once(
    decoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = load_network(str(decoder), "generation")
    parent = {"name": str(decoder), "fingerprint": network.fingerprint}
    changes = measure_network(network, parent)
    assert "is asked once" in capsys.readouterr().err
    assert {one.measure for one in changes} == {
        *("own_words", "general_text", "facts", "arithmetic", "sums_written", "instructions", "probe")
    }
    for one in changes:
        assert one.change.value == pytest.approx(0, abs=1e-6), one
        assert not any((one.is_worse, one.is_better, one.lost, one.gained))
    moved = by_name(measure_network(shaken(network, 0.05), parent))
    assert "is asked once" not in capsys.readouterr().err
    assert moved["own_words/kl_to_base"].is_worse
    assert moved["general_text/bits_per_byte"].change.value != 0


@pytest.mark.parametrize("likeliest", [96, 8])
def test_divergence_is_that_of_plain_transformers(decoder: Path, likeliest: int) -> None:
    """Over all of the vocabulary it is the whole divergence; over a few tokens it is below that."""
    base, tuned = load_network(str(decoder), "generation"), shaken(load_network(str(decoder), "generation"), 0.05)
    words = write_own_words(base, FLOAT, likeliest)
    found = diverge(tuned, words, FLOAT)
    at, whole = 0, []
    for length in words["lengths"].tolist():
        ids = words["input_ids"][at : at + length][None]
        trained = words["trained"][at : at + length]
        logs = [plain_logits(network, ids).log_softmax(-1) for network in (base, tuned)]
        divergence_T = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
        whole.append(float(divergence_T[:-1][trained[1:]].sum()))
        at += length
    assert len(found) == 40
    if likeliest == 96:
        np.testing.assert_allclose(found.losses, whole, rtol=1e-3, atol=1e-4)
    else:
        assert 0.1 * sum(whole) < found.losses.sum() < sum(whole)


def test_choices_are_ranked_as_plain_transformers_ranks_them(decoder: Path) -> None:
    network = shaken(load_network(str(decoder), "generation"), 0.2)
    texts = [("w9 w10", "w11", "w12 w13"), ("w20", "w21", "w22 w23"), ("w30", "w31 w5", "w32"), ("w7", "w8", "w9")]
    items = [{"question": f"w{5 + at}", "choices": choices} for at, choices in enumerate(texts)]
    expected = []
    for item in items:
        scores = []
        for choice in item["choices"]:
            asked = list(prompt_ids((Message("user", str(item["question"])),), network.tokenizer))
            answer = [*network.tokenizer(choice, add_special_tokens=False)["input_ids"], network.tokenizer.eos_token_id]
            logs = plain_logits(network, torch.tensor([asked + answer])).log_softmax(-1)
            said = [float(logs[len(asked) + place - 1, token]) for place, token in enumerate(answer)]
            scores.append(sum(said) / len(choice))
        expected.append(scores.index(max(scores)) == 0)
    assert probe.choose(items, network, FLOAT) == expected
    assert len(set(expected)) == 2  # neither all right nor all wrong, or this could not fail


def test_alignment_of_kernels_is_its_definition() -> None:
    """HSIC with centring matrices, as Kornblith et al. write it; a rotation leaves it, and the cosine sees it."""
    rng = np.random.default_rng(0)
    one = rng.normal(size=(30, 6))
    other = one[:, :4] + 0.5 * rng.normal(size=(30, 4))
    centring = np.eye(30) - 1 / 30

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.trace(a @ a.T @ centring @ b @ b.T @ centring))

    expected = hsic(one, other) / np.sqrt(hsic(one, one) * hsic(other, other))
    assert linear_cka(one, other) == pytest.approx(expected)
    assert linear_cka(one[:5], other[:5]) < 1  # fewer texts than directions: the other way round
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert linear_cka(one, 3 * one @ turn + 1) == pytest.approx(1)
    assert cosines(one, 2 * one).mean() == pytest.approx(1)
    assert abs(cosines(one, one @ turn).mean()) < 0.9


def test_encoders_drift(encoder: Path, tmp_path: Path) -> None:
    network = load_network(str(encoder), "classification", ("a", "b"))
    parent = {"name": str(encoder), "fingerprint": network.fingerprint}
    rows = [{"text": f"w{5 + at % 40} w{50 + at % 7}", "label": "xyz"[at % 3]} for at in range(60)]
    second = tmp_path / "second.jsonl"
    second.write_text("".join(json.dumps(row) + "\n" for row in rows))
    still = by_name(measure_network(network, parent, str(second)))
    assert still["representations/cka"].tuned.value == pytest.approx(1)
    assert still["linear_probe/accuracy"].change.value == 0
    assert still[f"also: {second}/accuracy"].num_rows == 60
    moved = by_name(measure_network(shaken(network, 0.3), parent, str(second)))
    assert moved["representations/cka"].is_worse
    assert moved["representations/cosine"].is_worse


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ({"exact": "yes"}, " Yes.", "Yes, I do"),
        ({"contains": "RIVER"}, "It is RIVER", "It is river"),
        ({"contains": "bonjour"}, "Bonjour!", "Bon jour"),
        ({"starts": "Dear Anna"}, '"Dear Anna, hello', "Hello, Dear Anna"),
        ({"order": ["1", "2", "3"]}, "1, 2, 3", "3, 2, 1"),
        ({"min_lines": 3}, "a\nb\n\nc", "a\n\n\nb"),
        ({"max_words": 1}, "white", "It is"),
    ],
)
def test_rules_tell_good_from_bad(check: dict[str, object], good: str, bad: str) -> None:
    assert probe._holds({"check": check}, good)
    assert not probe._holds({"check": check}, bad)
    assert not probe._holds({"check": check}, "")


def test_sums_go_by_the_last_number() -> None:
    assert probe._holds({"answer": "5"}, "2 + 3 = 5.")
    assert not probe._holds({"answer": "5"}, "5, no, 6")


# Published items are never changed, else numbers of the same version could not be compared.
PUBLISHED = {
    "probe": "a08ee9cda304427f070125b5c39dd1e0b4ed14789e22025d0ca30c048bb9a0f0",
    "texts": "b313334922f1ff3574946a75312024009928f04371f7dd73651dd8dc115c41a7",
    "prompts": "665f6beae5addfde33c4195acd65adbf3c928ef09bd9dbc38f783d169d59b8b9",
}


def test_the_probe_is_whole_and_as_published() -> None:
    items = probe.read_items()
    assert len(items) >= 150
    assert len({item["question"] for item in items}) == len(items)
    for item in items:
        assert len(set(item.get("choices", "abcd"))) == 4, item
        assert set(item.get("check", {})) <= set(probe.CHECKS)
        assert "choices" in item or "check" in item
    for name, digest in PUBLISHED.items():
        assert hashlib.sha256(probe.read_general(name).encode()).hexdigest() == digest, name


def test_questions_for_own_words_are_not_those_that_training_holds_on_to() -> None:
    from tunesmith.methods.keeping import general_prompts

    assert not set(probe.read_general("prompts").splitlines()) & set(general_prompts())


def test_evaluate_wants_to_know_what_for(decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", str(decoder)]) == 2
    assert "needs --data with labelled rows, or --forgetting" in capsys.readouterr().err
    assert cli.run(["evaluate", str(decoder), "--data", "x.csv", "--also-keep", "y.csv"]) == 2
    assert "ask for it with --forgetting" in capsys.readouterr().err
    assert cli.run(["evaluate", str(decoder), "--forgetting"]) == 2
    assert "not a finished run" in capsys.readouterr().err
