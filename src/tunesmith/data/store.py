"""Rows outside of memory: a million of them take a few dozen megabytes here, the rest lies in a file.

What is small stays in memory; the same calls serve both.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import weakref
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

from tunesmith.records import (
    Conversation,
    Example,
    Judgement,
    LabelledText,
    Message,
    Origin,
    PlainText,
    Ranking,
    SpanQuestion,
    TaggedWords,
)

# More than this many bytes go to an unnamed file in the system's temporary folder, which ends with the process.
HELD_IN_MEMORY = 64_000_000


class Blobs:
    """Byte strings, appended once, read in any order."""

    def __init__(self) -> None:
        self._file: BinaryIO = io.BytesIO()
        self._ends = array("q")
        self._is_at_end = True
        self._is_on_disk = False

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, blob: bytes) -> None:
        if not self._is_at_end:
            self._file.seek(0, os.SEEK_END)
            self._is_at_end = True
        self._file.write(blob)
        self._ends.append((self._ends[-1] if self._ends else 0) + len(blob))
        if not self._is_on_disk and self._ends[-1] > HELD_IN_MEMORY:
            self._move_to_disk()

    def _move_to_disk(self) -> None:
        held, self._is_on_disk = self._file, True
        self._take(tempfile.TemporaryFile(prefix="tunesmith-"))  # noqa: SIM115 - it lives as long as this
        held.seek(0)
        shutil.copyfileobj(held, self._file, 2**20)

    def _take(self, file: BinaryIO) -> None:
        self._file = file
        weakref.finalize(self, file.close)

    def __getitem__(self, index: int) -> bytes:
        start = self._ends[index - 1] if index else 0
        self._file.seek(start)
        self._is_at_end = False
        return self._file.read(self._ends[index] - start)

    def keep(self, path: Path) -> None:
        """Copies all into a file and a list of their ends beside it, `path` with .ends."""
        self._file.seek(0)
        self._is_at_end = False
        with path.open("wb") as file:
            shutil.copyfileobj(self._file, file, 2**20)
        with path.with_suffix(".ends").open("wb") as file:
            self._ends.tofile(file)

    @classmethod
    def open(cls, path: Path) -> Blobs:
        """What `keep` has written, to be read only."""
        blobs = cls()
        ends = path.with_suffix(".ends")
        with ends.open("rb") as file:
            blobs._ends.fromfile(file, ends.stat().st_size // blobs._ends.itemsize)
        blobs._take(path.open("rb"))
        return blobs

    def sizes(self) -> Iterator[int]:
        before = 0
        for end in self._ends:
            yield end - before
            before = end


class Stored(Sequence[Example]):
    """What rows have in common wherever they lie: those that say the same are equal."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 over what the rows say, not over where they stand."""

    @abstractmethod
    def blob(self, index: int) -> bytes:
        """A row as `decode` takes it, from 0 on."""

    @abstractmethod
    def origin(self, index: int) -> Origin:
        """Where it was read."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stored) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[type[Rows], tuple[tuple[Example, ...]]]:
        return Rows, (tuple(self),)  # for another process, which does not have the file


class Rows(Stored):
    """Examples in the order in which they were appended; each is made anew when asked for."""

    def __init__(self, rows: Iterable[Example] = ()) -> None:
        self._blobs = Blobs()
        self._files: list[str] = []
        self._file_of, self._line_of = array("i"), array("q")
        self._digest = hashlib.sha256()
        for row in rows:
            self.append(row)

    def append(self, row: Example) -> None:
        blob = encode(row)
        self._blobs.append(blob)
        self._digest.update(blob + b"\n")
        if not self._files or self._files[-1] != row.origin.file:
            self._files.append(row.origin.file)
        self._file_of.append(len(self._files) - 1)
        self._line_of.append(row.origin.line)

    @property
    def fingerprint(self) -> str:
        return self._digest.hexdigest()

    def blob(self, index: int) -> bytes:
        return self._blobs[index]

    def origin(self, index: int) -> Origin:
        return Origin(self._files[self._file_of[index]], self._line_of[index])

    def __len__(self) -> int:
        return len(self._blobs)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return decode(self._blobs[place], self.origin(place))


class Subset(Stored):
    """Some rows of others, in an order of their own; what is stored is not copied."""

    def __init__(self, rows: Sequence[Example], indices: Iterable[int]) -> None:
        self._rows = rows if isinstance(rows, Stored) else Rows(rows)
        self.indices = array("q", indices)
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(self.blob(index) + b"\n")
        self._fingerprint = digest.hexdigest()

    def blob(self, index: int) -> bytes:
        return self._rows.blob(self.indices[index])

    def origin(self, index: int) -> Origin:
        return self._rows.origin(self.indices[index])

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self._rows[self.indices[index]]


def encode(row: Example) -> bytes:
    """What a row says, as JSON: equal rows have equal bytes."""
    return json.dumps(_content(row), ensure_ascii=True).encode()


def _content(row: Example) -> object:
    """A labelled text is [text, target] and a conversation [[role, content], ...], the rest objects by kind."""
    if isinstance(row, LabelledText):
        pair = {"first": row.text, "second": row.pair, "target": row.target}
        return pair if row.pair else [row.text, row.target]
    if isinstance(row, Conversation):
        turns = _turns(row.messages)
        return {"messages": turns, "tools": row.tools} if row.tools else turns
    if isinstance(row, Ranking):
        ranking = {"prompt": _turns(row.prompt), "answers": row.answers, "ranks": row.ranks}
        return ranking | ({"labeler": row.labeler} if row.labeler else {})
    if isinstance(row, Judgement):
        return {"prompt": _turns(row.prompt), "answer": row.answer, "is_good": row.is_good}
    return _content_of_text(row)


def _content_of_text(row: TaggedWords | SpanQuestion | PlainText) -> object:
    if isinstance(row, TaggedWords):
        return {"words": row.words, "tags": row.tags}
    if isinstance(row, SpanQuestion):
        return {"question": row.question, "context": row.context, "spans": row.answers, "starts": row.starts}
    return {"text": row.text}


def _turns(messages: Sequence[Message]) -> list[list[str]]:
    return [[turn.role, turn.content, turn.more] if turn.more else [turn.role, turn.content] for turn in messages]


def decode(blob: bytes, origin: Origin) -> Example:
    content: Any = json.loads(blob)
    if isinstance(content, dict):
        return _decode_object(content, origin)
    if isinstance(content[0], str):
        return _labelled(*content, origin=origin)
    return Conversation(_messages(content), origin)


def _labelled(text: str, target: Any, pair: str = "", *, origin: Origin) -> Example:
    return LabelledText(text, tuple(target) if isinstance(target, list) else target, origin, pair)


def _decode_object(content: Any, origin: Origin) -> Example:
    if "second" in content:
        return _labelled(content["first"], content["target"], content["second"], origin=origin)
    if "messages" in content:
        return Conversation(_messages(content["messages"]), origin, content["tools"])
    if "answers" in content:
        answers, ranks = tuple(content["answers"]), tuple(content["ranks"])
        return Ranking(_messages(content["prompt"]), answers, ranks, origin, content.get("labeler", ""))
    if "answer" in content:
        return Judgement(_messages(content["prompt"]), content["answer"], content["is_good"], origin)
    return _decode_text(content, origin)


def _decode_text(content: Any, origin: Origin) -> Example:
    if "words" in content:
        return TaggedWords(tuple(content["words"]), tuple(content["tags"]), origin)
    if "spans" in content:
        spans = tuple(content["spans"]), tuple(content["starts"])
        return SpanQuestion(content["question"], content["context"], *spans, origin)
    return PlainText(content["text"], origin)


def _messages(turns: Any) -> tuple[Message, ...]:
    return tuple(Message(*turn) for turn in turns)
