"""What tuning has to beat: guesses, classical models on word counts, the model as it is.

BASELINES is the table: one row each. A baseline sees the training and validation parts and answers
the test part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tunesmith.errors import InputError, nearest
from tunesmith.evaluation.metrics import Predictions
from tunesmith.records import Conversation, Examples, LabelledText, Split, Task

Features = Callable[[list[str]], Any]

# Inverse regularisation of logistic regression, and regularisation of ridge; chosen on validation.
STRENGTHS = (0.1, 1.0, 10.0, 100.0)

WORD = r"(?u)\b\w+\b"


@dataclass(frozen=True, slots=True)
class Resources:
    """What a baseline may ask of the pretrained model; each is made only when called.

    embed           texts -> (texts, D) frozen embeddings
    label_logprobs  texts -> (texts, classes) mean log-probability of each class name as an answer
    as_is           the model's own predictions on the test part
    """

    embed: Callable[[list[str]], NDArray[np.floating[Any]]]
    label_logprobs: Callable[[list[str]], NDArray[np.floating[Any]]]
    as_is: Callable[[], Predictions]


@dataclass(frozen=True, slots=True)
class Baseline:
    """One row. `decoder_only` for what needs a model that writes."""

    name: str
    family: str
    tasks: tuple[Task, ...]
    predict: Callable[[Split, Resources], Predictions]
    decoder_only: bool = False

    def why_not(self, task: Task, is_decoder: bool) -> str:
        """Why it does not fit, or nothing."""
        if task not in self.tasks:
            return f"is for {' and '.join(self.tasks)}, the data is for {task}"
        if self.decoder_only and not is_decoder:
            return "needs a decoder, the model is an encoder"
        return ""


def predict_majority(parts: Split, _: Resources) -> Predictions:
    """The most frequent class, or the median score, which has the least absolute error."""
    if parts.test.task == "regression":
        return _fit_predict(parts, _no_features, [DummyRegressor(strategy="median")])
    return _fit_predict(parts, _no_features, [DummyClassifier(strategy="most_frequent")])


def predict_tfidf(parts: Split, _: Resources) -> Predictions:
    """TF-IDF of words and word pairs, then logistic regression or ridge."""
    # A word may be one character long: in some scripts most are.
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=WORD, sublinear_tf=True, strip_accents="unicode")
    vectorizer.fit(_texts(parts.train))
    return _fit_predict(parts, vectorizer.transform, _linear_models(parts.test.task))


def predict_probe(parts: Split, resources: Resources) -> Predictions:
    """The same linear models on the frozen model's embeddings."""
    models = [make_pipeline(StandardScaler(), model) for model in _linear_models(parts.test.task, 0.01)]
    return _fit_predict(parts, resources.embed, models)


def predict_zero_shot(parts: Split, resources: Resources) -> Predictions:
    """The class whose name the untuned decoder finds likeliest as an answer; for generation, its answers."""
    if parts.test.task == "generation":
        return resources.as_is()
    chosen = resources.label_logprobs(_texts(parts.test)).argmax(1)
    return Predictions("classification", _targets(parts.test), chosen)


def predict_nearest(parts: Split, _: Resources) -> Predictions:
    """The answer to the most similar training question, by TF-IDF of word parts."""
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    known = vectorizer.fit_transform(_questions(parts.train))
    closest = np.asarray((vectorizer.transform(_questions(parts.test)) @ known.T).argmax(1)).ravel()
    answers = _answers(parts.train)
    return Predictions("generation", _answers(parts.test), [answers[index] for index in closest])


BASELINES: dict[str, Baseline] = {
    row.name: row
    for row in (
        Baseline("majority", "guess", ("classification", "regression"), predict_majority),
        Baseline("tf-idf", "classical", ("classification", "regression"), predict_tfidf),
        Baseline("linear-probe", "classical", ("classification", "regression"), predict_probe),
        Baseline("nearest", "retrieval", ("generation",), predict_nearest),
        Baseline("zero-shot", "prompting", ("classification", "generation"), predict_zero_shot, decoder_only=True),
    )
}


def find_baseline(name: str) -> Baseline:
    if name not in BASELINES:
        raise InputError(f"unknown baseline '{name}': {nearest(name, BASELINES)}")
    return BASELINES[name]


def _linear_models(task: Task, scale: float = 1.0) -> list[Any]:
    """From strong to weak regularisation."""
    if task == "regression":
        return [Ridge(alpha=1 / (strength * scale)) for strength in STRENGTHS]
    return [LogisticRegression(C=strength * scale, max_iter=2000) for strength in STRENGTHS]


def _fit_predict(parts: Split, features: Features, models: list[Any]) -> Predictions:
    """The model that does best on validation, judged on test."""
    train, validation, test = (features(_texts(part)) for part in (parts.train, parts.validation, parts.test))
    fitted = [clone(model).fit(train, _targets(parts.train)) for model in models]
    # `score` is accuracy for classifiers and R2 for regressors: higher is better for both.
    best = max(fitted, key=lambda model: model.score(validation, _targets(parts.validation)))
    task = parts.test.task
    return Predictions(task, _targets(parts.test), best.predict(test))


def _no_features(texts: list[str]) -> NDArray[np.floating[Any]]:
    return np.zeros((len(texts), 1))


def _texts(examples: Examples) -> list[str]:
    return [row.text for row in examples.rows if isinstance(row, LabelledText)]


def _targets(examples: Examples) -> NDArray[Any]:
    ids = {name: index for index, name in enumerate(examples.class_names)}
    targets = [row.target for row in examples.rows if isinstance(row, LabelledText)]
    return np.array([ids[target] if isinstance(target, str) else target for target in targets])


def _questions(examples: Examples) -> list[str]:
    rows = [row for row in examples.rows if isinstance(row, Conversation)]
    return ["\n".join(turn.content for turn in row.messages[:-1]) for row in rows]


def _answers(examples: Examples) -> list[str]:
    return [row.messages[-1].content for row in examples.rows if isinstance(row, Conversation)]
