"""Entities in rows of tags."""

from __future__ import annotations

import re
from collections.abc import Sequence

PREFIXES = re.compile(r"O|[BIESLU]-.+", re.DOTALL)


def entities(tags: Sequence[str | None]) -> set[tuple[str, int, int]]:
    """(type, first word, one past the last) of each entity in a row of tags, None counting as O.

    As conlleval reads them (Tjong Kim Sang and Buchholz 2000, CoNLL), and seqeval after it: an entity begins at B, and
    wherever a tag follows an O, an entity that has ended, or another type; it goes on through I of its type. So IOB2,
    IOB1, IOBES (S alone, E at the end) and BILOU (U alone, L at the end) are read alike.
    """
    found: set[tuple[str, int, int]] = set()
    kind, start, is_open = "", -1, False
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = (tag or "O").partition("-")
        begins = prefix != "O" and (prefix in "BSU" or name != kind or not is_open)
        if start >= 0 and (prefix == "O" or begins):
            found.add((kind, start, place))
            start = -1
        if begins:
            kind, start = name, place
        is_open = prefix not in "OELSU"
    return found
