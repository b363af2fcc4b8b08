"""In which language a text is, when that is plain: by its script, and by its smallest words.

Meant to find strangers among many rows, not to tell Danish from Norwegian; where it is in doubt it says nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

# Words that are frequent in one of these languages and rare in the others.
SMALL_WORDS: dict[str, str] = {
    "English": "the and of to is that was with for it this are have not you from they which would there been its but",
    "German": "der die und das ist nicht ein eine mit für auf sich dem auch wird werden wir ich sie oder",
    "French": "les des est une dans qui pour pas sur avec sont cette mais vous nous être aux leur ont je",
    "Spanish": "el los las una por con para es como pero más este muy del está todo hay su yo también",
    "Italian": "il che di una sono del della con anche gli più questo nel alla dei ma si perché della essere",
    "Portuguese": "não uma os com para mais dos como foi ao ele das seu sua ou quando muito já também são",
    "Dutch": "het een niet dat zijn voor aan ook wordt maar bij naar heeft deze werd hij geen hebben worden",
    "Swedish": "och att det som är för inte med har den ett kan från jag eller ska mycket också",
    "Polish": "nie się jest że ale przez dla tym jego czy tylko było są być już oraz także który może",
    "Turkish": "bir ve bu için çok daha olarak gibi değil sonra ama kadar olan diye bile bütün artık",
}
_LANGUAGES_OF: dict[str, set[str]] = {}
for _language, _words in SMALL_WORDS.items():
    for _word in _words.split():
        _LANGUAGES_OF.setdefault(_word, set()).add(_language)

SCRIPTS = {
    "CYRILLIC": "Cyrillic",
    "GREEK": "Greek",
    "ARABIC": "Arabic",
    "HEBREW": "Hebrew",
    "DEVANAGARI": "Devanagari",
    "THAI": "Thai",
    "HANGUL": "Korean",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "CJK": "Chinese",
}
_WORDS = re.compile(r"[^\W\d_]+")
FEWEST_WORDS = 6
FEWEST_LETTERS = 12
LEAD = 2.0  # the best must have so many times the hits of the next


def guess_language(text: str) -> str:
    """Its name, or that of a script of its own; empty when in doubt."""
    script = _script_of(text) if not text.isascii() else ""
    if script:
        return script
    words = _WORDS.findall(text.lower())
    if len(words) < FEWEST_WORDS:
        return ""
    hits: Counter[str] = Counter()
    for word in words:
        for language in _LANGUAGES_OF.get(word, ()):
            hits[language] += 1
    ranked = hits.most_common(2)
    if not ranked or ranked[0][1] < max(2, 0.08 * len(words)):
        return ""
    next_best = ranked[1][1] if len(ranked) > 1 else 0
    return ranked[0][0] if ranked[0][1] >= LEAD * next_best else ""


def _script_of(text: str) -> str:
    letters = [letter for letter in text[:500] if letter.isalpha()]
    foreign = [letter for letter in letters if ord(letter) >= 0x370]
    if len(foreign) < FEWEST_LETTERS or len(foreign) < len(letters) / 2:
        return ""
    names = Counter(unicodedata.name(letter, "?").split()[0].split("-")[0] for letter in foreign)
    if names["HIRAGANA"] + names["KATAKANA"] > len(foreign) / 10:
        return "Japanese"
    return SCRIPTS.get(names.most_common(1)[0][0], "")
