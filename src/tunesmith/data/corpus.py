"""Texts to pre-train on: read whole, and divided.

A text file is one text; of rows (JSONL, CSV, the catalogue, the hub) each is one. Many texts are divided as rows are,
those that are nearly the same kept together; of a few, each is cut: its beginning is trained, its end held out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tunesmith import assets
from tunesmith.config_pretrain import PretrainConfig, TokenizerConfig
from tunesmith.data import sources
from tunesmith.data.files import kind_of, read_lines
from tunesmith.data.problems import Problems
from tunesmith.data.split import split, split_given
from tunesmith.data.store import Rows
from tunesmith.errors import InputError
from tunesmith.records import (
    Conversation,
    Example,
    Examples,
    Judgement,
    LabelledText,
    Origin,
    PlainText,
    Ranking,
    SpanQuestion,
    Split,
    TaggedWords,
)

# From so many texts on they are divided and not cut.
MANY = 100


def read_texts(name: str, config: PretrainConfig | TokenizerConfig) -> Examples:
    """The texts of files, a folder, a catalogue name or a hub name.

    Raises:
        InputError: nothing found under that name, or nothing in it.
    """
    if assets.is_dataset(name):
        found = sources.load(name)
        return _examples(map(_as_text, found.rows), f"the texts of {found.recognised}")
    paths = sources.find_files(name)
    whole = [path for path in paths if kind_of(path) == ".txt"]
    rest = [path for path in paths if path not in whole]
    problems = Problems(None)
    texts = [text for path in whole for text in _whole(path, problems, config.encoding)]
    problems.settle(f"{len(whole)} text files")
    recognised = f"{len(texts):,} text files, each a text" if whole else ""
    if rest or not whole:
        given = ",".join(map(str, rest)) if rest else name
        found = sources.load(given, "text", config.columns, config.encoding)
        texts += [row for row in found.rows if isinstance(row, PlainText)]
        recognised = "; ".join(filter(None, [recognised, found.recognised]))
    return _examples(texts, recognised)


def _examples(texts: Iterator[PlainText] | Sequence[PlainText], recognised: str) -> Examples:
    rows = Rows(text for text in texts if text.text)
    if not rows:
        raise InputError(f"there is no text to read ({recognised})")
    return Examples("text", rows, (), recognised, rows.fingerprint)


def _whole(path: Path, problems: Problems, encoding: str | None) -> Iterator[PlainText]:
    yield PlainText("".join(line for _, line in read_lines(path, problems, encoding)), Origin(str(path), 1))


def _as_text(row: Example) -> PlainText:
    """All that a row of another kind says."""
    if isinstance(row, PlainText):
        return row
    if isinstance(row, LabelledText):
        return PlainText(row.whole, row.origin)
    if isinstance(row, TaggedWords):
        return PlainText(" ".join(row.words), row.origin)
    if isinstance(row, SpanQuestion):
        return PlainText(f"{row.context}\n\n{row.question}", row.origin)
    turns = row.messages if isinstance(row, Conversation) else row.prompt
    said = [turn.content for turn in turns]
    if isinstance(row, Ranking):
        said += row.answers[:1]
    elif isinstance(row, Judgement):
        said.append(row.answer)
    return PlainText("\n\n".join(said), row.origin)


def divide(examples: Examples, config: PretrainConfig | TokenizerConfig) -> Split:
    """Train, validation and test texts.

    Raises:
        InputError: too little text for three parts.
    """
    share = config.held_out
    if config.eval_data is not None:
        test = read_texts(config.eval_data, config)
        if len(examples.rows) >= MANY:
            return split_given(examples, test, config.seed, share)
        train, validation = _cut(examples, (1 - share,))
        return Split(train, validation, test, _note((train, validation, test)))
    if len(examples.rows) >= MANY:
        return split(examples, config.seed, (1 - 2 * share, share, share))
    parts = _cut(examples, (1 - 2 * share, 1 - share))
    return Split(parts[0], parts[1], parts[2], _note(parts))


def _note(parts: Sequence[Examples]) -> str:
    sizes = [sum(len(row.text.encode()) for row in part.rows if isinstance(row, PlainText)) for part in parts]
    named = ", ".join(f"{name} {size:,}" for name, size in zip(("train", "validation", "test"), sizes, strict=True))
    return f"bytes: {named}; each text is cut, its end is held out"


def _cut(examples: Examples, shares: Sequence[float]) -> list[Examples]:
    """Each text cut behind these shares of it, where a line ends if one does nearby."""
    parts: list[list[PlainText]] = [[] for _ in range(len(shares) + 1)]
    for row in examples.rows:
        assert isinstance(row, PlainText)
        places = [0, *(_near_line_end(row.text, int(share * len(row.text))) for share in shares), len(row.text)]
        for part, start, end in zip(parts, places, places[1:], strict=False):
            line = row.origin.line + row.text.count("\n", 0, start)
            part.append(PlainText(row.text[start:end], replace(row.origin, line=line)))
    made = []
    for part in parts:
        if not any(row.text for row in part):
            raise InputError(
                f"{examples.rows[0].origin.file}: too short to be divided into training, validation and test. Give "
                "more text, a greater --held-out, or a test file of its own with --eval-data"
            )
        made.append(_examples(part, examples.recognised))
    return made


def _near_line_end(text: str, place: int) -> int:
    found = text.find("\n", place, place + 2000)
    return place if found < 0 else found + 1
