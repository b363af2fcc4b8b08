"""Labelers that do not exist, whose preference is known: what they say is marked as simulated wherever it goes."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

from tunesmith.errors import InputError
from tunesmith.feedback.database import open_database
from tunesmith.feedback.forms import Candidate, Response
from tunesmith.feedback.people import People
from tunesmith.feedback.results import read_items
from tunesmith.feedback.settings import SimulateConfig
from tunesmith.feedback.store import Store

Taste = Callable[[Candidate], float]


def read_taste(text: str) -> Taste:
    """What is preferred: the higher the number, the better the answer.

    Raises:
        InputError: not one of those that are known.
    """
    kind, sign, word = text.partition("=")
    if kind == "longer" and not sign:
        return lambda answer: len(answer.text)
    if kind == "shorter" and not sign:
        return lambda answer: -len(answer.text)
    if kind == "model" and word:
        return lambda answer: float(answer.model == word)
    if kind == "word" and word:
        return lambda answer: float(word.lower() in answer.text.lower().split())
    raise InputError(f"prefer is '{text}'; known: longer, shorter, model=NAME, word=WORD")


def respond(answers: Sequence[tuple[str, Candidate]], taste: Taste, noise: float, rng: random.Random) -> Response:
    """A ranking by taste, answers that are equally good tied; with probability `noise` in a random order instead."""
    if rng.random() < noise:
        names = sorted(name for name, _ in answers)
        rng.shuffle(names)
        return Response(levels=tuple((name,) for name in names))
    by_score: dict[float, list[str]] = {}
    for name, answer in answers:
        by_score.setdefault(taste(answer), []).append(name)
    return Response(levels=tuple(tuple(sorted(by_score[score])) for score in sorted(by_score, reverse=True)))


def simulate(config: SimulateConfig) -> int:
    """Lets simulated labelers rank what is free; returns how many rankings they made.

    Raises:
        InputError: a preference that is not known, or one of a model that no answer is of.
    """
    taste = read_taste(config.prefer)
    database = open_database(config.database)
    try:
        store, people, items = Store(database), People(database), read_items(database)
        models = {one.model for item in items.values() for one in item.candidates.values()}
        kind, _, model = config.prefer.partition("=")
        if kind == "model" and model not in models:
            raise InputError(f"prefer: no answer is of '{model}'. Models: {', '.join(sorted(models))}")
        num_made = 0
        for number in range(1, config.num_labelers + 1):
            person = people.find_or_add(f"simulated {config.prefer} {number}"[-60:], kind="simulated")
            rng = random.Random(f"{config.seed} {number}")
            lent = iter(partial(store.take_next, person.id), None)
            for shown in islice(lent, config.max_items):
                candidates = items[shown.item_id].candidates
                response = respond([(name, candidates[name]) for name, _ in shown.candidates], taste, config.noise, rng)
                store.rank(person.id, shown.item_id, shown.version, secrets.token_hex(16), response)
                num_made += 1
        return num_made
    finally:
        database.close()
