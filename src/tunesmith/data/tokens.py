"""Tokenized rows outside of memory, and kept from one run to the next.

A row is its ids as 32-bit integers; a trained id t is written as ~t, which is negative.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunesmith.assets import cache_root
from tunesmith.data.ids import Ids
from tunesmith.data.store import Blobs
from tunesmith.data.targets import Targets
from tunesmith.records import Examples, Target, TokenizedExample
from tunesmith.storage import SEAL, find_damage, sealed

KEPT_FROM = 20_000  # rows; fewer are made again sooner than they are found
MOST_KEPT = 20_000_000_000  # bytes in the cache; the oldest go first
FORMAT = 5


@dataclass(frozen=True, slots=True)
class Signal:
    """What a tokenized data set teaches, in rows and tokens."""

    num_rows: int
    num_tokens: int
    num_trained: int
    num_cut_rows: int
    num_cut_tokens: int
    longest: int
    num_words: int = 0  # words that are judged
    num_lost: int = 0  # words that were cut off with their tags
    num_answers: int = 0  # of rankings
    num_questions: int = 0  # whose answers are to be found in windows
    num_without: int = 0  # windows without their answer

    def __str__(self) -> str:
        text = f"{self.num_rows:,} rows, {self.num_tokens:,} tokens, longest row {self.longest:,}"
        if self.num_trained:
            text += f"; {self.num_trained:,} tokens trained, {self.num_tokens - self.num_trained:,} context only"
        if self.num_words:
            text += f"; {self.num_words:,} words judged, each at its first token"
        if self.num_answers:
            text += f"; {self.num_answers:,} answers, set against those to the same prompt"
        if self.num_questions:
            text += f"; windows of {self.num_questions:,} questions, {self.num_without:,} without an answer in them"
        if self.num_cut_rows:
            text += f"; {self.num_cut_rows:,} rows cut by {self.num_cut_tokens:,} tokens"
        if self.num_lost:
            text += f", {self.num_lost:,} words lost"
        return text


class TokenRows(Sequence[TokenizedExample]):
    """Tokenized rows in order; each is made anew when asked for.

    Beside the ids there is one number a row of each kind:

    cuts      tokens that were cut off
    examples  its index among the examples, another than its own where others were left out before
    taught    trained tokens, or judged words
    lasts     the last trained id, -1 when none is
    firsts    the first id, seconds the second one; -1 when there is none
    types     where tokens of type 1 begin, 0 when none is
    losts     words that were cut off with their tags

    `start` is that of all rows (`TokenizedExample.start`).
    """

    COLUMNS = ("cuts", "examples", "taught", "lasts", "firsts", "seconds", "types", "losts")

    def __init__(self, start: int | None = None) -> None:
        self.start = start
        self._blobs = Blobs()
        self._targets, self._answers, self._offsets = Targets(), Targets(), Targets()
        self.cuts, self.examples, self.taught = array("q"), array("q"), array("q")
        self.lasts, self.firsts, self.seconds = array("q"), array("q"), array("q")
        self.types, self.losts = array("q"), array("q")

    def extend(self, made: Ids | tuple[Ids, ...] | None, example: int) -> None:
        """What one example became: a row, several, or none."""
        for row in (made,) if isinstance(made, Ids) else made or ():
            self.append(row, example)

    def append(self, row: Ids, example: int) -> None:
        """A row after the others, made of the example of that index."""
        ids_T, trained_T = row.ids, row.trained
        trained_N, signed_T = ids_T[trained_T], np.where(trained_T, ~ids_T, ids_T)
        self._blobs.append(signed_T.tobytes())
        self._targets.append(row.target)
        self._answers.append(row.answers or None)
        self._offsets.append(row.offsets or None)
        self.cuts.append(row.num_cut)
        self.examples.append(example)
        self.taught.append(len(trained_N))
        self.lasts.append(int(trained_N[-1]) if len(trained_N) else -1)
        self.firsts.append(int(ids_T[0]) if len(ids_T) else -1)
        self.seconds.append(int(ids_T[1]) if len(ids_T) > 1 else -1)
        self.types.append(row.second_at)
        self.losts.append(row.num_lost)

    def __len__(self) -> int:
        return len(self._blobs)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenizedExample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | Sequence[TokenizedExample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        signed_T = np.frombuffer(self._blobs[place], dtype=np.int32)
        trained_T = signed_T < 0
        ids = tuple(np.where(trained_T, ~signed_T, signed_T).tolist())
        target, cut, second_at = self._targets[place], self.cuts[place], self.types[place]
        borders, offsets = _whole(self._answers[place]), _whole(self._offsets[place])
        trained = tuple(trained_T.tolist())
        return TokenizedExample(ids, trained, target, cut, place, second_at, self.start, borders, offsets)

    def aimed(self, targets: Sequence[Target]) -> TokenRows:
        """The same rows with other targets."""
        made = copy(self)
        made._targets = Targets()
        for target in targets:
            made._targets.append(target)
        return made

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [size // 4 for size in self._blobs.sizes()]

    @property
    def signal(self) -> Signal:
        lengths = self.lengths
        num_answers = sum(size // 4 for size in self._answers.sizes())
        has_spans = any(self._offsets.sizes())
        has_words = self._targets.are_many and not num_answers and not has_spans
        without = sum(self._targets[row] == (0, 0) for row in range(len(self))) if has_spans else 0
        return Signal(
            num_rows=len(self),
            num_tokens=sum(lengths),
            num_trained=0 if self._targets.are_many else sum(self.taught),
            num_cut_rows=sum(cut > 0 for cut in self.cuts),
            num_cut_tokens=sum(self.cuts),
            longest=max(lengths, default=0),
            num_words=sum(self.taught) if has_words else 0,
            num_lost=sum(self.losts),
            num_answers=num_answers,
            num_questions=len(set(self.examples)) if has_spans else 0,
            num_without=without,
        )

    def keep(self, folder: Path) -> None:
        """Writes all into files."""
        self._blobs.keep(folder / "ids")
        np.save(folder / "table.npy", np.array([getattr(self, name) for name in self.COLUMNS], dtype=np.int64))
        self._targets.keep(folder / "targets")
        self._answers.keep(folder / "answers")
        self._offsets.keep(folder / "offsets")

    @classmethod
    def open(cls, folder: Path) -> TokenRows:
        """What `keep` has written."""
        made = cls()
        made._blobs = Blobs.open(folder / "ids")
        for name, column in zip(cls.COLUMNS, np.load(folder / "table.npy", allow_pickle=False), strict=True):
            getattr(made, name).frombytes(column.tobytes())
        made._targets = Targets.open(folder / "targets")
        made._answers = Targets.open(folder / "answers")
        made._offsets = Targets.open(folder / "offsets")
        return made


def _whole(numbers: Target) -> tuple[int, ...]:
    return tuple(map(int, numbers)) if isinstance(numbers, tuple) else ()


def is_kept(examples: Examples) -> bool:
    """Whether there are enough rows; and those without a fingerprint cannot be told from others."""
    return len(examples.rows) >= KEPT_FROM and bool(examples.fingerprint)


def find_kept(examples: Examples, name: str) -> TokenRows | None:
    """The tokenized rows of an earlier run, when there are any and they are whole."""
    folder = cache_root() / "tokens" / name
    if not (folder / SEAL).is_file():
        return None
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        if find_damage(folder, seal["files"]):
            return None
        return TokenRows.open(folder)
    except (OSError, ValueError, KeyError):
        return None


def keep(rows: TokenRows, name: str) -> None:
    """For the next run; what does not fit on the disk is not kept."""
    folder = cache_root() / "tokens" / name
    if folder.exists():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with sealed(folder) as partial:
            rows.keep(partial)
        _make_room(folder.parent, folder)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)


def _make_room(root: Path, newest: Path) -> None:
    folders = sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in folders}
    for folder in folders:
        if sum(sizes.values()) <= MOST_KEPT:
            return
        if folder != newest:
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]


def name_of(examples: Examples, tokenizer: PreTrainedTokenizerBase, *settings: object) -> str:
    """A digest of all that decides about the ids: rows, classes, tokenizer, template and settings."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    parts = (
        FORMAT,
        examples.task,
        examples.fingerprint,
        examples.class_names,
        type(tokenizer).__name__,
        vocabulary,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        settings,
    )
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
