"""Chat templates are programs that come with a model: tried out here before they are used.

A template is read as a syntax tree, then rendered on a handful of conversations in the metered sandbox.
What it does with other conversations than these is not covered: a template may still be slow on some.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError

from tunesmith.errors import InputError
from tunesmith.models.sandbox import REACHING, ExcessError, Folding, Guard, Meter, Metering

LONGEST_TEMPLATE = 200_000  # characters; the longest known ones have some 20,000

# Statements that read other files.
READERS = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
# What may not be raised while rendering; everything else is the template's own way of saying no.
OFFENCES = (
    (SecurityError, "reaches for Python's internals: {}"),
    (RecursionError, "calls itself without end"),
    (MemoryError, "asks for more memory than there is"),
    (OverflowError, "asks for too much: {}"),  # `range` of the sandbox
)
SPECIAL_TOKENS = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")}
NUM_TURNS = 40  # of the long conversation, on which loops within loops over the turns show


def check_template(template: str | Mapping[str, str] | None, given: str) -> None:
    """Refuses chat templates that attack or never end; `given` names where they come from.

    Args:
        template: one template, or several by name, as tokenizers have them; None passes.

    Raises:
        InputError: the template cannot be parsed, is longer than LONGEST_TEMPLATE, reaches for Python's
            internals or for files, or asks for too much work on one of a handful of conversations.
    """
    named = template if isinstance(template, Mapping) else {"": template} if template else {}
    for name, text in named.items():
        fault = _find_fault(text) if isinstance(text, str) else f"is no text but a {type(text).__name__}"
        if fault:
            which = f"the chat template '{name}'" if name else "the chat template"
            raise InputError(
                f"{given}: {which} {fault}. A template is a program that comes with the model; this one is not used. "
                "Replace it by one you trust (chat_template.jinja, or chat_template in tokenizer_config.json), or "
                "remove it: a plain one is used then"
            )


@lru_cache(maxsize=64)
def _find_fault(text: str) -> str:
    """The clause that says what is wrong; empty when nothing is."""
    if len(text) > LONGEST_TEMPLATE:
        return f"is {len(text):,} characters long; {LONGEST_TEMPLATE:,} are the most"
    meter = Meter()
    try:
        return _try_out(text, Guard(meter), meter) or meter.fault
    except TemplateSyntaxError as error:
        return meter.fault or f"cannot be parsed: line {error.lineno}: {error.message}"
    except ExcessError:
        return meter.fault
    except (RecursionError, MemoryError, SyntaxError) as error:  # from the compiler, on what is nested too deeply
        return f"cannot be parsed: {type(error).__name__}, it is nested too deeply"


def _try_out(text: str, guard: Guard, meter: Meter) -> str:
    tree = guard.parse(text)
    fault = next(_static_faults(tree), "")
    if fault:
        return fault
    Folding(guard).visit(guard.parse(text))
    if meter.fault:
        return meter.fault
    metered = Metering().visit(tree)
    metered.set_environment(guard)
    code = guard.compile(metered)
    rendered = guard.template_class.from_code(guard, code, guard.make_globals(None))
    for probe in _probes():
        meter.refill()
        fault = _render(rendered, probe, meter)
        if fault:
            return fault
    return ""


def _render(template: Any, probe: dict[str, Any], meter: Meter) -> str:
    try:
        template.render(probe)
    except Exception as error:  # it may refuse a conversation: ours are only guesses at what it takes
        words = next((words for kind, words in OFFENCES if isinstance(error, kind)), "")
        return meter.fault or words.format(error)
    return meter.fault


def _static_faults(tree: nodes.Template) -> Iterator[str]:
    for attribute in tree.find_all(nodes.Getattr):
        if attribute.attr.startswith("_"):
            yield f"reaches for Python's internals: .{attribute.attr} in line {attribute.lineno}"
    for item in tree.find_all(nodes.Getitem):
        if _is_hidden(item.arg):
            yield f"reaches for Python's internals: an item with two underscores in line {item.lineno}"
    for call in tree.find_all(nodes.Filter):
        named = [*call.args, *(pair.value for pair in call.kwargs)]
        if call.name in REACHING and any(_is_hidden(value) for value in named):
            yield f"reaches for Python's internals: filter {call.name} in line {call.lineno}"
    for reader in tree.find_all(READERS):
        yield f"reads other files ({type(reader).__name__.lower()}) in line {reader.lineno}"
    for name in tree.find_all(nodes.Name):
        if name.name == "lipsum":
            yield f"uses lipsum, which makes text without end, in line {name.lineno}"


def _is_hidden(node: nodes.Node) -> bool:
    """A text that names an attribute such as __class__, also at the end of a path (`a.__class__`)."""
    return isinstance(node, nodes.Const) and isinstance(node.value, str) and bool(re.search(r"(^|\.)__", node.value))


def _probes() -> Iterator[dict[str, Any]]:
    """Variables as `apply_chat_template` passes them: short conversations, and a long one."""
    asked = {"role": "user", "content": "What is\nup?"}
    answered = {"role": "assistant", "content": "Not much. <think>x</think> 'y' {z}"}
    system = {"role": "system", "content": "Be brief."}
    conversations = [
        [asked],
        [{"role": "system", "content": ""}, asked],
        [asked, answered],
        [system, *[asked, answered] * 3],
        [asked, answered] * (NUM_TURNS // 2),
    ]
    for messages in conversations:
        for prompt in (True, False):
            variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": prompt}
            yield variables | SPECIAL_TOKENS
