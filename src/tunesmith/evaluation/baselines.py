"""What tuning has to beat: guesses, classical models on word counts, the model as it is.

BASELINES is the table: one row each. A baseline sees the training and validation parts and answers
the test part.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tunesmith.errors import InputError, nearest
from tunesmith.evaluation.predictions import Predictions
from tunesmith.evaluation.prompted import (
    Resources,
    predict_best_of,
    predict_few_shot,
    predict_few_shot_nearest,
    predict_rag,
    predict_rag_oracle,
    predict_zero_shot,
)
from tunesmith.evaluation.prompting import likeness
from tunesmith.records import Conversation, Examples, LabelledText, Ranking, SpanQuestion, Split, TaggedWords, Task

Features = Callable[[list[LabelledText]], Any]

# Inverse regularisation of logistic regression, and regularisation of ridge; chosen on validation.
STRENGTHS = (0.1, 1.0, 10.0, 100.0)

WORD = r"(?u)\b\w+\b"


# The family of what nobody could use: it knows the right answers.
BOUND = "bound"


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
    """The most frequent class, or the median score, which has the least absolute error.

    Of classes of which any number may hold the most frequent one alone; the most frequent tag for every word; the most
    frequent answer to all questions, which may be none.
    """
    if parts.test.task == "extractive-qa":
        usual = Counter(row.answers[0] if row.answers else "" for row in _asked(parts.train)).most_common(1)[0][0]
        rows = _asked(parts.test)
        return Predictions("extractive-qa", [row.answers for row in rows], [usual] * len(rows))
    if parts.test.task == "token-classification":
        usual = Counter(tag for row in _tagged(parts.train) for tag in row.tags).most_common(1)[0][0]
        return _tag(parts, lambda word: usual)
    if parts.test.task == "multi-label":
        chosen = np.zeros(len(parts.test.class_names), dtype=bool)
        chosen[targets_of(parts.train).sum(0).argmax()] = True
        return Predictions("multi-label", targets_of(parts.test), np.tile(chosen, (len(parts.test.rows), 1)))
    if parts.test.task == "regression":
        return _fit_predict(parts, _no_features, [DummyRegressor(strategy="median")])
    return _fit_predict(parts, _no_features, [DummyClassifier(strategy="most_frequent")])


def predict_usual_tag(parts: Split, _: Resources) -> Predictions:
    """The tag that each word has most often in training; for unknown words the most frequent of all."""
    tags: dict[str, Counter[str]] = defaultdict(Counter)
    for row in _tagged(parts.train):
        for word, tag in zip(row.words, row.tags, strict=True):
            tags[word][tag] += 1
    usual = {word: found.most_common(1)[0][0] for word, found in tags.items()}
    otherwise = sum(tags.values(), Counter()).most_common(1)[0][0]
    return _tag(parts, lambda word: usual.get(word, otherwise))


def predict_tfidf(parts: Split, _: Resources) -> Predictions:
    """TF-IDF of words and word pairs, then logistic regression or ridge."""
    # A word may be one character long: in some scripts most are.
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=WORD, sublinear_tf=True, strip_accents="unicode")
    vectorizer.fit(_texts(parts.train))
    return _fit_predict(
        parts, lambda rows: vectorizer.transform([row.whole for row in rows]), _linear_models(parts.test.task)
    )


def predict_probe(parts: Split, resources: Resources) -> Predictions:
    """The same linear models on the frozen model's embeddings."""
    models = [make_pipeline(StandardScaler(), model) for model in _linear_models(parts.test.task, 0.01)]
    return _fit_predict(
        parts, lambda rows: resources.embed([(row.text, row.pair) if row.pair else row.text for row in rows]), models
    )


def predict_nearest(parts: Split, _: Resources) -> Predictions:
    """The answer to the most similar training question, by TF-IDF of word parts."""
    closest = np.asarray(likeness(_questions(parts.test), _questions(parts.train)).argmax(1)).ravel()
    answers = _answers(parts.train)
    return Predictions("generation", _answers(parts.test), [answers[index] for index in closest])


def predict_lead(parts: Split, _: Resources) -> Predictions:
    """As many first words of what is given as answers in training have in the median: what a summary has to beat."""
    size = int(np.median([len(answer.split()) for answer in _answers(parts.train)]))
    said = [" ".join(question.split()[:size]) for question in _questions(parts.test)]
    return Predictions("generation", _answers(parts.test), said)


def predict_sliding_window(parts: Split, _: Resources) -> Predictions:
    """As many words as answers in training mostly have, none of them the question's, where most of the question's words
    stand nearby. Where no word of the question stands in the passage that is no answer, if there are such questions."""
    taught = (row.answers[0].split() for row in _asked(parts.train) if row.answers)
    usual = Counter(map(len, taught)).most_common(1)
    size = usual[0][0] if usual else 1
    rows = _asked(parts.test)
    said = [find_window(row.question, row.context, size) for row in rows]
    if not parts.test.class_names:
        said = [window or row.context for window, row in zip(said, rows, strict=True)]
    return Predictions("extractive-qa", [row.answers for row in rows], said)


def find_window(question: str, context: str, size: int) -> str:
    """The `size` words around which the question's words weigh most, each log(1 + 1 / how often it stands in the
    passage) (Richardson et al. 2013, MCTest, algorithm 1) by how many words it is away; nothing where there is none."""
    words = list(re.finditer(WORD, context))
    names, asked = [word[0].casefold() for word in words], set(re.findall(WORD, question.casefold()))
    counts = Counter(names)
    weight_W = np.array([math.log1p(1 / counts[name]) if name in asked else 0.0 for name in names])
    place_W = np.arange(len(words))
    best, found = 0.0, ""
    for start in range(len(words) - size + 1):
        last = start + size - 1
        if weight_W[start : last + 1].any():
            continue
        away_W = np.maximum(1, np.where(place_W < start, start - place_W, place_W - last))
        score = float((weight_W / away_W).sum())
        if score > best:
            best, found = score, context[words[start].start() : words[last].end()]
    return found


def predict_longer(parts: Split, _: Resources) -> Predictions:
    """The longer answer is the better one."""
    rows = [row for row in parts.test.rows if isinstance(row, Ranking)]
    lengths = [tuple(len(answer) for answer in row.answers) for row in rows]
    return Predictions("ranking", [row.ranks for row in rows], lengths)


ASKED: tuple[Task, ...] = ("classification", "generation")
OF_TEXTS: tuple[Task, ...] = ("classification", "multi-label", "regression")

BASELINES: dict[str, Baseline] = {
    row.name: row
    for row in (
        Baseline("majority", "guess", (*OF_TEXTS, "token-classification", "extractive-qa"), predict_majority),
        Baseline("usual-tag", "classical", ("token-classification",), predict_usual_tag),
        Baseline("tf-idf", "classical", OF_TEXTS, predict_tfidf),
        Baseline("linear-probe", "classical", OF_TEXTS, predict_probe),
        Baseline("lead", "guess", ("generation",), predict_lead),
        Baseline("nearest", "retrieval", ("generation",), predict_nearest),
        Baseline("sliding-window", "classical", ("extractive-qa",), predict_sliding_window),
        Baseline("longer-wins", "guess", ("ranking",), predict_longer),
        Baseline("zero-shot", "prompting", ASKED, predict_zero_shot, decoder_only=True),
        Baseline("best-of-8", "prompting", ("generation",), predict_best_of, decoder_only=True),
        Baseline("few-shot", "prompting", ASKED, predict_few_shot, decoder_only=True),
        Baseline("few-shot-nearest", "retrieval", ASKED, predict_few_shot_nearest, decoder_only=True),
        Baseline("rag", "retrieval", ("generation",), predict_rag, decoder_only=True),
        Baseline("rag-oracle", BOUND, ("generation",), predict_rag_oracle, decoder_only=True),
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
    models = [LogisticRegression(C=strength * scale, max_iter=2000) for strength in STRENGTHS]
    return [OneVsRestClassifier(model) for model in models] if task == "multi-label" else models


def _fit_predict(parts: Split, features: Features, models: list[Any]) -> Predictions:
    """The model that does best on validation, judged on test."""
    train, validation, test = (features(_labelled(part)) for part in (parts.train, parts.validation, parts.test))
    with warnings.catch_warnings():
        # A class that no training row has, or every one, is answered so; whoever reads the table sees it in its F1.
        warnings.filterwarnings("ignore", "Label .* is present in all training examples", UserWarning)
        fitted = [clone(model).fit(train, targets_of(parts.train)) for model in models]
    best = max(fitted, key=lambda model: _quality(model, validation, parts.validation))
    task = parts.test.task
    chances = _every_class(best, test, len(parts.test.class_names)) if task == "classification" else None
    return Predictions(task, targets_of(parts.test), best.predict(test), probabilities=chances)


def _every_class(model: Any, features: Any, count: int) -> NDArray[np.floating[Any]]:
    """(rows, C): a class that no training row has is never likely."""
    known = model.predict_proba(features)
    chances = np.zeros((len(known), count))
    chances[:, model.classes_] = known
    return chances


def _quality(model: Any, features: Any, examples: Examples) -> float:
    """Higher is better: `score` is accuracy for classifiers and R2 for regressors."""
    if examples.task == "multi-label":
        return float(f1_score(targets_of(examples), model.predict(features), average="micro", zero_division=0.0))
    return float(model.score(features, targets_of(examples)))


def _no_features(rows: list[LabelledText]) -> NDArray[np.floating[Any]]:
    return np.zeros((len(rows), 1))


def _labelled(examples: Examples) -> list[LabelledText]:
    return [row for row in examples.rows if isinstance(row, LabelledText)]


def _texts(examples: Examples) -> list[str]:
    return [row.whole for row in _labelled(examples)]


def _tagged(examples: Examples) -> list[TaggedWords]:
    return [row for row in examples.rows if isinstance(row, TaggedWords)]


def _asked(examples: Examples) -> list[SpanQuestion]:
    return [row for row in examples.rows if isinstance(row, SpanQuestion)]


def _tag(parts: Split, tag_of: Callable[[str], str]) -> Predictions:
    rows = _tagged(parts.test)
    return Predictions(
        "token-classification", [row.tags for row in rows], [tuple(map(tag_of, row.words)) for row in rows]
    )


def targets_of(examples: Examples) -> NDArray[Any]:
    """What is right of each labelled row: a class number, whether each label holds, or a number."""
    return np.array([_target(row.target, examples.class_names) for row in _labelled(examples)])


def _target(target: str | float | tuple[str, ...], class_names: Sequence[str]) -> Any:
    if isinstance(target, tuple):
        return [name in target for name in class_names]
    return class_names.index(target) if isinstance(target, str) else target


def _questions(examples: Examples) -> list[str]:
    rows = [row for row in examples.rows if isinstance(row, Conversation)]
    return ["\n".join(turn.content for turn in row.messages[:-1]) for row in rows]


def _answers(examples: Examples) -> list[str]:
    return [row.messages[-1].content for row in examples.rows if isinstance(row, Conversation)]
