"""Faults of a data set: each is found where it was put, and not where there is none."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import cli
from tunesmith.data import sources
from tunesmith.data.quality.findings import Finding
from tunesmith.data.quality.labels import suspect
from tunesmith.data.quality.languages import guess_language
from tunesmith.data.quality.report import Report, check
from tunesmith.data.quality.secrets import find_personal, find_secrets, has_iban_check, has_luhn, masked
from tunesmith.data.quality.similar import GRAM, Sketches, cluster, distinct, letters_of, overlap, shingles, sketch
from tunesmith.data.quality.texts import ROW_TESTS
from tunesmith.data.split import split
from tunesmith.records import LabelledText, Origin

SYLLABLES = [first + second for first in "bdfgklmnprstvz" for second in ("a", "en", "is", "ol", "ur")]
WORDS = [one + other for one in SYLLABLES for other in SYLLABLES]


def sentences(count: int, seed: int = 0, length: int = 14) -> list[str]:
    """No two of them alike."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=length)) + f" number {draw.randrange(10**9)}." for _ in range(count)]


def labelled(texts: list[str], labels: list[str] | None = None) -> Any:
    names = labels or ["ab"[index % 2] for index in range(len(texts))]
    return sources.load([{"text": text, "label": name} for text, name in zip(texts, names, strict=True)])


def found(report: Report, name: str) -> Finding | None:
    return next((finding for finding in report.findings if finding.check == name), None)


def rows_of(report: Report, name: str) -> list[int]:
    finding = found(report, name)
    return [] if finding is None else list(finding.rows)


# How alike two texts are


@given(st.text(max_size=80), st.text(max_size=80))
def test_the_overlap_is_that_of_the_letters(one: str, other: str) -> None:
    """Against sets of strings; 32-bit hashes of so few do not meet."""
    sets = []
    for text in (one, other):
        letters = letters_of(text)
        long = len(letters) >= 20
        sets.append({letters[at : at + GRAM] for at in range(len(letters) - GRAM + 1)} if long else set())
    hashed = [distinct(shingles(text)) for text in (one, other)]
    assert [len(part) for part in hashed] == [len(part) for part in sets]
    union = sets[0] | sets[1]
    assert overlap(*hashed) == pytest.approx(len(sets[0] & sets[1]) / len(union) if union else 0)


def test_an_equal_band_is_as_likely_as_the_overlap_says() -> None:
    """Sketches of sets that overlap by J share a band of four hashes with probability J^4."""
    draw = np.random.default_rng(0)
    shared_bands, trials, overlapping = 0, 400, 0.6
    for _ in range(trials):
        everything = draw.choice(2**32, 500, replace=False).astype(np.uint32)
        both, rest = everything[:300], everything[300:]  # 300 of 500 shared: J = 0.6
        one, other = np.sort(np.concatenate([both, rest[:100]])), np.sort(np.concatenate([both, rest[100:]]))
        assert overlap(one, other) == pytest.approx(overlapping)
        shared_bands += int((sketch(one) == sketch(other)).sum())
    share = shared_bands / (trials * 16)
    assert share == pytest.approx(overlapping**4, abs=0.02)


EDITS = {
    "capitals": str.upper,
    "punctuation": lambda text: text.replace(" ", ", ", 3).replace(".", "!"),
    "white space": lambda text: "  " + text.replace(" ", "  "),
    "a word less": lambda text: " ".join(text.split()[:5] + text.split()[6:]),
    "a word more": lambda text: " ".join([*text.split()[:6], "really", *text.split()[6:]]),
    "a typo": lambda text: text[:20] + text[21] + text[20] + text[22:],
}


@pytest.mark.parametrize("edit", EDITS)
def test_near_duplicates_are_found(edit: str) -> None:
    texts = sentences(200)
    texts += [EDITS[edit](text) for text in texts[:20]]
    report = check(labelled(texts), with_labels=False)
    assert rows_of(report, "near duplicates") == list(range(200, 220))
    assert not rows_of(report, "exact duplicates")


def test_rows_that_share_an_instruction_are_not_alike() -> None:
    instruction = "Please read the following sentence with care and say in one word what it is about, then stop: "
    texts = [instruction + text for text in sentences(100, length=4)]
    assert not rows_of(check(labelled(texts), with_labels=False), "near duplicates")
    texts.append(texts[7].replace("number", "numbers"))  # and still the one that is
    assert rows_of(check(labelled(texts), with_labels=False), "near duplicates") == [100]


def test_exact_duplicates_are_each_counted_once() -> None:
    texts = sentences(50)
    rows = [texts[3], *texts, texts[3], texts[9]]
    report = check(labelled(rows, ["x"] * len(rows[:-1]) + ["y"]), with_labels=False)
    assert rows_of(report, "exact duplicates") == [4, 51]  # the last has another label
    assert rows_of(report, "contradicting labels") == [10, 52]
    assert found(report, "contradicting labels").severity == "error"  # type: ignore[union-attr]
    assert not rows_of(report, "near duplicates")


def test_leaks_are_told_apart() -> None:
    texts, test = sentences(60), sentences(20, seed=1)
    train = labelled([*texts, test[0], test[1], EDITS["a word more"](test[2])], ["a", "b"] * 30 + ["a", "a", "a"])
    tested = labelled(test, ["a", "b"] * 10)
    report = check(train, tested, with_labels=False)
    assert rows_of(report, "leakage") == [60]
    assert rows_of(report, "leakage: same question") == [61]
    assert rows_of(report, "leakage: near") == [62]
    assert set(report.removable) == {60, 61, 62}
    assert not [one for one in check(labelled(texts), tested).findings if one.check.startswith("leakage")]


def test_a_class_of_the_test_data_without_training_rows_is_named() -> None:
    report = check(labelled(sentences(20)), labelled(sentences(4, 1), ["a", "b", "c", "c"]), with_labels=False)
    assert found(report, "unseen classes").shown[0].excerpt == "'c'"  # type: ignore[union-attr]


# One row by itself: a text in which it is to be found, and one that looks like it

TEXTS = {
    "encoding damage": ("The cafÃ© was fine.", "The café was fine. Ã la carte? Señor Ångström."),
    "control characters": ("one\x07two", "one\ttwo\nthree"),
    "invisible characters": ("in\u200bvisible", "plainly visible"),
    "markup": ("<p>Hello</p> there", "a < b and c > d & e"),
    "secrets": ("use AKIAIOSFODNN7EXAMPLE now", "AKIA is how they begin; password: <your password>"),
    "personal data": ("write to jane.doe@example.org", "write to jane @ work, room 12"),
    "placeholder": ("N/A", "not applicable to this one"),
    "repetition": ("the same old song " * 30, " ".join(sentences(8))),
}
ANSWERS = {
    "boilerplate": ("As an AI language model, I cannot feel.", "An AI language is a language for AI."),
    "copied answer": (
        "What is this: the quick brown fox jumps over the lazy dog again?",
        "the quick brown fox jumps over the lazy dog again",
        "a sentence with all letters of the alphabet in it",
    ),
    "echoed question": (
        "Which river runs through the city of Dresden in Saxony?",
        "Which river runs through the city of Dresden in Saxony? The Elbe.",
        "The Elbe.",
    ),
}


def test_every_test_of_a_row_has_its_example() -> None:
    assert {test.check for test in ROW_TESTS} == {*TEXTS, *ANSWERS}


@pytest.mark.parametrize("name", TEXTS)
def test_a_fault_of_a_text_is_found(name: str) -> None:
    bad, good = TEXTS[name]
    report = check(labelled([bad, good, "Something else."]), with_labels=False)
    assert rows_of(report, name) == [0]


@pytest.mark.parametrize("name", ANSWERS)
def test_a_fault_of_an_answer_is_found(name: str) -> None:
    *question, bad, good = ANSWERS[name]
    asked = question[0] if question else "How are you?"
    rows = [{"prompt": asked, "completion": answer} for answer in (bad, good)]
    assert rows_of(check(sources.load(rows)), name) == [0]


def test_answers_that_everybody_gets_and_answers_that_were_cut() -> None:
    texts = sentences(200)
    rows = [{"prompt": text, "completion": f"An answer to {text}"} for text in texts]
    for row in rows[:9]:
        row["completion"] = "I do not know."
    rows[50]["completion"] = " ".join(sentences(4, 3)) + " and then it came to the"
    report = check(sources.load(rows))
    assert found(report, "common answers").count == 9  # type: ignore[union-attr]
    assert rows_of(report, "cut answers") == [50]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The house that was built on the hill is not for sale, and they have said so.", "English"),
        ("Das Haus, das auf dem Hügel steht, ist nicht zu verkaufen, und sie haben es auch gesagt.", "German"),
        (
            "La maison qui est sur la colline n'est pas à vendre, et vous avez aussi une réponse dans la lettre.",
            "French",
        ),
        ("El perro de la casa está en el jardín y no quiere salir porque hay muchos gatos por las calles.", "Spanish"),
        ("Дом на холме не продаётся, и они об этом уже сказали.", "Cyrillic"),
        ("これは日本語の文章です。とても短いです。", "Japanese"),
        ("12 34 56 78", ""),
        ("Copper ladder meadow saddle winter pepper harbor candle.", ""),
    ],
)
def test_languages_are_told_where_it_is_plain(text: str, language: str) -> None:
    assert guess_language(text) == language


def test_rows_in_another_language_are_named() -> None:
    english = [f"The {word} is not what it was, and they have said that to me." for word in WORDS[:40]]
    german = ["Das ist nicht der Text, den wir auf dem Tisch gesehen haben, und er wird auch nicht besser."]
    assert rows_of(check(labelled([*english, *german]), with_labels=False), "language") == [len(english)]


def test_check_digits() -> None:
    """Published examples: card test numbers, and the IBAN of ISO 13616's registry."""
    assert has_luhn("4111 1111 1111 1111")
    assert has_luhn("79927398713")
    assert not has_luhn("4111 1111 1111 1112")
    assert not has_luhn("0000 0000 0000 0000")
    assert has_iban_check("GB82 WEST 1234 5698 7654 32")
    assert not has_iban_check("GB82 WEST 1234 5698 7654 33")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("-----BEGIN RSA PRIVATE KEY-----", "private key"),
        ("ghp_" + "a1B2" * 9, "GitHub token"),
        ("sk-proj-" + "x9Y8" * 6, "API key"),
        ("postgres://me:s3cr3tpw@db.example.org/x", "address with password"),
        ("api_key = 'k3y8hf93kd02'", "password"),
        ("pay with 4111 1111 1111 1111 today", "card"),
        ("IBAN GB82 WEST 1234 5698 7654 32", "IBAN"),
        ("call +49 351 4633 9999", "phone"),
        ("host 192.168.1.20 is down", "IP address"),
        ("ssn 123-45-6789", "US social security number"),
    ],
)
def test_patterns_are_found_and_masked(text: str, kind: str) -> None:
    hits = [*find_secrets(text), *find_personal(text)]
    assert kind in [name for name, _ in hits]
    for _, hit in hits:
        assert hit not in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4.5",
        "1234567890123456789",
        "in 2026-11-25 at 12-34-5678 km",
        "password: ********",
        "50 + 60 = 110",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert not [*find_secrets(text), *find_personal(text)]


def test_a_report_shows_no_secret() -> None:
    secret = "sk-proj-" + "x9Y8" * 6
    report = check(labelled([f"my key is {secret} ok", "no key"]), with_labels=False)
    assert secret not in json.dumps(report.to_plain())
    assert "my key is sk*** ok" in json.dumps(report.to_plain())


# Labels


def test_class_names() -> None:
    report = check(
        labelled(sentences(60), ["good", "bad"] * 28 + ["Good", "good ", "b-a-d", "rare"]), with_labels=False
    )
    assert found(report, "class names").severity == "error"  # type: ignore[union-attr]
    assert [row.excerpt for row in found(report, "class names").shown] == ["'Good' / 'good'", "'b-a-d' / 'bad'"]  # type: ignore[union-attr]
    assert {row.excerpt for row in found(report, "rare classes").shown} == {"'Good'", "'b-a-d'", "'rare'"}  # type: ignore[union-attr]


def test_suspects_are_those_of_the_paper() -> None:
    """Two classes, thresholds 0.65 and 0.7 by hand: only row 2 reaches another class's threshold."""
    chances = np.array([[0.9, 0.1], [0.8, 0.2], [0.25, 0.75], [0.1, 0.9], [0.4, 0.6], [0.4, 0.6]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert suspect(chances, labels).tolist() == [2]
    assert suspect(chances, np.array([0, 0, 1, 1, 1, 1])).tolist() == []


def test_flipped_labels_are_found() -> None:
    draw = random.Random(0)
    texts = [f"{'lovely bright' if index % 2 else 'dreary dull'} {text}" for index, text in enumerate(sentences(300))]
    labels = ["up" if index % 2 else "down" for index in range(300)]
    flipped = sorted(draw.sample(range(300), 12))
    for index in flipped:
        labels[index] = {"up": "down", "down": "up"}[labels[index]]
    suspects = rows_of(check(labelled(texts, labels)), "label errors")
    assert set(suspects) <= set(flipped)
    assert len(suspects) >= 9


# The split


def test_near_duplicates_stay_in_one_part() -> None:
    texts = sentences(300)
    texts += [EDITS["a word more"](text) for text in texts[:60]]
    parts = split(labelled(texts), 0)
    part_of = {row.text: name for name in ("train", "validation", "test") for row in getattr(parts, name).rows}
    assert all(part_of[texts[index]] == part_of[texts[300 + index]] for index in range(60))
    assert "60 texts stand more than once or nearly so" in parts.note


def test_groups_stay_together_and_time_goes_forward() -> None:
    rows = [
        {"text": text, "label": "ab"[index % 2], "who": f"p{index % 12}", "when": f"2026-01-{28 - index % 28:02}"}
        for index, text in enumerate(sentences(240))
    ]
    parts = split(sources.load(rows, columns={"group": "who"}), 0)
    of_text = {row["text"]: row for row in rows}
    people = [{of_text[row.text]["who"] for row in part.rows} for part in (parts.train, parts.validation, parts.test)]  # type: ignore[union-attr]
    assert all(people)
    assert not people[0] & people[1] | people[0] & people[2] | people[1] & people[2]
    parts = split(sources.load(rows, columns={"time": "when"}), 0)
    days = [[of_text[row.text]["when"] for row in part.rows] for part in (parts.train, parts.validation, parts.test)]  # type: ignore[union-attr]
    assert max(days[0]) <= min(days[1])
    assert max(days[1]) <= min(days[2])
    assert [len(part) for part in days] == [192, 24, 24]


def test_clusters_do_not_depend_on_the_order() -> None:
    texts = sentences(80)
    rows = [
        LabelledText(text, "a", Origin("d", 1)) for text in [*texts, *(EDITS["a typo"](text) for text in texts[:9])]
    ]
    assert [len(group) for group in cluster(rows).groups()] == [2] * 9
    assert [len(group) for group in cluster(rows[::-1]).groups()] == [2] * 9


def test_a_sketch_of_a_book_takes_no_more_memory_than_one_of_a_page() -> None:
    book = LabelledText(" ".join(sentences(20_000)), "a", Origin("d", 1))
    sketches = Sketches.of([book] * 2)
    sketches.add(0, book)
    assert sketches.table()[1].shape == (1, 16)


# The command


def test_a_cleaned_copy_stands_beside_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = sentences(30)
    lines = ["text;label;note", *(f"{text};{'ab'[index % 2]}; 007" for index, text in enumerate(texts))]
    lines += [lines[3], lines[5].replace("number", "numbers"), f"{sentences(1, 9)[0]};a;leaked"]
    (tmp_path / "d.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "t.csv").write_text(f"text;label\n{sentences(1, 9)[0]};a\n{sentences(2, 8)[1]};b\n")
    before = (tmp_path / "d.csv").read_bytes()
    assert cli.run(["data", "check", "d.csv", "--eval-data", "t.csv", "--fix", "--output", "page.html"]) == 2
    assert "written  d.clean.csv" in capsys.readouterr().out
    assert (tmp_path / "d.csv").read_bytes() == before
    kept = [tuple(row.fields.values()) for row in sources.read_rows(tmp_path / "d.clean.csv")]
    assert (tmp_path / "d.clean.csv").read_text().startswith("text;label;note\n")
    assert kept == [(text, "ab"[index % 2], " 007") for index, text in enumerate(texts)]
    removed = [json.loads(line) for line in (tmp_path / "d.removed.jsonl").read_text().splitlines()]
    assert [(one["line"], one["why"]) for one in removed] == [
        (32, "exact duplicates"),
        (33, "near duplicates"),
        (34, "leakage"),
    ]
    page = (tmp_path / "page.html").read_text()
    assert "leakage" in page
    assert "http" not in page.replace("http-equiv", "")
    assert cli.run(["data", "check", "d.clean.csv", "--eval-data", "t.csv"]) == 0
