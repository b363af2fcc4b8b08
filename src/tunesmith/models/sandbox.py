"""jinja2's sandbox with a meter: every loop, operator, call, filter and output pays before it works.

transformers renders chat templates in a sandbox that keeps Python's internals away but sets no bound on
time or memory. This is that sandbox, with the bounds: what would take more than MOST_WORK steps, or make
more than as many characters and items, ends in an ExcessError before it is made.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.optimizer import Optimizer
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

# Units of work: one for a character, more for what takes longer. All of it takes well under a second.
MOST_WORK = 2_000_000  # in one rendering
WORK_OF_AN_ITEM = 4
WORK_OF_A_ROUND = 10
WORK_OF_A_CALL = 40

CONTAINERS: tuple[Any, ...] = (list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))
# Filters and methods whose result is as long as the product of what they are given, not the sum.
MULTIPLYING = {"batch", "center", "expandtabs", "indent", "ljust", "replace", "rjust", "round", "slice", "sum"}
MULTIPLYING |= {"tojson", "translate", "truncate", "wordwrap", "zfill"}
FORMATTING = {"format", "format_map"}
# Filters that read an attribute, given by name, of many things.
REACHING = {
    "attr",
    "groupby",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "select",
    "selectattr",
    "sort",
    "sum",
    "unique",
}


class ExcessError(Exception):
    """The meter ran out. No error of jinja's, which jinja would handle."""


class Meter:
    """Work left; `fault` says for what it ran out, also where jinja swallowed the exception."""

    def __init__(self) -> None:
        self.left = MOST_WORK
        self.fault = ""

    def refill(self) -> None:
        self.left = MOST_WORK

    def spend(self, work: int, what: str) -> None:
        self.left -= work
        if self.left < 0:
            self.fault = self.fault or f"takes more than {MOST_WORK:,} steps or characters ({what})"
            raise ExcessError


def measure(value: Any) -> int:
    """The work that a value makes, its characters and items counted wherever they are reached; cut at MOST_WORK."""
    size, todo = 0, [value]
    while todo and size <= MOST_WORK:
        item = todo.pop()
        size += WORK_OF_AN_ITEM
        if isinstance(item, str | bytes):
            size += len(item)
        elif isinstance(item, CONTAINERS):
            todo += [*item]
        elif isinstance(item, dict):
            todo += [*item, *item.values()]
        elif isinstance(item, int):
            size += _cost_of_number(item.bit_length())
        elif isinstance(item, range):
            size += WORK_OF_AN_ITEM * len(item)
        elif isinstance(item, Namespace):
            todo.append(item._Namespace__attrs)
    return size


def _cost_of_number(num_bits: int) -> int:
    """Arithmetic on long numbers takes quadratic time."""
    return num_bits * num_bits // 1000


def work_of_operator(operator: str, left: Any, right: Any) -> int:
    """An upper bound for the size of `left operator right`."""
    if operator == "%" and isinstance(left, str):
        return _work_of_format(left, right)
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**" and numbers:
        return _cost_of_number(left.bit_length() * max(right, 0))
    if operator == "*" and not numbers:
        for value, times in ((left, right), (right, left)):
            if isinstance(value, str | list | tuple) and isinstance(times, int):
                return measure(value) * max(times, 0) + 1
    return measure(left) + measure(right)


def work_of_call(name: str, given: list[Any]) -> int:
    """An upper bound for the size of what the filter or method `name` makes of its values."""
    if name in FORMATTING and given and isinstance(given[0], str):
        return _work_of_format(given[0], given[1:])
    total = sum(measure(value) for value in given)
    if name == "join":
        return functools.reduce(lambda product, value: product * measure(value), given, 1)
    longest = max((_length(value) for value in given[1:]), default=0)
    if name in MULTIPLYING:
        return total * (1 + longest)
    # `select` and its like may look for a long text in each of many.
    return total * (1 + longest // 100) if name in REACHING else total


def _length(value: Any) -> int:
    if isinstance(value, int):
        return abs(value)
    return len(value) if isinstance(value, str | list | tuple) else 0


def _work_of_format(text: str, values: Any) -> int:
    """Widths stand in the text, or among the values where the text says so (`*`, `{:{}}`)."""
    widths = [int(digits) if len(digits) < 10 else MOST_WORK for digits in re.findall(r"\d+", text)]
    if "*" in text or re.search(r":[^{}]*\{", text):
        widths += _numbers(values)
    num_fields = text.count("{") + text.count("%")
    return len(text) + num_fields * (measure(values) + max(widths, default=0))


def _numbers(value: Any) -> list[int]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [abs(value)] if isinstance(value, int) else []


class Generation(Extension):
    """`{% generation %}`: marks an answer for transformers; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 (as jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Guard(ImmutableSandboxedEnvironment):
    """The environment that transformers renders chat templates in, with a meter at everything that does work."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, meter: Meter) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[Generation, loopcontrols])
        self.meter = meter
        self.filters["tojson"] = _tojson
        self.filters = {name: self._metered(name, function) for name, function in self.filters.items()}
        self.filters |= {"_rounds": self._rounds, "_sized": self._sized, "_joined": self._joined}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        del self.globals["lipsum"]  # makes text without end, and is the usual way into Python's internals

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.meter.spend(work_of_operator(operator, left, right), f"operator {operator}")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        name = str(getattr(function, "__name__", None) or getattr(function, "name", "a call"))
        # The sandbox wraps `format`; beneath lies the method with its text.
        receiver = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        given = [receiver] if isinstance(receiver, str | bytes | list | tuple | dict) else []
        given += [*args, *kwargs.values()]
        name = "range" if function is self.globals["range"] else name
        self.meter.spend(WORK_OF_A_CALL + work_of_call(name, given), name)
        return self._paid(super().call(context, function, *args, **kwargs), name)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Reaching for an unsafe attribute is an offence, even where the value is not used."""
        raise SecurityError(f"the attribute {attribute!r} of a {type(obj).__name__}")

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context or environment comes before the value

        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            self.meter.spend(work_of_call(name, [*args[first:], *kwargs.values()]), f"filter {name}")
            return self._paid(function(*args, **kwargs), f"filter {name}")

        return metered

    def _paid(self, result: Any, what: str) -> Any:
        if isinstance(result, Iterator):
            return self._paid_rounds(result, what)
        self.meter.spend(measure(result), what)
        return result

    def _paid_rounds(self, items: Iterable[Any], what: str) -> Iterator[Any]:
        for item in items:
            self.meter.spend(WORK_OF_A_ROUND, what)
            yield item

    # With the context as an argument they are never called while the template is compiled.
    @pass_context
    def _rounds(self, _: Context, items: Iterable[Any]) -> Iterator[Any]:
        return self._paid_rounds(items, "a loop")

    @pass_context
    def _sized(self, _: Context, value: Any) -> Any:
        return self._paid(value, "a list or text")

    @pass_context
    def _joined(self, _: Context, values: list[Any]) -> str:
        self.meter.spend(measure(values), "operator ~")
        return "".join(map(str, values))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


class Metering(NodeTransformer):
    """Puts a meter where jinja has no hook: loops, literals, slices, comparisons, tests and output."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through("_rounds", node.iter)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        for place, item in enumerate(node.nodes):
            text = nodes.Const(item.data, lineno=item.lineno) if isinstance(item, nodes.TemplateData) else item
            node.nodes[place] = _through("_sized", text)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through("_joined", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _through("_sized", node)

    visit_Dict = visit_List  # jinja looks methods up by node names

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _through("_sized", node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _through("_sized", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        for operand in node.ops:
            operand.expr = _through("_sized", operand.expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        node.node = _through("_sized", node.node)
        node.args = [_through("_sized", argument) for argument in node.args]
        return node


def _through(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class Folding(Optimizer):
    """What jinja computes from constants while it compiles, dead branches included, under the meter."""

    environment: Guard

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        node = super().generic_visit(node, *args, **kwargs)
        if not isinstance(node, nodes.BinExpr):
            return node
        left, right = node.left, node.right
        if not isinstance(left, nodes.Const) or not isinstance(right, nodes.Const):
            return node
        try:
            folded = self.environment.call_binop(None, node.operator, left.value, right.value)  # type: ignore[arg-type]
            return nodes.Const.from_untrusted(folded, lineno=node.lineno, environment=self.environment)
        except ExcessError:
            raise
        except Exception:  # a constant expression that is wrong fails when it is reached, as in jinja
            return node
