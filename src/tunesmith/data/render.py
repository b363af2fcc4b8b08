"""Conversations as text, by the tokenizer's chat template: what is context, and what is an answer.

A text may hold what the tokenizer would read as a control token. Each such place is put as a mark (a character
that no text uses) before rendering, so that what a user wrote stays apart from what the template wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunesmith.errors import InputError
from tunesmith.records import Message

# The first of the characters that stand for control tokens in texts: Unicode's supplementary private use area B.
FIRST_MARK = 0x100000
SHIELD = chr(0x10FFFD)  # the last of them
LIKE_MARKS = re.compile(f"[{chr(FIRST_MARK)}-{SHIELD}]")


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive text of a rendered conversation. `is_answer` from the answer's first character on to where the
    next turn begins."""

    text: str
    is_answer: bool


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What is rendered: turns, the functions that may be called (JSON, or empty), and whether an answer is to come."""

    messages: tuple[Message, ...]
    tools: str = ""
    is_open: bool = False


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Everything the tokenizer reads as a control token wherever it stands, longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {str(token.content) for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
    return sorted((token for token in found if token), key=lambda token: (-len(token), token))


def mark_controls(dialogue: Dialogue, controls: Sequence[str]) -> Dialogue:
    """The same with a mark in place of each control token in a text; what looks like a mark gets a shield before it."""
    if not any(has_marks(turn.content) or any(map(turn.content.__contains__, controls)) for turn in dialogue.messages):
        return dialogue
    turns = []
    for turn in dialogue.messages:
        content = LIKE_MARKS.sub(SHIELD + r"\g<0>", turn.content)
        for number, token in enumerate(controls):
            content = content.replace(token, chr(FIRST_MARK + number))
        turns.append(replace(turn, content=content))
    return replace(dialogue, messages=tuple(turns))


def split_marks(text: str, controls: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """(text, is a control token in a user's text) in order."""
    letters = iter(text)
    plain = ""
    for letter in letters:
        number = ord(letter) - FIRST_MARK
        if letter == SHIELD:
            plain += next(letters)
        elif 0 <= number < len(controls):
            yield from [(plain, False)] * bool(plain)
            yield controls[number], True
            plain = ""
        else:
            plain += letter
    yield from [(plain, False)] * bool(plain)


def has_marks(text: str) -> bool:
    return not text.isascii() and LIKE_MARKS.search(text) is not None


def render(dialogues: Sequence[Dialogue], tokenizer: PreTrainedTokenizerBase) -> list[list[Piece] | InputError]:
    """The pieces of each dialogue, or why it has none; their texts end to end are the rendered conversation."""
    folded = [_fold_system(dialogue, tokenizer) for dialogue in dialogues]
    wanted = [list(_beginnings(dialogue)) for dialogue in folded]
    rendered = iter(_render_all([beginning for part in wanted for beginning in part], tokenizer))
    made: list[list[Piece] | InputError] = []
    for dialogue, part in zip(folded, wanted, strict=True):
        texts = [next(rendered) for _ in part]
        failed = next((text for text in texts if isinstance(text, InputError)), None)
        made.append(failed or _cut(dialogue, part, [str(text) for text in texts]))
    return made


def _beginnings(dialogue: Dialogue) -> Iterator[Dialogue]:
    """What has to be rendered to know where each answer starts and ends: up to it, and with it."""
    for number, turn in enumerate(dialogue.messages):
        if turn.role == "assistant":
            yield replace(dialogue, messages=dialogue.messages[:number], is_open=True)
            yield replace(dialogue, messages=dialogue.messages[: number + 1], is_open=False)
    if dialogue.is_open:
        yield dialogue


def _cut(dialogue: Dialogue, beginnings: Sequence[Dialogue], texts: Sequence[str]) -> list[Piece] | InputError:
    pieces, done = [], ""
    for beginning, text in zip(beginnings, texts, strict=True):
        if not text.startswith(done):
            return InputError(
                f"the chat template rewrites what stands before turn {len(beginning.messages) + 1}, so training would "
                "not match inference. Use a template that only appends (tokenizer.chat_template)"
            )
        pieces.append(Piece(text[len(done) :], not beginning.is_open))
        done = text
    lost = next((turn for turn in dialogue.messages if turn.content.strip() not in done), None)
    if lost is not None and lost.role in ("user", "tool"):
        return InputError(
            f"the chat template leaves out the {lost.role}'s text '{lost.content.strip()[:40]}'. "
            "Use a template that keeps it (tokenizer.chat_template), or leave the row out"
        )
    return pieces


def _fold_system(dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase) -> Dialogue:
    """For a template without a system role: its text opens the first question, as Gemma's makers advise."""
    turns = dialogue.messages
    if len(turns) < 2 or turns[0].role != "system" or takes_system(tokenizer):
        return dialogue
    first = replace(turns[1], content=f"{turns[0].content}\n\n{turns[1].content}")
    return replace(dialogue, messages=(first, *turns[2:]))


def takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template shows a system turn; some raise on it, some drop it without a word."""
    template = str(tokenizer.chat_template)
    if template not in _TAKES_SYSTEM:
        probe = Dialogue((Message("system", "qjxsystemqjx"), Message("user", "qjxuserqjx")), is_open=True)
        rendered = _render_all([probe], tokenizer)[0]
        if len(_TAKES_SYSTEM) > 100:
            _TAKES_SYSTEM.clear()
        _TAKES_SYSTEM[template] = isinstance(rendered, str) and "qjxsystemqjx" in rendered
    return _TAKES_SYSTEM[template]


_TAKES_SYSTEM: dict[str, bool] = {}


def _render_all(dialogues: Sequence[Dialogue], tokenizer: PreTrainedTokenizerBase) -> list[str | InputError]:
    """All at once where that works, else one by one, so that each has its own error."""
    made: list[str | InputError] = [""] * len(dialogues)
    groups: dict[tuple[str, bool], list[int]] = {}
    for index, dialogue in enumerate(dialogues):
        groups.setdefault((dialogue.tools, dialogue.is_open), []).append(index)
    for (tools, is_open), indices in groups.items():
        options = {"tokenize": False, "add_generation_prompt": is_open, "tools": json.loads(tools) if tools else None}
        turns = [[_as_template_takes(turn) for turn in dialogues[index].messages] for index in indices]
        try:
            texts: list[Any] = list(tokenizer.apply_chat_template(turns, **options))
        except Exception:  # jinja raises what the template's author chose
            texts = [_render_one(one, tokenizer, options) for one in turns]
        for index, text in zip(indices, texts, strict=True):
            made[index] = text
    return made


def _render_one(
    turns: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> str | InputError:
    try:
        return str(tokenizer.apply_chat_template(turns, **options))
    except Exception as error:
        return InputError(f"the chat template refuses this conversation: {error}. Change the turns, or the template")


def _as_template_takes(turn: Message) -> dict[str, Any]:
    more = json.loads(turn.more) if turn.more else {}
    return {"role": turn.role, "content": turn.content, **more}
