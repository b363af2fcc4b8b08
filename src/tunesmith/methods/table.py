"""METHODS: every way to adjust the weights, one row each. A new method is one row and one function in its family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.errors import InputError, nearest
from tunesmith.methods import additive, full, reparam, selective
from tunesmith.methods.method import Method

METHODS: dict[str, Method] = {row.name: row for row in (*full.ROWS, *selective.ROWS, *additive.ROWS, *reparam.ROWS)}


def find_method(name: str) -> Method:
    if name not in METHODS:
        raise InputError(f"unknown method '{name}': {nearest(name, METHODS)}")
    return METHODS[name]


def choose_methods(names: Sequence[str], options: Mapping[str, Any]) -> list[Method]:
    """Rows by name.

    Raises:
        InputError: a name that is none, or an option that is for none of these methods.
    """
    chosen = [find_method(name) for name in names]
    known = {f"{method.name}.{key}" for method in chosen for key in sorted(method.options)}
    for option in options:
        if option not in known:
            one, _, _ = option.partition(".")
            near = sorted(known) if one not in names else sorted(key for key in known if key.startswith(f"{one}."))
            hint = nearest(option, near) if near else f"{', '.join(names)} take none"
            raise InputError(f"method_options has '{option}', which is for none of the methods: {hint}")
    return chosen
