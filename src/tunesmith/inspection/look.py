"""A text in one model, or in two beside each other: everything that can be seen, as plain records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from tunesmith.errors import InputError
from tunesmith.inspection import attention, embeddings
from tunesmith.inspection.changes import Change, find_changes
from tunesmith.inspection.embeddings import Map, Numbers, Way
from tunesmith.inspection.lens import lens_words
from tunesmith.inspection.next_word import answer_logprobs, entropy_bits, rank_of, shape_distribution
from tunesmith.inspection.reading import Given, Reading, Side, read
from tunesmith.inspection.subject import Subject, open_subject
from tunesmith.inspection.tokens import Token, characters_per_token, tokens_of


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a sampler makes of a distribution; as it stands it is the model's own."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        good = 0 <= self.temperature < math.inf and self.top_k >= 0 and 0 < self.top_p <= 1
        if not good:
            raise InputError(
                f"temperature {self.temperature}, top_k {self.top_k}, top_p {self.top_p}: the temperature must be 0 or "
                "more, top_k 0 (all) or more, top_p more than 0 and at most 1"
            )


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its probability in each model, and the first's less the second's."""

    id: int
    text: str
    probabilities: list[float | None]
    difference: float | None


@dataclass(frozen=True, slots=True)
class NextWord:
    """entropies in bits; `rests` what all words not shown hold; `ranks` of the word that stands there, by the model as
    it is, or None where none does."""

    place: int
    words: list[Word]
    entropies: list[float]
    rests: list[float]
    true: str | None
    ranks: list[int | None]


@dataclass(frozen=True, slots=True)
class Said:
    """A token of the answer with its log-probability in nats in each model."""

    token: Token
    logprobs: list[float]
    difference: float | None


@dataclass
class Inspection:
    """`readings` has one for each model: the one that is looked at, and the one beside it. A notebook shows tokens and
    the next word; `to_plain()` is what `--json` prints."""

    given: Given
    readings: list[Reading]
    changes_found: list[Change] | None = field(default=None, repr=False)

    @property
    def names(self) -> list[str]:
        return [reading.subject.name for reading in self.readings]

    @property
    def notes(self) -> list[str]:
        """What was left out, and why."""
        found = [f"{reading.subject.name}: {note}" for reading in self.readings for note in reading.notes]
        if not self.is_alike:
            found.append("the two models divide the text differently, so their numbers are not subtracted")
        return found

    @property
    def is_alike(self) -> bool:
        """Whether all models read the same ids."""
        first = self.readings[0]
        return all((other.ids, other.source) == (first.ids, first.source) for other in self.readings)

    @property
    def has_words(self) -> bool:
        return bool(self.speaking)

    @property
    def speaking(self) -> list[Reading]:
        """Those that predict words, and the same ones: what `next_word` has a column for."""
        found = [reading for reading in self.readings if reading.logits is not None]
        return found if self.is_alike else found[:1]

    def tokens(self, side: Side = "own", which: int = 0) -> list[Token]:
        reading = self.readings[which]
        if side not in reading.tokens_of:
            raise InputError(f"'{reading.subject.name}' reads one text; it has no {side} tokens")
        return tokens_of(reading.tokens_of[side], reading.subject.tokenizer)

    def characters_per_token(self) -> list[float]:
        """Of the text alone, without special tokens and template."""
        text = self.given.text
        counts = [len(each.subject.tokenizer(text, add_special_tokens=False)["input_ids"]) for each in self.readings]
        return [characters_per_token(text, count) for count in counts]

    def numbers(self, place: int = 0, count: int = 8) -> list[Numbers]:
        """The numbers of a token, in each model."""
        return [embeddings.numbers_of(reading, place, count) for reading in self.readings]

    def next_word(self, place: int | None = None, count: int = 10, sampling: Sampling | None = None) -> NextWord:
        """What comes after a place (the last one); of an encoder, what could stand at a place, which is masked for it.

        Raises:
            InputError: no such place, or no model that has words.
        """
        speaking = self.speaking
        if not speaking:
            raise InputError(f"'{self.names[0]}' has no head for words, so it predicts none")
        at = _place(speaking[0], place)
        drawn = sampling or Sampling()
        logits = self.logits_at(at)
        shaped = [shape_distribution(each, drawn.temperature, drawn.top_k, drawn.top_p) for each in logits]
        best = {int(token) for each in shaped for token in each.topk(min(count, len(each))).indices if each[token] > 0}
        order = sorted(best, key=lambda token: [-float(each[token]) for each in shaped])
        texts = [token.text for token in tokens_of(order, speaking[0].subject.tokenizer)]
        words = [
            _word(token, text, [float(p[token]) for p in shaped]) for token, text in zip(order, texts, strict=True)
        ]
        true = self.true_word(at)
        return NextWord(
            at,
            words,
            [entropy_bits(each) for each in shaped],
            [max(0.0, 1 - float(each[order].sum())) for each in shaped],
            None if true is None else tokens_of([true], speaking[0].subject.tokenizer)[0].text,
            [None if true is None else rank_of(each, true) for each in logits],
        )

    def logits_at(self, place: int) -> list[torch.Tensor]:
        """(V,) of each model that speaks: what comes after a place, or of an encoder what could stand there."""
        asked = [_masked(reading, place, self.given) for reading in self.speaking]
        return [reading.logits[place] for reading in asked if reading.logits is not None]

    def true_word(self, place: int) -> int | None:
        """The word that stands where one was predicted."""
        return _true_next(self.speaking[0], place)

    @property
    def can_be_said(self) -> bool:
        """Whether there is an answer, and all models say how likely it is."""
        return bool(self.given.answer) and self.is_alike and len(self.speaking) == len(self.readings)

    def said(self) -> list[Said]:
        """The answer token by token.

        Raises:
            InputError: no answer was given, or the model has no words.
        """
        first = self.readings[0]
        if not self.given.answer or not self.is_alike:
            raise InputError("give an --answer to see how likely it was, and two models of the same tokenizer")
        if any(reading.logits is None for reading in self.readings):
            raise InputError("a model without a head for words says nothing of an answer")
        start, tokens = first.num_given, self.tokens()
        each = [answer_logprobs(reading.logits, reading.ids, start).tolist() for reading in self.readings]  # type: ignore[arg-type]
        return [
            Said(token, list(values), values[0] - values[1] if len(values) == 2 else None)
            for token, *values in zip(tokens[start:], *each, strict=True)
        ]

    def head(self, layer: int, head: int = -1, side: Side = "own", which: int = 0) -> list[list[float]]:
        """(T, S) attention of one head, or of the mean of a layer's heads."""
        rows: list[list[float]] = attention.head_weights(self.readings[which], side, layer, head).tolist()
        return rows

    def grid(self, side: Side = "own", which: int = 0) -> list[list[list[list[float]]]]:
        """(L, H, t, s) all heads as thumbnails."""
        small: list[list[list[list[float]]]] = attention.thumbnails(self.readings[which], side).tolist()
        return small

    def rollout(self, side: Side = "own", which: int = 0) -> list[list[float]]:
        rows: list[list[float]] = attention.rollout(self.readings[which], side).tolist()
        return rows

    def occlusion(self, place: int = -1) -> list[list[float]]:
        """What each token counts for, in each model."""
        return [attention.occlusion(reading, place).tolist() for reading in self.readings]

    def lens(self) -> list[list[list[tuple[str, float]]]]:
        """By model, layer and place: the likeliest word and its probability."""
        return [lens_words(reading) for reading in self.readings if reading.logits is not None]

    def changes(self) -> list[Change]:
        """Where the first model's weights differ from the second's.

        Raises:
            InputError: there is no second.
        """
        if len(self.readings) < 2:
            raise InputError("changes are seen beside the model that was tuned. Give it as --beside")
        if self.changes_found is None:
            self.changes_found = find_changes(self.readings[1].subject, self.readings[0].subject)
        return self.changes_found

    def map(self, texts: Sequence[str] = (), way: Way = "pca") -> list[Map]:
        """Texts in two dimensions, in each model; without any, the last states of this text's tokens."""
        if texts:
            vectors = [embeddings.text_vectors(reading.subject, texts) for reading in self.readings]
        else:
            vectors = [reading.states[-1].float().cpu().numpy() for reading in self.readings]
        return [embeddings.map_vectors(each, way) for each in vectors]

    def to_plain(self, place: int | None = None, count: int = 10, sampling: Sampling | None = None) -> dict[str, Any]:
        """Tokens, next word and answer; the rest is asked for by name."""
        found: dict[str, Any] = {
            "names": self.names,
            "notes": self.notes,
            "tokens": [],
            "next_word": None,
            "said": None,
        }
        found["tokens"] = [[asdict(token) for token in self.tokens(which=at)] for at in range(len(self.readings))]
        found["characters_per_token"] = self.characters_per_token()
        if self.has_words:
            found["next_word"] = asdict(self.next_word(place, count, sampling))
        if self.can_be_said:
            found["said"] = [asdict(said) for said in self.said()]
        return found

    def _repr_html_(self) -> str:
        from tunesmith.pages import load_template

        values = {"inspection": self, "word": self.next_word() if self.has_words else None}
        return load_template("tunesmith.inspection", "notebook.html.j2").render(**values)


def inspect(model: str, text: str, beside: str | None = None, answer: str = "", *, chat: bool = False) -> Inspection:
    """Looks at what a model makes of a text, and another one, most often its base, beside it.

    Args:
        model: a run folder, or a model by catalogue name, folder or hub name.
        text: what is read; of an encoder-decoder the source.
        beside: a second model, read with the same text.
        answer: words that go on after the text, whose probability is then seen; of an encoder-decoder the target.
        chat: the text is a question, put as the model's chat template puts it.

    Raises:
        InputError: what was given cannot be used; says what, where, and how to mend it.
    """
    subjects = [open_subject(name) for name in (model, beside) if name is not None]
    return look(subjects, Given(text, answer, chat))


def look(subjects: Sequence[Subject], given: Given) -> Inspection:
    """As `inspect`, with models that are open already."""
    return Inspection(given, [read(subject, given) for subject in subjects])


def _word(token: int, text: str, probabilities: list[float]) -> Word:
    difference = probabilities[0] - probabilities[1] if len(probabilities) == 2 else None
    return Word(token, text, list(probabilities), difference)


def _place(reading: Reading, place: int | None) -> int:
    """By default the last place; of an encoder the first mask, or the last token that is a word."""
    ids, tokenizer = reading.ids, reading.subject.tokenizer
    if place is not None:
        if not -len(ids) <= place < len(ids):
            raise InputError(f"there are places 0 to {len(ids) - 1}, not {place}")
        return place % len(ids)
    if reading.subject.family != "encoder":
        return len(ids) - 1
    if tokenizer.mask_token_id in ids:
        return ids.index(tokenizer.mask_token_id)
    words = [at for at, token in enumerate(ids) if token not in tokenizer.all_special_ids]
    return words[-1] if words else 0


def _masked(reading: Reading, place: int, given: Given) -> Reading:
    """Of an encoder the same text with a mask at the place; others predict what is not there yet."""
    mask = reading.subject.tokenizer.mask_token_id
    if reading.subject.family != "encoder" or mask is None or reading.ids[place] == mask:
        return reading
    return read(reading.subject, given, ids=(*reading.ids[:place], mask, *reading.ids[place + 1 :]))


def _true_next(reading: Reading, place: int) -> int | None:
    """The word that stands where one was predicted."""
    if reading.subject.family == "encoder":
        found = reading.ids[place]
        return None if found == reading.subject.tokenizer.mask_token_id else found
    return reading.ids[place + 1] if place + 1 < len(reading.ids) else None
