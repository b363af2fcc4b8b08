"""Keys and personal data by their patterns. What is found is counted and never shown in full.

Each pattern has a word that every match contains, so that texts without it cost one search.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pattern:
    """`needs`: one of these stands in every match (compared in lower case), and `digits` digits or more; `is_real`
    looks closer."""

    kind: str
    needs: tuple[str, ...]
    regex: re.Pattern[str]
    is_real: Callable[[str], bool] = lambda text: True
    digits: int = 0


def has_luhn(text: str) -> bool:
    """Whether the digits pass the check of payment cards (ISO/IEC 7812-1, annex B)."""
    digits = [int(letter) for letter in text if letter.isdigit()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def has_iban_check(text: str) -> bool:
    """Whether an account number passes its check (ISO 13616: modulo 97 is 1)."""
    plain = text.replace(" ", "")
    return int("".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])) % 97 == 1


def _is_no_example(text: str) -> bool:
    value = re.split(r"[:=]\s*", text, maxsplit=1)[-1].strip("\"' ").lower()
    return not re.fullmatch(
        r"(?:x+|\*+|\.+|<.*>|\$?\{.*\}|your.*|example.*|password|changeme|none|null|true|false)", value
    )


SECRETS: tuple[Pattern, ...] = (
    Pattern("private key", ("-----begin",), re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")),
    Pattern("AWS key", ("akia", "asia"), re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    Pattern(
        "GitHub token", ("gh", "github_pat_"), re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,})\b")
    ),
    Pattern("Slack token", ("xox",), re.compile(r"\bxox[abposr]-[A-Za-z0-9-]{10,}")),
    Pattern("API key", ("sk-", "hf_"), re.compile(r"\b(?:sk-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,})\b")),
    Pattern("Google key", ("aiza",), re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b")),
    Pattern("token (JWT)", ("eyj",), re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}")),
    Pattern("address with password", ("://",), re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s:/@]+:[^\s:/@]{3,}@[^\s/]+")),
    Pattern(
        "password",
        ("passw", "pwd", "secret", "api_key", "apikey", "token"),
        re.compile(
            r"\b(?:password|passwd|pwd|secret|api_?key|access_?token)\s*[:=]\s*[\"']?[^\s\"',;]{8,}", re.IGNORECASE
        ),
        _is_no_example,
    ),
)
FEWEST_PHONE, MOST_PHONE = 8, 15  # digits: ITU-T E.164 has 15 at most
PERSONAL: tuple[Pattern, ...] = (
    Pattern("e-mail", ("@",), re.compile(r"\b[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")),
    Pattern(
        "card",
        ("",),
        re.compile(r"(?<![\d.-])[2-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,7}(?![\d.])"),
        has_luhn,
        digits=13,
    ),
    Pattern(
        "IBAN",
        ("",),
        re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
        has_iban_check,
        digits=8,
    ),
    Pattern(
        "US social security number",
        ("-",),
        re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])"),
        digits=9,
    ),
    Pattern(
        "phone",
        ("+", "("),
        re.compile(r"(?<![\w+])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,4}\d{2,4}|\(\d{3}\) ?\d{3}-\d{4})(?!\d)"),
        lambda text: FEWEST_PHONE <= sum(letter.isdigit() for letter in text) <= MOST_PHONE,
        digits=FEWEST_PHONE,
    ),
    Pattern(
        "IP address",
        (".",),
        re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])"),
        digits=4,
    ),
)


def find_secrets(text: str) -> list[tuple[str, str]]:
    """(kind, what was found) of every key or password in a text."""
    return list(_find(text, SECRETS))


def find_personal(text: str) -> list[tuple[str, str]]:
    """(kind, what was found) of every pattern of personal data in a text."""
    return list(_find(text, PERSONAL))


def _find(text: str, patterns: tuple[Pattern, ...]) -> Iterator[tuple[str, str]]:
    lower = text.lower()
    digits = sum(map(text.count, "0123456789"))
    for pattern in patterns:
        if digits >= pattern.digits and any(word in lower for word in pattern.needs):
            hits = (hit.group() for hit in pattern.regex.finditer(text))
            yield from ((pattern.kind, hit) for hit in hits if pattern.is_real(hit))


def mask(text: str) -> str:
    """The first two characters, so that it can be found again."""
    return f"{text[:2]}***"


def masked(text: str) -> str:
    """A text that can be shown: everything that was found in it is masked."""
    for _, found in [*find_secrets(text), *find_personal(text)]:
        text = text.replace(found, mask(found))
    return text
