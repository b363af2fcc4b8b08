"""What can be wrong with one row by itself. ROW_TESTS is the table: one row per test."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.data.quality.findings import Severity, answers_of, turns_of
from tunesmith.data.quality.secrets import find_personal, find_secrets, mask
from tunesmith.records import Conversation, Example

# UTF-8 that was read as cp1252 or latin-1 and saved again: "Ã©" for "é", "â€™" for an apostrophe.
MOJIBAKE = re.compile("[ÂÃ][\u0080-\u00bf]|â[\u0080\u20ac][\u0080-\u00bf\u2018-\u203a\u0153\u02dc\u2122]|ðŸ|ï»¿")
ENTITIES = re.compile(r"&(?:amp|lt|gt|quot|nbsp|#\d{2,5}|#x[0-9a-f]{2,5});", re.IGNORECASE)
TAGS = re.compile(r"</?(?:p|br|div|span|li|ul|a|b|i|td|tr)(?:\s[^<>]{0,200})?/?>", re.IGNORECASE)
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
INVISIBLE = re.compile("[\u200b\u2060\u202a-\u202e\u2066-\u2069\ufeff]")
# How assistants speak of themselves; a model that is tuned on it will too.
BOILERPLATE = re.compile(
    r"\bas an? (?:ai|artificial intelligence|large language)\b(?: language)?(?: model)?"
    r"|\bi(?:'m| am) (?:just )?an ai\b|\bmy (?:knowledge|training) (?:cutoff|data)\b"
    r"|\bi(?:'m| am) sorry,? but i (?:can(?:'t|not)|am (?:not able|unable))\b",
    re.IGNORECASE,
)
PLACEHOLDERS = {"n/a", "na", "none", "null", "todo", "tbd", "xxx", "...", "-", "test", "lorem ipsum", "nan", "?"}
# An answer of so many characters that stands in the question word for word is no accident.
COPIED_FROM = 40
LOOP_FROM = 60  # words; a shorter text cannot be said to repeat itself
LOOP_SHARE = 0.3  # of all runs of four words that are distinct, at most


Why = Callable[[Example, str], str | None]


@dataclass(frozen=True, slots=True)
class RowTest:
    """`why` says of a row and all its text what is the matter, None when nothing; `{rows}` of `summary` counts
    them."""

    check: str
    severity: Severity
    why: Why
    summary: str
    mend: str


def _control(row: Example, text: str) -> str | None:
    hit = CONTROLS.search(text)
    return f"U+{ord(hit.group()):04X}" if hit else None


def _invisible(row: Example, text: str) -> str | None:
    hit = None if text.isascii() else INVISIBLE.search(text)
    return f"U+{ord(hit.group()):04X}" if hit else None


def _damaged(row: Example, text: str) -> str | None:
    if text.isascii():
        return None
    if "\ufffd" in text:
        return "U+FFFD, where a character was lost"
    hit = MOJIBAKE.search(text)
    return f"'{hit.group()}'" if hit else None


def _marked_up(row: Example, text: str) -> str | None:
    if "&" not in text and "<" not in text:
        return None
    hit = ENTITIES.search(text) or TAGS.search(text)
    return f"'{hit.group()[:20]}'" if hit else None


def _boilerplate(row: Example, text: str) -> str | None:
    hit = next((hit for answer in answers_of(row) if (hit := BOILERPLATE.search(answer))), None)
    return f"'{hit.group()}'" if hit else None


def _placeholder(row: Example, text: str) -> str | None:
    texts = answers_of(row) or (text,)
    return next((f"'{one.strip()}'" for one in texts if one.strip().lower() in PLACEHOLDERS), None)


def _looping(row: Example, text: str) -> str | None:
    return next((why for one in answers_of(row) or (text,) if (why := _loop_in(one))), None)


def _loop_in(text: str) -> str | None:
    words = text.split()
    if len(words) < LOOP_FROM or len(set(words)) > LOOP_SHARE * len(words) + 3:  # more words make more runs
        return None
    runs = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    if len(runs) > LOOP_SHARE * (len(words) - 3):
        return None
    ((most, times),) = runs.most_common(1)
    return f"'{' '.join(most)[:40]}' {times:,} times"


def _copied(row: Example, text: str) -> str | None:
    """A passage is there to be quoted from; a lone question is not."""
    if not isinstance(row, Conversation):
        return None
    answer = row.messages[-1].content.strip()
    if len(answer) < COPIED_FROM:
        return None
    asked = next((turn.content for turn in reversed(turns_of(row)) if turn.role == "user"), "")
    return "the whole answer stands in the question" if answer in asked else None


def _echoed(row: Example, text: str) -> str | None:
    if not isinstance(row, Conversation):
        return None
    asked = next((turn.content.strip() for turn in reversed(turns_of(row)) if turn.role == "user"), "")
    answer = row.messages[-1].content
    return "the answer begins with the question" if len(asked) >= COPIED_FROM and answer.startswith(asked) else None


def _secret(row: Example, text: str) -> str | None:
    found = find_secrets(text)
    return ", ".join(f"{kind} {mask(hit)}" for kind, hit in found) if found else None


def _personal(row: Example, text: str) -> str | None:
    found = find_personal(text)
    return ", ".join(f"{kind} {mask(hit)}" for kind, hit in found[:3]) if found else None


ROW_TESTS: tuple[RowTest, ...] = (
    RowTest(
        "encoding damage",
        "warning",
        _damaged,
        "letters that were read in a wrong encoding, in {rows}",
        "Export the data again as UTF-8, or read the file with its own --encoding",
    ),
    RowTest(
        "control characters",
        "warning",
        _control,
        "control characters, in {rows}",
        "Remove them; they are of no use to a reader and seldom in a vocabulary",
    ),
    RowTest(
        "invisible characters",
        "note",
        _invisible,
        "characters that nobody sees, in {rows}",
        "Remove them where they carry no meaning: they split words into other tokens",
    ),
    RowTest(
        "markup",
        "note",
        _marked_up,
        "HTML, in {rows}",
        "Turn it into plain text, unless the model is to write HTML",
    ),
    RowTest(
        "boilerplate",
        "warning",
        _boilerplate,
        "answers that speak as an assistant of itself, or refuse, in {rows}",
        "Leave them out, unless that is what the model is to learn",
    ),
    RowTest(
        "placeholder",
        "warning",
        _placeholder,
        "texts that say nothing, in {rows}",
        "Fill them in, or leave them out",
    ),
    RowTest(
        "repetition",
        "warning",
        _looping,
        "texts that repeat themselves over and over, in {rows}",
        "Leave them out: a model that is trained on loops writes loops",
    ),
    RowTest(
        "copied answer",
        "note",
        _copied,
        "answers that stand word for word in their question, in {rows}",
        "Look at them: the model learns to copy. For a passage to be quoted from that is as it should be",
    ),
    RowTest(
        "echoed question",
        "warning",
        _echoed,
        "answers that begin with their question, in {rows}",
        "Cut the question off the answer; some exports join the two",
    ),
    RowTest(
        "secrets",
        "error",
        _secret,
        "keys or passwords, which a tuned model can be made to recite, in {rows}",
        "Remove them, and revoke those that are real",
    ),
    RowTest(
        "personal data",
        "warning",
        _personal,
        "addresses, numbers or accounts of persons, in {rows}",
        "Remove or replace them, unless you may use them and need to",
    ),
)
