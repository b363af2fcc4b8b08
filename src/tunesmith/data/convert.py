"""One row's fields into an example; what cannot be one is said with how to mend it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from tunesmith.data.problems import RowError
from tunesmith.records import (
    Conversation,
    Example,
    Judgement,
    LabelledText,
    Message,
    Origin,
    PlainText,
    Ranking,
    SpanQuestion,
    TaggedWords,
)

Fields = Mapping[str, object]
Columns = Mapping[str, str]

ROLES = ("system", "user", "assistant", "tool")
# How the roles are called in ShareGPT's files and their kin.
ROLE_NAMES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "observation": "tool"}
TOOL_FIELDS = ("tool_calls", "tool_call_id", "name")
KNOWN_VERDICTS = {"true": True, "false": False, "1": True, "0": False, "good": True, "bad": False}


def text_of(value: object, column: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if value is None or isinstance(value, str):
        raise RowError(f"'{column}' is empty. Fill it in, or leave the row out")
    raise RowError(f"'{column}' is {_kind(value)}, expected text. Write it in quotes")


def _kind(value: object) -> str:
    return f"the number {value}" if isinstance(value, int | float) else type(value).__name__


def label_of(value: object, column: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, float):
        raise RowError(f"'{column}' is the number {value}, a class needs a name; for numbers use --task regression")
    return text_of(value, column).strip()


def score_of(value: object, column: str) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise RowError(f"'{column}' is {value!r}, expected a finite number. Mend it, or leave the row out")
    return number


def texts_of(value: object, column: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise RowError(f'\'{column}\' is {_kind(value)}, expected a list of texts: ["...", "..."]')
    return tuple(text_of(item, f"{column}[{number}]") for number, item in enumerate(value))


def to_labelled(row: Fields, columns: Columns, origin: Origin) -> Example:
    text, label = columns["text"], columns["label"]
    return LabelledText(text_of(row.get(text), text), label_of(row.get(label), label), origin, _second(row, columns))


def to_scored(row: Fields, columns: Columns, origin: Origin) -> Example:
    text, score = columns["text"], columns["score"]
    return LabelledText(text_of(row.get(text), text), score_of(row.get(score), score), origin, _second(row, columns))


def _second(row: Fields, columns: Columns) -> str:
    """The second text of a pair, where the format has one."""
    return text_of(row.get(columns["text_pair"]), columns["text_pair"]) if "text_pair" in columns else ""


def to_many_labelled(row: Fields, columns: Columns, origin: Origin) -> Example:
    text, column = columns["text"], columns["labels"]
    value = row.get(column)
    if not isinstance(value, list | tuple):
        raise RowError(f"'{column}' is {_kind(value)}, expected a list of class names, [] for none")
    names = [label_of(item, f"{column}[{number}]") for number, item in enumerate(value)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RowError(f"'{column}' names '{twice}' twice. Name it once")
    return LabelledText(text_of(row.get(text), text), tuple(sorted(names)), origin, _second(row, columns))


def to_tagged(row: Fields, columns: Columns, origin: Origin) -> Example:
    words = texts_of(row.get(columns["words"]), columns["words"])
    value = row.get(columns["tags"])
    if not isinstance(value, list | tuple):
        raise RowError(f"'{columns['tags']}' is {_kind(value)}, expected a list with one tag for each word")
    tags = tuple(label_of(item, f"{columns['tags']}[{number}]") for number, item in enumerate(value))
    if len(words) != len(tags) or not words:
        raise RowError(f"{len(words)} words with {len(tags)} tags; each word needs one tag, 'O' where there is none")
    return TaggedWords(words, tags, origin)


def to_plain(row: Fields, columns: Columns, origin: Origin) -> Example:
    return PlainText(text_of(row.get(columns["text"]), columns["text"]), origin)


def to_answer(row: Fields, columns: Columns, origin: Origin) -> Example:
    """A prompt, which may be turns, and its answer; `system` goes before."""
    prompt = _prompt(row.get(columns["prompt"]), columns["prompt"])
    answer = _answer(row.get(columns["completion"]), columns["completion"])
    return _conversation([*_system(row, columns), *prompt, answer], origin)


def to_instructed(row: Fields, columns: Columns, origin: Origin) -> Example:
    """{instruction, input, output, system, history}: a non-empty input follows the instruction after a blank line."""
    question = text_of(row.get(columns["instruction"]), columns["instruction"])
    if "input" in columns and row.get(columns["input"]):
        question += "\n\n" + text_of(row[columns["input"]], columns["input"])
    turns = _system(row, columns)
    for number, pair in enumerate(_list(row, columns, "history")):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(f'history[{number}] is no pair of question and answer: ["...", "..."]')
        asked, answered = (text_of(text, f"history[{number}]") for text in pair)
        turns += [Message("user", asked), Message("assistant", answered)]
    answer = text_of(row.get(columns["output"]), columns["output"])
    return _conversation([*turns, Message("user", question), Message("assistant", answer)], origin)


def to_transformed(row: Fields, columns: Columns, origin: Origin) -> Example:
    """What goes in is the question, what comes out the answer: translation, summarisation."""
    source, target = columns["source"], columns["target"]
    turns = [*_system(row, columns), Message("user", text_of(row.get(source), source))]
    return _conversation([*turns, Message("assistant", text_of(row.get(target), target))], origin)


def to_translated(row: Fields, columns: Columns, origin: Origin) -> Example:
    """{translation: {en: ..., de: ...}}: from the first language named to the second."""
    column = columns["translation"]
    pair = row.get(column)
    if not isinstance(pair, Mapping) or len(pair) != 2:
        raise RowError(f'\'{column}\' is no pair of languages: {{"en": "...", "de": "..."}}')
    (one, asked), (other, answered) = pair.items()
    turns = [Message("user", text_of(asked, f"{column}.{one}"))]
    return _conversation([*turns, Message("assistant", text_of(answered, f"{column}.{other}"))], origin)


def to_passage_answer(row: Fields, columns: Columns, origin: Origin) -> Example:
    """A passage, a question to it after a blank line, and the first of its answers (SQuAD)."""
    context, question, answers = columns["context"], columns["question"], columns["answers"]
    passage = text_of(row.get(context), context)
    asked = f"{passage}\n\n{text_of(row.get(question), question)}"
    answer = _first_answer(row.get(answers), answers, passage)
    return _conversation([*_system(row, columns), Message("user", asked), Message("assistant", answer)], origin)


def _first_answer(value: object, column: str, passage: str) -> str:
    starts: object = None
    if isinstance(value, Mapping):
        starts, value = value.get("answer_start"), value.get("text")
    if isinstance(value, list | tuple):
        if not value:
            raise RowError(
                f"'{column}' has no answer. Write one that says so, leave the row out, or let spans be found "
                "(--task extractive-qa)"
            )
        value = value[0]
    answer = text_of(value, column)
    start = starts[0] if isinstance(starts, list | tuple) and starts else None
    if isinstance(start, int):
        _check_start(answer, start, passage, column)
    return answer


def _check_start(answer: str, start: int, passage: str, column: str) -> None:
    if start < 0 or passage[start : start + len(answer)] != answer:
        raise RowError(
            f"'{column}' says that '{answer[:40]}' stands at character {start} of the passage, it does not. "
            "Starts count characters, not bytes; mend it, or leave answer_start out"
        )


def to_span_question(row: Fields, columns: Columns, origin: Origin) -> Example:
    """A passage, a question, and all answers that stand in it; an empty list of them where it does not answer.

    An answer without its start is the first place where it stands in the passage.
    """
    context, question, column = columns["context"], columns["question"], columns["answers"]
    passage, asked = text_of(row.get(context), context), text_of(row.get(question), question)
    value = row.get(column)
    texts, starts = (value.get("text"), value.get("answer_start")) if isinstance(value, Mapping) else (value, None)
    answers = texts_of(texts, column) if isinstance(texts, list | tuple) else (_only_answer(texts, column),)
    given = starts if isinstance(starts, list | tuple) and starts else [None] * len(answers)
    if len(given) != len(answers):
        raise RowError(f"'{column}' has {len(answers)} texts and {len(given)} starts; each answer needs its own")
    found = [_find_start(text, start, passage, column) for text, start in zip(answers, given, strict=True)]
    distinct = dict.fromkeys(zip(answers, found, strict=True))
    return SpanQuestion(asked, passage, tuple(text for text, _ in distinct), tuple(at for _, at in distinct), origin)


def _only_answer(value: object, column: str) -> str:
    if value is None or value == "":
        raise RowError(f"'{column}' is empty. Fill it in; a question without an answer has an empty list, []")
    return text_of(value, column)


def _find_start(answer: str, start: object, passage: str, column: str) -> int:
    if isinstance(start, int) and not isinstance(start, bool):
        _check_start(answer, start, passage, column)
        return start
    if start is not None:
        raise RowError(f"'{column}' has the start {start!r}, expected a whole number of characters")
    place = passage.find(answer)
    if place < 0:
        raise RowError(
            f"'{answer[:40]}' does not stand in the passage. Copy the answer from it letter by letter, or take it as "
            "one to be written (--task generation)"
        )
    return place


def to_conversation(row: Fields, columns: Columns, origin: Origin) -> Example:
    column = columns["messages"]
    turns = [*_system(row, columns), *_turns(row.get(column), column)]
    tools = row.get(columns["tools"]) if "tools" in columns else None
    if tools in (None, "", [], ()):
        return _conversation(turns, origin)
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise RowError(f"'{columns['tools']}' is not valid JSON: {error}. Give a list of functions") from error
    if not isinstance(tools, list):
        raise RowError(f"'{columns['tools']}' is {_kind(tools)}, expected a list of functions")
    return _conversation(turns, origin, json.dumps(tools, ensure_ascii=False))


def to_pair(row: Fields, columns: Columns, origin: Origin) -> Example:
    """Two answers, the better one first. Where both are whole conversations the prompt is what they share."""
    good, bad = row.get(columns["chosen"]), row.get(columns["rejected"])
    if isinstance(good, list) and isinstance(bad, list) and "prompt" not in columns:
        chosen, rejected = _turns(good, columns["chosen"]), _turns(bad, columns["rejected"])
        prompt, answers = chosen[:-1], (chosen[-1].content, rejected[-1].content)
        if prompt != rejected[:-1] or not prompt:
            raise RowError("'chosen' and 'rejected' answer different prompts. Their turns but the last must be equal")
    else:
        if "prompt" not in columns:
            raise RowError("no prompt: add a column 'prompt', or give chosen and rejected as lists of turns")
        prompt = _prompt(row.get(columns["prompt"]), columns["prompt"])
        answers = (_answer(good, columns["chosen"]).content, _answer(bad, columns["rejected"]).content)
    if answers[0] == answers[1]:
        raise RowError("'chosen' and 'rejected' are equal, so there is nothing to prefer. Leave the row out")
    return Ranking((*_system(row, columns), *prompt), answers, (1, 2), origin, _labeler(row, columns))


def to_ranking(row: Fields, columns: Columns, origin: Origin) -> Example:
    """Answers best to worst; with `ranks` in any order, equal ranks being ties. The best one's becomes 1."""
    prompt = (*_system(row, columns), *_prompt(row.get(columns["prompt"]), columns["prompt"]))
    answers = texts_of(row.get(columns["answers"]), columns["answers"])
    if len(answers) < 2:
        raise RowError(f"'{columns['answers']}' has {len(answers)} answers; a ranking needs two or more")
    named = _list(row, columns, "ranks") or list(range(1, len(answers) + 1))
    given = [rank for rank in named if isinstance(rank, int) and not isinstance(rank, bool)]
    if len(given) != len(answers) or len(named) != len(answers):
        raise RowError(f"'{columns.get('ranks')}' is {named}; give one whole number for each of {len(answers)} answers")
    ordered = sorted(zip(given, answers, strict=True), key=lambda pair: pair[0])
    # Gaps stay: they say how strongly one is preferred.
    texts, ranks = tuple(text for _, text in ordered), tuple(rank - min(given) + 1 for rank, _ in ordered)
    return Ranking(prompt, texts, ranks, origin, _labeler(row, columns))


def to_judgement(row: Fields, columns: Columns, origin: Origin) -> Example:
    prompt = (*_system(row, columns), *_prompt(row.get(columns["prompt"]), columns["prompt"]))
    answer = _answer(row.get(columns["completion"]), columns["completion"]).content
    value = row.get(columns["verdict"])
    verdict = KNOWN_VERDICTS.get(str(value).strip().lower())
    if verdict is None:
        raise RowError(f"'{columns['verdict']}' is {value!r}, expected true or false")
    return Judgement(prompt, answer, verdict, origin)


def _list(row: Fields, columns: Columns, part: str) -> list[object]:
    value = row.get(columns[part]) if part in columns else None
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise RowError(f"'{columns[part]}' is {_kind(value)}, expected a list")
    return list(value)


def _labeler(row: Fields, columns: Columns) -> str:
    """Who said it; empty where that is not told. People may be known by their number."""
    value = row.get(columns["labeler"]) if "labeler" in columns else None
    return "" if value in (None, "") else label_of(value, columns["labeler"])


def _system(row: Fields, columns: Columns) -> list[Message]:
    value = row.get(columns["system"]) if "system" in columns else None
    return [Message("system", text_of(value, columns["system"]))] if value else []


def _prompt(value: object, column: str) -> list[Message]:
    return _turns(value, column) if isinstance(value, list | tuple) else [Message("user", text_of(value, column))]


def _answer(value: object, column: str) -> Message:
    """A text, or a list of turns that is the assistant's one."""
    if isinstance(value, list | tuple):
        turns = _turns(value, column)
        if len(turns) != 1 or turns[0].role != "assistant":
            raise RowError(f"'{column}' is {len(turns)} turns, expected the assistant's one")
        return turns[0]
    return Message("assistant", text_of(value, column))


def _turns(value: object, column: str) -> list[Message]:
    if not isinstance(value, list | tuple) or not value:
        raise RowError(f'\'{column}\' is not a list of turns, like [{{"role": "user", "content": "..."}}]')
    return [_turn(turn, number, column) for number, turn in enumerate(value, 1)]


def _turn(turn: object, number: int, column: str) -> Message:
    """{role, content}, or {from, value} as ShareGPT's files have it."""
    if not isinstance(turn, Mapping):
        raise RowError(f"turn {number} of '{column}' is {_kind(turn)}, expected {{role, content}}")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str):
        raise RowError(f"turn {number} of '{column}' has no role; a turn is {{role, content}} or {{from, value}}")
    role = ROLE_NAMES.get(role, role)
    if role not in ROLES:
        raise RowError(f"turn {number} has role '{role}'; known: {', '.join(ROLES)}")
    extra = {key: turn[key] for key in TOOL_FIELDS if turn.get(key) is not None}
    more = json.dumps(extra, ensure_ascii=False, sort_keys=True) if extra else ""
    if "tool_calls" in extra and not content:
        return Message(role, "", more)
    return Message(role, text_of(content, f"content of turn {number}"), more)


def _conversation(turns: list[Message], origin: Origin, tools: str = "") -> Conversation:
    _check_roles([turn.role for turn in turns])
    return Conversation(tuple(turns), origin, tools)


def _check_roles(roles: list[str]) -> None:
    """A system turn may stand first; then question and answer by turns, tools' results after the assistant's call."""
    start = 1 if roles[0] == "system" else 0
    before = "assistant"
    for number, role in enumerate(roles[start:], start + 1):
        wanted = ("user",) if number == start + 1 else _FOLLOWS[before]
        if role not in wanted:
            raise RowError(
                f"turn {number} is the {role}'s, expected the {' or the '.join(f'{name}' for name in wanted)}'s. "
                "Join two turns of one speaker, or add what is missing"
            )
        before = role
    if roles[-1] != "assistant":
        raise RowError(
            "the last turn is not the assistant's, so there is nothing to learn from it. "
            "Add the answer, or leave the turn out"
        )


_FOLLOWS = {
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
    "system": ("user",),
}
