"""Which columns mean what: raw rows become examples of a task.

FORMATS is the table: one row per format, tried in order. A column may go by its usual other names
(ALIASES); an explicit mapping wins over all guessing.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from tunesmith.data import convert
from tunesmith.data.convert import Columns, Fields
from tunesmith.data.problems import Problems, RowError
from tunesmith.data.store import Rows
from tunesmith.errors import InputError, nearest
from tunesmith.records import (
    UNANSWERABLE,
    Example,
    Examples,
    LabelledText,
    Origin,
    RawRow,
    SpanQuestion,
    TaggedWords,
    Task,
)

# What a column may be called instead, in order of preference.
ALIASES: dict[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "review", "content", "document", "tweet", "comment"),
    "text_pair": ("text_pair", "sentence2", "hypothesis", "question2", "sentence", "text2"),
    "label": ("label", "labels", "class", "category", "sentiment", "target", "intent"),
    "labels": ("labels", "label", "classes", "categories", "tags"),
    "score": ("score", "rating", "stars", "value"),
    "prompt": ("prompt", "question", "query"),
    "completion": ("completion", "answer", "response", "output"),
    "messages": ("messages", "conversation", "conversations"),
    "instruction": ("instruction",),
    "input": ("input",),
    "output": ("output", "response"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "source": ("source", "src", "article", "dialogue", "document"),
    "target": ("target", "tgt", "highlights", "summary"),
    "translation": ("translation",),
    "context": ("context", "passage"),
    "question": ("question", "query"),
    "answers": ("answers", "responses", "completions", "answer"),
    "ranks": ("ranks",),
    "labeler": ("labeler", "annotator"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "verdict": ("label", "is_good", "desirable", "kto_tag"),
    "words": ("words", "tokens"),
    "tags": ("tags", "ner_tags", "labels"),
}

# What the first and the second text of a pair are called together; GLUE's data sets have their own names each.
PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
)
IN_PAIRS = {"text": tuple(first for first, _ in PAIRS)}

# Columns of no format: what a row belongs to and when it was made, used by the split when named.
MARKS = ("group", "time")

Convert = Callable[[Fields, Columns, Origin], Example]


@dataclass(frozen=True, slots=True)
class Format:
    """`needs` are the parts a row must have, `may_have` those that are used when there; `is_like` looks at the
    first row's values where columns alone leave a doubt; `names` are aliases that only this format has."""

    name: str
    task: Task
    needs: tuple[str, ...]
    convert: Convert
    may_have: tuple[str, ...] = ()
    is_like: Callable[[Fields, Columns], bool] = lambda row, columns: True
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _is_pair(row: Fields, columns: Columns) -> bool:
    """Two names that belong together, or one that is no usual name: it was given for what it is."""
    first, second = columns["text"].lower(), columns["text_pair"].lower()
    are_usual = first in IN_PAIRS["text"] and second in ALIASES["text_pair"]
    return not are_usual or (first, second) in PAIRS


def _has_lists(*parts: str) -> Callable[[Fields, Columns], bool]:
    return lambda row, columns: all(isinstance(row.get(columns[part]), list | tuple) for part in parts)


def _has_truth(row: Fields, columns: Columns) -> bool:
    value = row.get(columns["verdict"])
    return isinstance(value, bool) or str(value).strip().lower() in ("true", "false")


FORMATS: tuple[Format, ...] = (
    Format("chosen/rejected", "ranking", ("chosen", "rejected"), convert.to_pair, ("prompt", "system", "labeler")),
    Format(
        "passage/question/answer (SQuAD)",
        "generation",
        ("context", "question", "answers"),
        convert.to_passage_answer,
        ("system",),
    ),
    Format("passage/question/span", "extractive-qa", ("context", "question", "answers"), convert.to_span_question),
    Format(
        "ranked answers",
        "ranking",
        ("prompt", "answers"),
        convert.to_ranking,
        ("ranks", "system", "labeler"),
        _has_lists("answers"),
    ),
    Format(
        "judged answer (KTO)",
        "judgement",
        ("prompt", "completion", "verdict"),
        convert.to_judgement,
        ("system",),
        _has_truth,
    ),
    Format(
        "messages", "generation", ("messages",), convert.to_conversation, ("system", "tools"), _has_lists("messages")
    ),
    Format("alpaca", "generation", ("instruction", "output"), convert.to_instructed, ("input", "system", "history")),
    Format("prompt/completion", "generation", ("prompt", "completion"), convert.to_answer, ("system",)),
    Format("translation", "generation", ("translation",), convert.to_translated),
    Format("words/tags", "token-classification", ("words", "tags"), convert.to_tagged, (), _has_lists("words", "tags")),
    Format("source/target", "generation", ("source", "target"), convert.to_transformed, ("system",)),
    Format(
        "text pair/labels",
        "multi-label",
        ("text", "text_pair", "labels"),
        convert.to_many_labelled,
        is_like=lambda row, columns: _is_pair(row, columns) and _has_lists("labels")(row, columns),
        names=IN_PAIRS,
    ),
    Format("text/labels", "multi-label", ("text", "labels"), convert.to_many_labelled, (), _has_lists("labels")),
    Format(
        "text pair/label",
        "classification",
        ("text", "text_pair", "label"),
        convert.to_labelled,
        is_like=_is_pair,
        names=IN_PAIRS,
    ),
    Format(
        "text pair/score",
        "regression",
        ("text", "text_pair", "score"),
        convert.to_scored,
        is_like=_is_pair,
        names=IN_PAIRS,
    ),
    Format("text/label", "classification", ("text", "label"), convert.to_labelled),
    Format("text/score", "regression", ("text", "score"), convert.to_scored),
    Format("text", "text", ("text",), convert.to_plain),
)
# Tasks whose formats are taken only when asked for: any row with a text would be one, and SQuAD's may be written, too.
ASKED_FOR = {"text", "extractive-qa"}


def recognise(
    rows: Iterable[RawRow],
    task: Task | None = None,
    columns: Mapping[str, str] | None = None,
    problems: Problems | None = None,
) -> Examples:
    """Finds the format of rows by the first one, and turns every one into an example.

    Args:
        task: only formats of this task; for regression a label column of numbers counts as a score.
        columns: part -> column, for example {"text": "review"}.
        problems: gathers rows that cannot be used, those of the reader among them.

    Raises:
        InputError: no format fits, or rows that cannot be read; all of them, by file and line.
    """
    problems = problems or Problems()
    stream = iter(rows)
    first = next(stream, None)
    if first is None:
        problems.settle("the data")
        raise InputError("no rows")
    mapping = dict(columns or {})
    present = list(first.fields)
    _check_mapping(mapping, present, first.origin)
    marks: dict[str, list[str]] = {mark: [] for mark in MARKS if mark in mapping}
    columns_of_marks = {mark: mapping.pop(mark) for mark in marks}
    chosen, found = _find_format(first, present, task, mapping)
    examples = Rows()
    for row in chain([first], stream):
        try:
            made = _convert(row, chosen, found)
            marked = {mark: _mark(row, column) for mark, column in columns_of_marks.items()}
        except RowError as problem:
            problems.add(row.origin, str(problem), row.fields)
            continue
        examples.append(made)
        for mark, value in marked.items():
            marks[mark].append(value)
    problems.settle(first.origin.file if row.origin.file == first.origin.file else "the data")
    if not examples:
        raise InputError(f"{first.origin.file}: no row can be used; {problems.note()}")
    described = _describe(examples, chosen, found)
    return replace(described, groups=marks.get("group", ()), times=marks.get("time", ()))


def _mark(row: RawRow, column: str) -> str:
    value = row.fields.get(column)
    if value is None or not str(value).strip():
        raise RowError(f"'{column}' is empty. Fill it in, or leave the row out")
    return sys.intern(str(value))


def _convert(row: RawRow, chosen: Format, columns: Columns) -> Example:
    absent = [columns[part] for part in chosen.needs if columns[part] not in row.fields]
    if absent:
        raise RowError(f"no '{absent[0]}': {nearest(absent[0], row.fields)}. Add it, or leave the row out")
    return chosen.convert(row.fields, columns, row.origin)


def _check_mapping(mapping: Mapping[str, str], present: Sequence[str], origin: Origin) -> None:
    for part, column in mapping.items():
        if part not in ALIASES and part not in MARKS:
            raise InputError(f"columns: unknown part '{part}': {nearest(part, [*ALIASES, *MARKS])}")
        if column not in present:
            raise InputError(f"{origin.file}: no column '{column}' (given for {part}): {nearest(column, present)}")


def _find_format(
    first: RawRow, present: Sequence[str], task: Task | None, mapping: Mapping[str, str]
) -> tuple[Format, dict[str, str]]:
    candidates = [entry for entry in FORMATS if entry.task == task or (task is None and entry.task not in ASKED_FOR)]
    for entry in candidates:
        found = _find_columns(entry, present, mapping, task)
        if found is not None and entry.is_like(first.fields, found):
            return entry, found
    known = "; ".join(f"{entry.name} needs {' and '.join(entry.needs)}" for entry in candidates)
    example = ",".join(f"{part}=..." for part in (candidates[-1].needs if task else ("text", "label")))
    raise InputError(
        f"{first.origin.file}: its columns ({', '.join(present)}) fit no format"
        f"{f' for {task}' if task else ''}. {known}. Name them with --columns {example}"
        + (". For texts alone: --task text" if task is None and "text" in present else "")
    )


def _find_columns(
    entry: Format, present: Sequence[str], mapping: Mapping[str, str], task: Task | None
) -> dict[str, str] | None:
    """Part -> column, each column once; None when a part is missing, or the mapping names one that it has not."""
    if not set(mapping) <= {*entry.needs, *entry.may_have}:
        return None
    found: dict[str, str] = {}
    for part in (*entry.needs, *entry.may_have):
        free = [name for name in present if name not in {*found.values(), *mapping.values()}]
        column = mapping.get(part) or _find_column(part, entry.names.get(part) or ALIASES[part], free, task)
        if column is not None:
            found[part] = column
        elif part in entry.needs:
            return None
    return found


def _find_column(part: str, names: Sequence[str], present: Sequence[str], task: Task | None) -> str | None:
    if part == "score" and task == "regression":
        names = (*names, *ALIASES["label"])  # asked for, so a label column of numbers is meant as a score
    by_name = {column.lower(): column for column in present}
    return next((by_name[name] for name in names if name in by_name), None)


def _describe(examples: Rows, chosen: Format, columns: Columns) -> Examples:
    parts = ", ".join(f"{part} from '{column}'" for part, column in columns.items())
    recognised = f"{chosen.task}, {chosen.name}: {parts}"
    class_names: tuple[str, ...] = ()
    if chosen.task in ("classification", "multi-label", "token-classification"):
        counts = Counter(_class_names(examples))
        class_names = tuple(sorted(counts, key=_class_order(counts)))
        if len(class_names) < 2 and chosen.task == "classification":
            raise InputError(
                f"{examples[0].origin.file}: all {len(examples):,} rows have the one label '{class_names[0]}'; "
                "a classifier needs two or more. Add rows of another class"
            )
        recognised += f" ({len(class_names)} classes: {_count_classes(counts, class_names)})"
    if chosen.task == "extractive-qa":
        silent = sum(isinstance(row, SpanQuestion) and not row.answers for row in examples)
        class_names = (UNANSWERABLE,) if silent else ()
        recognised += f" ({silent:,} {UNANSWERABLE})" if silent else ""
    recognised += f", {len(examples):,} rows"
    return Examples(chosen.task, examples, class_names, recognised, examples.fingerprint)


def _class_names(examples: Rows) -> Iterator[str]:
    for row in examples:
        if isinstance(row, TaggedWords):
            yield from row.tags
        elif isinstance(row, LabelledText):
            yield from row.target if isinstance(row.target, tuple) else (str(row.target),)


def _count_classes(counts: Counter[str], class_names: Sequence[str]) -> str:
    shown = ", ".join(f"{name} {counts[name]:,}" for name in class_names[:10])
    return shown + (", ..." if len(class_names) > 10 else "")


def _class_order(names: Mapping[str, int]) -> Callable[[str], tuple[int, str]]:
    """By number when all class names are whole numbers, else by name."""
    numeric = all(name.removeprefix("-").isdecimal() for name in names)
    return lambda name: (int(name), name) if numeric else (0, name)
