"""Which columns mean what: raw rows become examples of a task.

FORMATS is the table: one row per format, tried in order. A column may go by its usual other names
(ALIASES); an explicit mapping wins over all guessing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.errors import InputError, nearest
from tunesmith.records import Conversation, Example, Examples, LabelledText, Message, Origin, RawRow, Task

SHOWN_PROBLEMS = 20

# What a column may be called instead, in order of preference.
ALIASES: dict[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "review", "content", "document", "tweet", "comment"),
    "label": ("label", "labels", "class", "category", "sentiment", "target", "intent"),
    "score": ("score", "rating", "stars", "value"),
    "prompt": ("prompt", "question", "query"),
    "completion": ("completion", "answer", "response", "output"),
    "messages": ("messages", "conversation"),
    "instruction": ("instruction",),
    "output": ("output", "response"),
}


class RowError(ValueError):
    """What is wrong with one row; the reader adds the place."""


Columns = Mapping[str, str]
Convert = Callable[[Mapping[str, object], Columns, Origin], Example]


@dataclass(frozen=True, slots=True)
class Format:
    """`needs` are the parts a row must have; `convert` makes an example from a row and the columns found."""

    name: str
    task: Task
    needs: tuple[str, ...]
    convert: Convert


def _text(value: object, column: str) -> str:
    if value is None:
        raise RowError(f"'{column}' is empty")
    if not isinstance(value, str):
        raise RowError(f"'{column}' is {type(value).__name__}, expected text")
    if not value.strip():
        raise RowError(f"'{column}' is empty")
    return value


def _label(value: object, column: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, float):
        raise RowError(f"'{column}' is the number {value}, a class needs a name; for numbers use --task regression")
    return _text(value, column).strip()


def _score(value: object, column: str) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise RowError(f"'{column}' is {value!r}, expected a finite number")
    return number


def _classification(row: Mapping[str, object], columns: Columns, origin: Origin) -> Example:
    text, label = columns["text"], columns["label"]
    return LabelledText(_text(row.get(text), text), _label(row.get(label), label), origin)


def _regression(row: Mapping[str, object], columns: Columns, origin: Origin) -> Example:
    text, score = columns["text"], columns["score"]
    return LabelledText(_text(row.get(text), text), _score(row.get(score), score), origin)


def _prompt_completion(row: Mapping[str, object], columns: Columns, origin: Origin) -> Example:
    prompt, completion = columns["prompt"], columns["completion"]
    turns = [Message("user", _text(row.get(prompt), prompt))]
    return Conversation((*turns, Message("assistant", _text(row.get(completion), completion))), origin)


def _alpaca(row: Mapping[str, object], columns: Columns, origin: Origin) -> Example:
    """{instruction, input, output, system}: a non-empty input follows the instruction after a blank line."""
    question = _text(row.get(columns["instruction"]), columns["instruction"])
    if row.get("input"):
        question += "\n\n" + _text(row["input"], "input")
    system = [Message("system", _text(row["system"], "system"))] if row.get("system") else []
    answer = _text(row.get(columns["output"]), columns["output"])
    return Conversation((*system, Message("user", question), Message("assistant", answer)), origin)


def _messages(row: Mapping[str, object], columns: Columns, origin: Origin) -> Example:
    column = columns["messages"]
    turns = row.get(column)
    if not isinstance(turns, list) or not turns:
        raise RowError(f"'{column}' is not a list of turns")
    messages = tuple(_turn(turn, number, column) for number, turn in enumerate(turns, 1))
    _check_roles([message.role for message in messages])
    return Conversation(messages, origin)


def _turn(turn: object, number: int, column: str) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        raise RowError(f"turn {number} of '{column}' is not {{role, content}}")
    if turn["role"] not in ("system", "user", "assistant"):
        raise RowError(f"turn {number} has role '{turn['role']}'; known: system, user, assistant")
    return Message(turn["role"], _text(turn.get("content"), f"content of turn {number}"))


def _check_roles(roles: list[str]) -> None:
    start = 1 if roles[0] == "system" else 0
    expected = ["user", "assistant"] * len(roles)
    for number, (role, wanted) in enumerate(zip(roles[start:], expected, strict=False), start + 1):
        if role != wanted:
            raise RowError(f"turn {number} is the {role}'s, expected the {wanted}'s")
    if roles[-1] != "assistant":
        raise RowError("the last turn is not the assistant's, so there is nothing to learn from it")


FORMATS: tuple[Format, ...] = (
    Format("messages", "generation", ("messages",), _messages),
    Format("alpaca", "generation", ("instruction", "output"), _alpaca),
    Format("prompt/completion", "generation", ("prompt", "completion"), _prompt_completion),
    Format("text/label", "classification", ("text", "label"), _classification),
    Format("text/score", "regression", ("text", "score"), _regression),
)


def recognise(rows: Sequence[RawRow], task: Task | None = None, columns: Mapping[str, str] | None = None) -> Examples:
    """Finds the format of rows and turns every one into an example.

    Args:
        task: only formats of this task; for regression a label column of numbers counts as a score.
        columns: part -> column, for example {"text": "review"}.

    Raises:
        InputError: no format fits, or rows that cannot be read; all of them, by file and line.
    """
    if not rows:
        raise InputError("no rows")
    present = list(rows[0].fields)
    mapping = dict(columns or {})
    _check_mapping(mapping, present, rows[0].origin)
    chosen, found = _find_format(present, task, mapping, rows[0].origin)
    examples = _convert_all(rows, chosen, found)
    return _describe(examples, chosen, found)


def _check_mapping(mapping: Mapping[str, str], present: Sequence[str], origin: Origin) -> None:
    for part, column in mapping.items():
        if part not in ALIASES:
            raise InputError(f"columns: unknown part '{part}': {nearest(part, ALIASES)}")
        if column not in present:
            raise InputError(f"{origin.file}: no column '{column}' (given for {part}): {nearest(column, present)}")


def _find_format(
    present: Sequence[str], task: Task | None, mapping: Mapping[str, str], origin: Origin
) -> tuple[Format, dict[str, str]]:
    candidates = [entry for entry in FORMATS if task is None or entry.task == task]
    for entry in candidates:
        found = {part: _find_column(part, present, mapping, task) for part in entry.needs}
        if set(mapping) <= set(entry.needs) and all(found.values()):
            return entry, {part: str(column) for part, column in found.items()}
    known = "; ".join(f"{entry.name} needs {' and '.join(entry.needs)}" for entry in candidates)
    example = ",".join(f"{part}=..." for part in candidates[-1 if task else 3].needs)
    raise InputError(
        f"{origin.file}: its columns ({', '.join(present)}) fit no format"
        f"{f' for {task}' if task else ''}. {known}. Name them with --columns {example}"
    )


def _find_column(part: str, present: Sequence[str], mapping: Mapping[str, str], task: Task | None) -> str | None:
    if part in mapping:
        return mapping[part]
    names = ALIASES[part]
    if part == "score" and task == "regression":
        names = (*names, *ALIASES["label"])  # asked for, so a label column of numbers is meant as a score
    by_name = {column.lower(): column for column in present}
    return next((by_name[name] for name in names if name in by_name), None)


def _convert_all(rows: Sequence[RawRow], chosen: Format, columns: Columns) -> list[Example]:
    examples, problems = [], []
    for row in rows:
        try:
            examples.append(chosen.convert(row.fields, columns, row.origin))
        except RowError as problem:
            problems.append(f"{row.origin}: {problem}")
    if problems:
        raise InputError(list_problems(problems, f"{len(rows):,} rows"))
    return examples


def list_problems(problems: Sequence[str], of_what: str) -> str:
    """One problem as it is; more as a list of the first 20 with the count."""
    if len(problems) == 1:
        return problems[0]
    shown = "\n  ".join(problems[:SHOWN_PROBLEMS])
    more = f"\n  and {len(problems) - SHOWN_PROBLEMS:,} more" if len(problems) > SHOWN_PROBLEMS else ""
    return f"{len(problems):,} problems in {of_what}:\n  {shown}{more}"


def _describe(examples: list[Example], chosen: Format, columns: Columns) -> Examples:
    parts = ", ".join(f"{part} from '{column}'" for part, column in columns.items())
    recognised = f"{chosen.task}, {chosen.name}: {parts}"
    class_names: tuple[str, ...] = ()
    if chosen.task == "classification":
        counts = Counter(str(row.target) for row in examples if isinstance(row, LabelledText))
        class_names = tuple(sorted(counts, key=_class_order(counts)))
        if len(class_names) < 2:
            raise InputError(
                f"{examples[0].origin.file}: all {len(examples):,} rows have the one label '{class_names[0]}'; "
                "a classifier needs two or more"
            )
        recognised += f" ({len(class_names)} classes: {_count_classes(counts, class_names)})"
    recognised += f", {len(examples):,} rows"
    return Examples(chosen.task, tuple(examples), class_names, recognised, fingerprint(examples))


def _count_classes(counts: Counter[str], class_names: Sequence[str]) -> str:
    shown = ", ".join(f"{name} {counts[name]:,}" for name in class_names[:10])
    return shown + (", ..." if len(class_names) > 10 else "")


def _class_order(names: Mapping[str, int]) -> Callable[[str], tuple[int, str]]:
    """By number when all class names are whole numbers, else by name."""
    numeric = all(name.removeprefix("-").isdecimal() for name in names)
    return lambda name: (int(name), name) if numeric else (0, name)


def fingerprint(rows: Sequence[Example]) -> str:
    """sha256 over what the rows say, not over where they stand."""
    digest = hashlib.sha256()
    for row in rows:
        content: object = (
            [row.text, row.target]
            if isinstance(row, LabelledText)
            else [[turn.role, turn.content] for turn in row.messages]
        )
        digest.update(json.dumps(content, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()
