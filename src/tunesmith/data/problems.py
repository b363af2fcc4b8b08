"""What is wrong with rows, gathered over a whole file before anything is said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from tunesmith.errors import InputError
from tunesmith.records import Origin
from tunesmith.storage import to_plain

SHOWN_PROBLEMS = 20


class RowError(ValueError):
    """What is wrong with one row; who reads it adds the place."""


class Problems:
    """Bad rows: the first SHOWN_PROBLEMS in words, all of them counted.

    With `rejects` bad rows are not refused: each goes to that file as one JSON object with its place, its
    problem and what stood there, and the rest is used.
    """

    def __init__(self, rejects: Path | None = None) -> None:
        self.count = 0
        self.shown: list[str] = []
        self.rejects = rejects
        self._file: TextIO | None = None

    def add(self, origin: Origin | str, problem: str, content: object = None) -> None:
        self.count += 1
        if len(self.shown) < SHOWN_PROBLEMS:
            self.shown.append(f"{origin}: {problem}")
        if self.rejects is not None:
            self._reject(origin, problem, content)

    def _reject(self, origin: Origin | str, problem: str, content: object) -> None:
        assert self.rejects is not None
        if self._file is None:
            self.rejects.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.rejects.open("w", encoding="utf-8", newline="\n")
        place = {"file": origin.file, "line": origin.line} if isinstance(origin, Origin) else {"file": origin}
        row = to_plain(content) if isinstance(content, Mapping) else content
        text = json.dumps({**place, "problem": problem, "row": row}, ensure_ascii=True, default=str)
        self._file.write(text + "\n")

    def settle(self, of_what: str) -> None:
        """Raises an InputError that holds all problems, unless they were to be skipped."""
        if self._file is not None:
            self._file.close()
            self._file = None
        elif self.count:
            raise InputError(list_problems(self.shown, of_what, self.count))

    def note(self) -> str:
        """The clause for what was skipped; empty when nothing was."""
        return f"{self.count:,} bad rows skipped, see {self.rejects}" if self.count and self.rejects else ""


def list_problems(problems: list[str], of_what: str, count: int | None = None) -> str:
    """One problem as it is; more as a list of the first 20 with the count."""
    count = len(problems) if count is None else count
    if count == 1:
        return problems[0]
    shown = "\n  ".join(problems[:SHOWN_PROBLEMS])
    more = f"\n  and {count - SHOWN_PROBLEMS:,} more" if count > SHOWN_PROBLEMS else ""
    return f"{count:,} problems in {of_what}:\n  {shown}{more}"
