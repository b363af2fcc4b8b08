"""What a person says of an item, as the page sends it and as the store keeps it; and the items themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.errors import InputError
from tunesmith.records import Message

MOST_CANDIDATES = 9  # as many as InstructGPT showed, and as there are digit keys

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Ids = Annotated[tuple[Id, ...], Field(max_length=MOST_CANDIDATES)]
Comment = Annotated[str, Field(max_length=4000)]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer: its text, the model that made it, and what is needed to make it again."""

    text: str
    model: str
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt and the answers to be ranked. `gold` are levels of places in `candidates` known to be right."""

    prompt: tuple[Message, ...]
    candidates: tuple[Candidate, ...]
    origin: str = ""
    gold: tuple[tuple[int, ...], ...] = ()

    @property
    def id(self) -> str:
        """Of the content: the same prompt with the same answers is the same item, wherever it comes from."""
        content = [turn_fields(self.prompt), sorted(candidate.text for candidate in self.candidates)]
        return digest(json.dumps(content, ensure_ascii=True))

    def candidate_id(self, place: int) -> str:
        return digest(f"{self.id}\n{self.candidates[place].text}")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def turn_fields(prompt: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in prompt]


def clean(text: str) -> str:
    """Characters that a database refuses become replacement signs, in a model's answers and other given texts."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Response(BaseModel):
    """A ranking and what goes with it; candidates go by their ids.

    levels    best first; several in one level are a tie
    unranked  worse than all that are ranked, and not compared with one another
    all_bad   none of the answers would do
    unsafe    answers that would do harm
    ratings   1 (worst) to 7 of an answer by itself (Ouyang et al. 2022, arXiv 2203.02155, figure 12)
    answers   yes or no to the owner's questions: by candidate, by the question's number
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    levels: Annotated[tuple[Ids, ...], Field(max_length=MOST_CANDIDATES)]
    unranked: Ids = ()
    all_bad: bool = False
    unsafe: Ids = ()
    ratings: Annotated[dict[Id, Annotated[int, Field(ge=1, le=7)]], Field(max_length=MOST_CANDIDATES)] = {}
    answers: Annotated[
        dict[Id, Annotated[dict[Annotated[str, Field(pattern=r"^\d{1,2}$")], bool], Field(max_length=20)]],
        Field(max_length=MOST_CANDIDATES),
    ] = {}
    comment: Comment = ""

    def check(self, candidates: Sequence[str]) -> None:
        """Every candidate once, and something said.

        Raises:
            InputError: what does not fit the item.
        """
        named = [name for level in self.levels for name in level] + list(self.unranked)
        if sorted(named) != sorted(candidates):
            raise InputError("the ranking must name each answer of this item once, ranked or not")
        if not all(self.levels):
            raise InputError("a level of the ranking is empty. Leave it out")
        if not self.levels and not self.all_bad:
            raise InputError("nothing is ranked. Rank an answer, say that all are bad, or skip the item")
        strangers = {*self.unsafe, *self.ratings, *self.answers} - set(candidates)
        if strangers:
            raise InputError(f"'{sorted(strangers)[0]}' is no answer of this item")
        check_text(self.comment, "the comment")

    @property
    def ranks(self) -> dict[str, int | None]:
        """Rank of each candidate from 1, ties sharing one; None where it was left unranked."""
        ranked = {name: rank for rank, level in enumerate(self.levels, 1) for name in level}
        return ranked | dict.fromkeys(self.unranked)


def check_text(text: str, what: str) -> None:
    if "\0" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
        raise InputError(f"{what} has a character that cannot be stored (NUL, or half of a surrogate pair). Remove it")


@dataclass(frozen=True, slots=True)
class Shown:
    """An item as one person sees it: `candidates` (id, text) in this person's own order, models left out.

    `response` is what they said of it before, `draft` what the page sent meanwhile; `version` must come back with the
    answer, so that an older page overwrites nothing.
    """

    item_id: str
    prompt: tuple[Message, ...]
    candidates: tuple[tuple[str, str], ...]
    state: str
    version: int
    lease_until: float
    response: Mapping[str, Any] | None
    draft: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A ranking as statistics and exports see it.

    ranks    by candidate id, None where it was left unranked
    shown    candidate ids in the order in which this person saw them
    seconds  that the item was looked at; None where it is not known
    """

    event: int
    at: float
    item: str
    labeler: str
    is_simulated: bool
    is_adjudication: bool
    ranks: Mapping[str, int | None]
    shown: tuple[str, ...]
    seconds: float | None
    all_bad: bool = False
    unsafe: tuple[str, ...] = ()
    ratings: Mapping[str, int] = field(default_factory=dict)
    answers: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    comment: str = ""
