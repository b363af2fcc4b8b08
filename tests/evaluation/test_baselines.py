"""Each baseline against what it must give on data whose answer is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from tests.parity.tiny import make_model, make_network, make_tokenizer

from tunesmith.config_compare import CompareConfig
from tunesmith.data.ids import prompt_ids
from tunesmith.errors import InputError
from tunesmith.evaluation.answers import agreement
from tunesmith.evaluation.baselines import BASELINES, find_baseline
from tunesmith.evaluation.metrics import score
from tunesmith.evaluation.predictions import Predictions
from tunesmith.evaluation.prompted import NUM_ANSWERS, NUM_CHOOSING, TEMPERATURE, Resources, choose_answer
from tunesmith.evaluation.prompting import (
    QUESTION_AND_ANSWER,
    TEXT_AND_LABEL,
    WORDINGS,
    Prompting,
    fit_before,
    write_question,
    write_reading,
)
from tunesmith.evaluation.systems import run_baseline
from tunesmith.evaluation.tasks import PLAIN, ask_labels, label_logprobs
from tunesmith.models.generate import Answer, Decoding, sample
from tunesmith.models.load import load_network
from tunesmith.records import Conversation, Example, Examples, LabelledText, Message, Origin, Split, Task

HERE = Origin("made-here", 1)
GOOD = ("bright", "lovely", "superb", "warm")
BAD = ("dull", "awful", "boring", "cold")
FILLER = ("the film", "a scene", "that story", "its music", "every actor")


def never(*_: object) -> np.ndarray:
    raise AssertionError("this baseline must not ask for the model")


NO_MODEL = Resources(never, never)


def make_split(task: Task, rows: Sequence[Example], class_names: tuple[str, ...] = ()) -> Split:
    """Six tenths to train, two for validation, two for testing."""
    first, second = len(rows) * 6 // 10, len(rows) * 8 // 10
    parts = (rows[:first], rows[first:second], rows[second:])
    return Split(*(Examples(task, tuple(part), class_names, "made here", str(len(part))) for part in parts))


def make_reviews(num_rows: int = 100) -> Split:
    """Two thirds "pos"; the words tell the class."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(num_rows):
        label = "neg" if index % 3 == 0 else "pos"
        words = rng.choice(GOOD if label == "pos" else BAD, 2)
        rows.append(LabelledText(f"{rng.choice(FILLER)} was {words[0]} and {words[1]}", label, HERE))
    return make_split("classification", rows, ("neg", "pos"))


def make_ratings(num_rows: int = 100) -> Split:
    """The score is the share of good words, plus a little noise."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(num_rows):
        words = rng.choice([*GOOD, *BAD], 6)
        target = float(np.isin(words, GOOD).mean() + rng.normal(0, 0.02))
        rows.append(LabelledText(" ".join(words), target, HERE))
    return make_split("regression", rows)


def make_answers() -> Split:
    pairs = [
        ("How do I reset my password?", "Use the link on the sign-in page."),
        ("When is the office open?", "From nine to five."),
        ("Where can I park?", "Behind the building."),
        ("-", "-"),
        ("How can I reset the password?", "Click on reset."),
    ]
    talks = [Conversation((Message("user", ask), Message("assistant", say)), HERE) for ask, say in pairs]
    return make_split("generation", talks)


def make_decoder(folder: Path) -> Path:
    make_model("llama", "generation").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def value(predictions: Predictions, metric: str) -> float:
    return score(predictions, resamples=2).metrics[metric].value


def ids(parts: Split) -> np.ndarray:
    return np.array([parts.test.class_names.index(str(row.target)) for row in parts.test.rows])  # type: ignore[union-attr]


def test_majority_says_the_most_frequent_training_class() -> None:
    parts = make_reviews()
    found = find_baseline("majority").predict(parts, NO_MODEL)
    assert set(found.outputs) == {1}
    assert np.array_equal(found.targets, ids(parts))
    assert value(found, "accuracy") == pytest.approx((ids(parts) == 1).mean())


def test_majority_says_the_median_training_score_which_no_constant_beats_there() -> None:
    parts = make_ratings()
    (said,) = set(find_baseline("majority").predict(parts, NO_MODEL).outputs)
    train = np.array([row.target for row in parts.train.rows])  # type: ignore[union-attr]
    errors = [np.abs(train - constant).mean() for constant in np.linspace(0, 1, 101)]
    assert np.abs(train - said).mean() <= min(errors)


def test_tf_idf_learns_words_that_tell_the_class_and_equals_plain_scikit_learn() -> None:
    parts = make_reviews()
    found = find_baseline("tf-idf").predict(parts, NO_MODEL)
    assert value(found, "accuracy") == 1.0
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode")
    train = vectorizer.fit_transform([row.text for row in parts.train.rows])  # type: ignore[union-attr]
    labels = [row.target for row in parts.train.rows]  # type: ignore[union-attr]
    plain = LogisticRegression(C=1.0, max_iter=2000).fit(train, labels)
    said = plain.predict(vectorizer.transform([row.text for row in parts.test.rows]))  # type: ignore[union-attr]
    assert [parts.test.class_names[output] for output in found.outputs] == list(said)


def test_tf_idf_regression_beats_the_constant() -> None:
    parts = make_ratings()
    constant = value(find_baseline("majority").predict(parts, NO_MODEL), "mae")
    assert value(find_baseline("tf-idf").predict(parts, NO_MODEL), "mae") < constant / 2


def test_tf_idf_never_reads_the_test_part() -> None:
    """What the other test rows are leaves the answer to a row as it was; scores show it where classes may not."""
    parts = make_ratings()
    few = Examples("regression", parts.test.rows[:5], (), "made here", "few")
    whole = find_baseline("tf-idf").predict(parts, NO_MODEL).outputs
    alone = find_baseline("tf-idf").predict(Split(parts.train, parts.validation, few), NO_MODEL).outputs
    assert alone == pytest.approx(whole[:5], abs=1e-12)


def test_the_strength_is_chosen_on_validation() -> None:
    """Pure noise in 40 dimensions: the weakest regularisation is not what validation prefers."""
    rng = np.random.default_rng(0)
    rows = [LabelledText(f"row {index}", float(rng.normal()), HERE) for index in range(100)]
    parts = make_split("regression", rows)
    features = {row.text: rng.normal(size=40) for row in rows}
    resources = Resources(lambda texts: np.array([features[text] for text in texts]), never)
    found = find_baseline("linear-probe").predict(parts, resources)
    # Least squares fits the noise and says numbers far from the mean; a chosen ridge does so less.
    train = np.array([features[row.text] for row in parts.train.rows])
    test = np.array([features[row.text] for row in parts.test.rows])
    scores = np.array([row.target for row in parts.train.rows])
    weights = np.linalg.lstsq(train - train.mean(0), scores - scores.mean(), rcond=None)[0]
    assert np.std(found.outputs) < 0.8 * np.std(test @ weights)


@pytest.mark.parametrize("make", [make_reviews, make_ratings], ids=["classification", "regression"])
def test_linear_probe_reads_the_given_embeddings(make) -> None:  # type: ignore[no-untyped-def]
    """Embeddings that count the good words make the task linear; one asks for each text once."""
    parts, asked = make(), []

    def embed(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        good = [sum(word in GOOD for word in text.split()) for text in texts]
        return np.stack([good, np.ones(len(texts))], 1).astype(float)

    found = find_baseline("linear-probe").predict(parts, Resources(embed, never))
    if parts.test.task == "classification":
        assert value(found, "accuracy") == 1.0
    else:
        assert value(found, "spearman") > 0.95
    assert asked == [row.text for part in (parts.train, parts.validation, parts.test) for row in part.rows]


class Asked:
    """A model whose answers are wrong as often as `wrong` says of a prompting; it notes how it was asked."""

    def __init__(self, wrong: Callable[[Prompting], float] = lambda prompting: 0.0) -> None:
        self._wrong = wrong
        self.seen: list[tuple[Examples, Prompting, bool]] = []

    def __call__(self, examples: Examples, prompting: Prompting, with_answers: bool = True) -> Predictions:
        self.seen.append((examples, prompting, with_answers))
        share, num_rows = self._wrong(prompting), len(examples.rows)
        if examples.task == "generation":
            return Predictions(
                "generation", ["a"] * num_rows, ["b"] * num_rows, np.full(num_rows, share), np.ones(num_rows, dtype=int)
            )
        targets = np.zeros(num_rows, dtype=int)
        return Predictions("classification", targets, np.arange(num_rows) < share * num_rows)


@pytest.mark.parametrize("best", range(3))
@pytest.mark.parametrize("task", ["classification", "generation"])
def test_zero_shot_takes_the_wording_that_is_best_on_validation(task: Task, best: int) -> None:
    parts = make_reviews() if task == "classification" else make_answers()
    asked = Asked(lambda prompting: 0.1 if prompting.wording == WORDINGS[task][best] else 0.6)
    found = find_baseline("zero-shot").predict(parts, Resources(never, asked))
    *tried, (rows, prompting, with_answers) = asked.seen
    assert prompting == Prompting(WORDINGS[task][best])
    assert rows == parts.test
    assert with_answers
    assert [one.wording for _, one, _ in tried] == list(WORDINGS[task])
    assert all(some.rows == parts.validation.rows[:NUM_CHOOSING] and not made for some, _, made in tried)
    assert "best of 3 wordings" in found.note


@pytest.mark.parametrize("best", [1, 4, 8, 16])
def test_few_shot_shows_as_many_as_serve_best_on_validation_over_three_draws(best: int) -> None:
    parts = make_reviews()
    asked = Asked(lambda prompting: abs(len(prompting.before[0]) - best) / 20)
    found = find_baseline("few-shot").predict(parts, Resources(never, asked))
    assert len(asked.seen[-1][1].before[0]) == best
    assert [len(one.before[0]) for _, one, _ in asked.seen[:-1]] == [1] * 3 + [4] * 3 + [8] * 3 + [16] * 3
    assert len({tuple(one.before[0]) for _, one, _ in asked.seen[:-1]}) == 12, "every draw is another"
    assert not any(rows.rows == parts.test.rows for rows, _, _ in asked.seen[:-1])
    assert found.note.startswith(f"{best} rows shown")


# What answers the most similar question; as many first words as answers, of 7, 4 and 3, have in the median.
@pytest.mark.parametrize(
    ("name", "said"), [("nearest", "Use the link on the sign-in page."), ("lead", "How can I reset")]
)
def test_what_needs_no_model_to_answer(name: str, said: str) -> None:
    found = find_baseline(name).predict(make_answers(), NO_MODEL)
    assert found.outputs == [said]
    assert found.targets == ["Click on reset."]
    assert next(iter(score(found, resamples=2).metrics)) == "rouge_l"


def shown_by(name: str, parts: Split, seed: int = 0) -> Sequence[Sequence[tuple[str, str]]]:
    """What a baseline shows before each test question."""
    asked = Asked()
    find_baseline(name).predict(parts, Resources(never, asked, seed))
    return asked.seen[-1][1].before


@pytest.mark.parametrize("name", ["few-shot", "few-shot-nearest"])
def test_demonstrations_are_different_training_rows_with_their_answers(name: str) -> None:
    parts = make_reviews()
    train = {(row.text, row.target) for row in parts.train.rows}  # type: ignore[union-attr]
    for pairs in shown_by(name, parts):
        assert 1 <= len(pairs) <= 16
        assert set(pairs) <= train


def test_few_shot_shows_every_question_the_same_and_another_seed_others() -> None:
    parts = make_reviews()
    first = shown_by("few-shot", parts)
    assert len(first) == len(parts.test.rows)
    assert all(pairs == first[0] for pairs in first)
    assert shown_by("few-shot", parts) == first != shown_by("few-shot", parts, seed=1)


def test_the_most_similar_demonstration_stands_nearest_to_the_question() -> None:
    (pairs,) = shown_by("few-shot-nearest", make_answers())
    assert len(pairs) == 3
    assert pairs[-1] == ("How do I reset my password?", "Use the link on the sign-in page.")


def test_what_does_not_fit_is_left_out_from_the_first_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    shown = [[("a", "1"), ("b", "2"), ("c", "3")], [("a", "1")], []]
    assert fit_before(shown, lambda index, pairs: len(pairs) <= 1) == [[("c", "3")], [("a", "1")], []]
    assert "1 of 3 questions have less before them" in capsys.readouterr().err


def test_how_a_question_is_written() -> None:
    assert write_question("q", (), TEXT_AND_LABEL) == "Text: q\nLabel:"
    assert write_question("q", [("a", "b")], TEXT_AND_LABEL) == "Text: a\nLabel: b\n\nText: q\nLabel:"
    read = write_reading("q", ["one ", "two"], QUESTION_AND_ANSWER)
    assert read == "Use what helps of these texts.\n\none\n\ntwo\n\nQuestion: q\nAnswer:"


@pytest.mark.parametrize("name", ["few-shot", "few-shot-nearest"])
@pytest.mark.parametrize("make", [make_reviews, make_answers])
def test_a_decoder_answers_behind_demonstrations(name: str, make: Callable[[], Split], tmp_path: Path) -> None:
    """Its losses are those of the reference answers alone: as many tokens as without demonstrations."""
    parts = make()
    given = {
        "model": str(make_decoder(tmp_path / "model")),
        "data": "made-here",
        "max_generated": 1,
        "max_new_tokens": 4,
    }
    settings = CompareConfig.read(given=given)
    system, predictions = run_baseline(name, tmp_path, settings, parts)
    _, plain = run_baseline("zero-shot", tmp_path, settings, parts)
    assert system.family == BASELINES[name].family
    assert len(predictions) == len(parts.test.rows)
    if parts.test.task == "generation":
        assert predictions.targets == plain.targets
        assert np.array_equal(predictions.num_tokens, plain.num_tokens)  # type: ignore[arg-type]
        assert not np.allclose(predictions.losses, plain.losses)  # type: ignore[arg-type]
    else:
        assert np.array_equal(predictions.targets, ids(parts))


def test_the_last_question_stands_behind_its_demonstrations() -> None:
    row = Conversation(tuple(Message(role, role) for role in ("system", "user", "assistant")), HERE)
    shown = Prompting("Say. ").ask(row, [("a", "b")])
    assert shown.messages[1].content == "Say. Question: a\nAnswer: b\n\nQuestion: user\nAnswer:"
    assert (shown.messages[0], shown.messages[2]) == (row.messages[0], row.messages[2])
    assert Prompting().ask(row, ()) == row


def test_class_names_are_scored_behind_demonstrations_as_if_they_stood_in_the_text(tmp_path: Path) -> None:
    network, names = make_network("llama", "generation", tmp_path), ("w5", "w6 w7")
    shown = replace(PLAIN, before=[[("w10", "w5")]])
    found = label_logprobs(network, ask_labels(network, ["w8 w9"], names, shown), names, torch.float32)
    by_hand = ask_labels(network, ["w10\nLabel: w5\n\nText: w8 w9"], names)
    assert np.allclose(found, label_logprobs(network, by_hand, names, torch.float32))
    plain = label_logprobs(network, ask_labels(network, ["w8 w9"], names), names, torch.float32)
    assert not np.allclose(found, plain)


@pytest.mark.parametrize("name", ["rag", "rag-oracle"])
def test_a_decoder_reads_passages_and_says_what_that_costs(name: str, tmp_path: Path) -> None:
    given = {"model": str(make_decoder(tmp_path / "model")), "data": "made-here"}
    settings = CompareConfig.read(given=given | {"max_generated": 1, "max_new_tokens": 4})
    parts = make_answers()
    system, predictions = run_baseline(name, tmp_path, settings, parts)
    plain, _ = run_baseline("zero-shot", tmp_path, settings, parts)
    assert len(predictions) == len(parts.test.rows)
    assert system.prompt_tokens is not None
    assert plain.prompt_tokens is not None
    assert system.prompt_tokens > plain.prompt_tokens > 0
    assert system.answer_seconds is not None
    assert 0 < system.answer_seconds < system.total_seconds


def test_answers_agree_by_their_longest_common_subsequence() -> None:
    """By hand: 'b' stands in both, of two and four words; a word for itself is worth 1, an unknown one nothing."""
    assert agreement(["b x", "y b z q", "unlike"]).tolist() == pytest.approx([2 / 6 / 2, 2 / 6 / 2, 0])
    assert agreement(["yes", "no", "yes", "yes"]).tolist() == pytest.approx([2 / 3, 0, 2 / 3, 2 / 3])
    assert agreement(["alone"]).tolist() == [0]


def answer(text: str, logprob: float) -> Answer:
    return Answer((5, 2), text, True, (logprob, logprob))


def test_what_most_answers_say_is_chosen_and_of_level_ones_the_likeliest() -> None:
    said = [answer("no", -0.1), answer("yes", -3.0), answer("yes", -2.0), answer("perhaps", -0.1)]
    assert choose_answer(said) is said[2]
    assert choose_answer([answer("one", -2.0), answer("two", -1.0)]).text == "two"


def test_the_best_of_drawn_answers_reads_a_question_once(tmp_path: Path) -> None:
    """Its answers are among those that plain sampling gives, and the one beside which the others lie nearest."""
    given = {"model": str(make_decoder(tmp_path / "model")), "data": "made-here"}
    settings = CompareConfig.read(given=given | {"max_generated": 2, "max_new_tokens": 6, "precision": "fp32"})
    parts = make_answers()
    system, predictions = run_baseline("best-of-8", tmp_path, settings, parts)
    plain, asked = run_baseline("zero-shot", tmp_path, settings, parts)
    assert predictions.targets == asked.targets
    assert system.prompt_tokens == plain.prompt_tokens
    network = load_network(given["model"], "generation")
    wording = max((one for one in WORDINGS["generation"] if one.strip() in system.note), key=len)
    asked_rows = [Prompting(wording).ask(row, ()) for row in parts.test.rows[:2] if isinstance(row, Conversation)]
    prompts = [prompt_ids(row.messages[:-1], network.tokenizer) for row in asked_rows]
    drawn = sample(network, prompts, Decoding(6, TEMPERATURE), torch.float32, NUM_ANSWERS)
    for chosen, answers in zip(predictions.outputs, drawn, strict=False):
        texts = [one.text for one in answers]
        assert agreement(texts)[texts.index(chosen)] == max(agreement(texts))
    assert predictions.outputs[len(drawn) :] == [None] * (len(parts.test.rows) - len(drawn))
    assert f"{np.mean([sum(len(one.ids) for one in answers) for answers in drawn]):.0f} tokens" in system.note
    again = run_baseline("best-of-8", tmp_path, settings, parts)[1]
    assert again.outputs == predictions.outputs


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'tf-idf'"):
        find_baseline("tfidf")


@pytest.mark.parametrize(
    ("name", "task", "is_decoder", "part_of_reason"),
    [
        ("tf-idf", "generation", True, "is for classification and multi-label and regression, the data is for gener"),
        ("usual-tag", "multi-label", False, "is for token-classification, the data is for multi-label"),
        ("nearest", "classification", True, "is for generation"),
        ("zero-shot", "classification", False, "needs a decoder"),
        ("zero-shot", "regression", True, "is for classification and generation"),
    ],
)
def test_why_a_baseline_does_not_fit(name: str, task: Task, is_decoder: bool, part_of_reason: str) -> None:
    assert part_of_reason in BASELINES[name].why_not(task, is_decoder)


@pytest.mark.parametrize("name", BASELINES)
def test_every_row_fits_some_task_of_a_decoder(name: str) -> None:
    row = BASELINES[name]
    assert row.name == name
    assert row.tasks
    assert not any(row.why_not(task, is_decoder=True) for task in row.tasks)
