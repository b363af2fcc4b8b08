"""A schema as the flags of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic.fields import FieldInfo

from tunesmith.config import ALIASES, SWITCH, Config


def flags_of(schema: type[Config]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command one flag per key of a schema, in place of its `**settings`.

    Values go to the schema as they were typed: there is one place that checks them, for files and
    flags alike.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())
        parameters = [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
        for name, field in schema.model_fields.items():
            if ("source" if name == "data" else name) in {parameter.name for parameter in own}:
                continue  # stands by itself
            kind: Any = bool if field.annotation is bool and SWITCH not in field.metadata else str
            flag = Parameter(help=f"{field.description}{_describe_default(field)}", negative="", show_default=False)
            parameters.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=None,
                    annotation=Annotated[kind | None, flag],
                )
            )
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def _describe_default(field: FieldInfo) -> str:
    """What is absent, switched off or empty needs no word; 0 does."""
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if isinstance(default, tuple):
        default = ",".join(default)
    return "" if default is False or default in (None, "", {}) else f" [default: {default}]"


def by_our_names(arguments: Sequence[str]) -> list[str]:
    """Flags as other tools call them (--lora-rank) become ours (--lora-r)."""
    renamed = []
    for argument in arguments:
        flag, sign, value = argument.partition("=")
        known = ALIASES.get(flag[2:].replace("-", "_")) if flag.startswith("--") else None
        renamed.append(f"--{known.replace('_', '-')}{sign}{value}" if known else argument)
    return renamed
