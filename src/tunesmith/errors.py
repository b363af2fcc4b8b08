"""The one error for wrong input: the command line prints it in one piece and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What the user gave cannot be used.

    The message says what was given, where (file and line when there is one) and how to mend it.
    Anything else that is raised is a fault of tunesmith's own.
    """


def nearest(given: str, known: Iterable[str]) -> str:
    """The clause that names the closest known word and lists all of them: `did you mean 'lora'? Known: ...`."""
    choices = list(known)
    close = difflib.get_close_matches(given, choices, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(choices)}"
