"""A run at work: predictions for a file, and a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.formats import ALIASES, PAIRS
from tunesmith.data.sources import read_rows
from tunesmith.errors import InputError
from tunesmith.evaluation.readings import Given
from tunesmith.evaluation.tasks import chat_stream, open_network, predict_texts
from tunesmith.models.generate import Decoding
from tunesmith.models.load import Network
from tunesmith.records import Message, RawRow
from tunesmith.runs.adapters import Adapters, load_adapters
from tunesmith.runs.run import Run
from tunesmith.terminal import say

TEXT_COLUMNS = (
    *("text", "prompt", "question", "instruction", "sentence", "review", "content", "query"),
    *("source", "src", "article", "dialogue", "document"),
)


def predict_file(run: str, file: Path) -> list[dict[str, Any]]:
    """Every row of the file with its prediction added.

    Raises:
        InputError: not a run, no such file, or no column that holds what the run was trained to read.
    """
    opened = Run.open(run)
    rows = read_rows(file)
    given = _find_given(rows, file, opened.manifest.get("inputs", "text"))
    said = predict_texts(opened.network, given)
    return [{**row.fields, **prediction} for row, prediction in zip(rows, said, strict=True)]


def _find_given(rows: list[RawRow], file: Path, inputs: str) -> list[Given]:
    """What is to be judged, by what the run was trained on."""
    columns = list(rows[0].fields)
    if inputs == "pair":
        pair = next((pair for pair in PAIRS if set(pair) <= set(columns)), None)
        if pair is None:
            known = "; ".join(" and ".join(pair) for pair in PAIRS)
            raise InputError(
                f"{file}: the run judges pairs of texts, and no two of its columns ({', '.join(columns)}) are one. "
                f"Known: {known}. Rename them"
            )
        return [(str(row.fields[pair[0]]), str(row.fields[pair[1]])) for row in rows]
    if inputs == "passage":
        asked, read = (_named_column(part, columns, file) for part in ("question", "context"))
        return [(str(row.fields[asked]), str(row.fields[read])) for row in rows]
    column = next((name for name in ALIASES["words"] if inputs == "words" and name in columns), None)
    column = column or _text_column(rows, file)
    values = [row.fields[column] for row in rows]
    return [list(map(str, value)) if isinstance(value, list | tuple) else str(value) for value in values]


def _named_column(part: str, columns: Sequence[str], file: Path) -> str:
    found = next((name for name in ALIASES[part] if name in columns), None)
    if found is None:
        raise InputError(
            f"{file}: the run finds answers in passages, and none of its columns ({', '.join(columns)}) is called "
            f"{' or '.join(ALIASES[part])}. Rename the one that holds the {part}"
        )
    return found


def _text_column(rows: list[RawRow], file: Path) -> str:
    columns = list(rows[0].fields)
    found = next((name for name in TEXT_COLUMNS if name in columns), None)
    if found is None and len(columns) == 1:
        return columns[0]
    if found is None:
        raise InputError(
            f"{file}: none of its columns ({', '.join(columns)}) is called {', '.join(TEXT_COLUMNS)}. "
            "Rename the one that holds the text"
        )
    return found


def converse(run: str, also: Sequence[str], system: str | None, decoding: Decoding) -> None:
    """Reads questions and streams answers until the input ends. The conversation so far is kept.

    A question that cannot be put (too long by now) is said so and forgotten. With further runs of the same base, `/use`
    says whose adapters answer.
    """
    adapters = load_adapters([run, *also]) if also else None
    network = open_network(run) if adapters is None else adapters.network
    if network.task != "generation":
        raise InputError(f"'{network.source}' does {network.task}, it cannot chat; use `tunesmith predict`")
    more = "" if adapters is None else f"/use NAMES sets to work any of {', '.join(adapters.names)}; "
    say(f"{run}: ask away. {more}/new starts anew, /quit ends.")
    opening = [Message("system", system)] if system else []
    messages = list(opening)
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            return
        if question == "/quit":
            return
        if question == "/new":
            messages = list(opening)
        elif adapters is not None and question.split()[:1] == ["/use"]:
            _use(adapters, question.split()[1:])
        elif question:
            asked = [*messages, Message("user", question)]
            try:
                messages = [*asked, Message("assistant", _say_answer(network, asked, decoding))]
            except InputError as error:
                say(f"{error}. Or start anew with /new")


def _use(adapters: Adapters, names: list[str]) -> None:
    try:
        adapters.use(*names)
        say(f"{adapters.network.source} answers")
    except InputError as error:
        say(str(error))


def _say_answer(network: Network, asked: list[Message], decoding: Decoding) -> str:
    """Writes the answer as it comes; returns it whole."""
    answer = ""
    for piece in chat_stream(network, asked, decoding):
        answer += piece
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return answer
