"""Statements handed to the driver itself. SQLAlchemy puts each together once; run by SQLAlchemy, a small one takes 64 µs of
which SQLite needs 4 (docs/log.md), and an answer needs sixteen of them.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import JSON, Connection, Delete, Dialect, Insert, Select, Update
from sqlalchemy.exc import DBAPIError

Statement = Select[Any] | Insert | Update | Delete
Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A statement as a driver takes it: its text, the values that stand in it, and what turns JSON into what the driver
    knows, by the parameter's name, and back, by the column's place. `row` is None where no rows come."""

    text: str
    fixed: Mapping[str, Any]
    senders: tuple[tuple[str, Convert], ...]
    row: Any
    readers: tuple[tuple[int, Convert], ...]


@lru_cache(maxsize=256)
def _prepare(statement: Statement, dialect: Dialect, names: tuple[str, ...]) -> Prepared:
    compiled = statement.compile(dialect=dialect, column_keys=list(names))
    columns, json = list(statement.exported_columns), JSON(none_as_null=True).dialect_impl(dialect)
    send, read = json.bind_processor(dialect), json.result_processor(dialect, None)
    sent = [name for name in names if isinstance(compiled.binds[name].type, JSON)]
    came = [place for place, column in enumerate(columns) if isinstance(column.type, JSON)]
    return Prepared(
        str(compiled),
        {name: value for name, value in compiled.params.items() if name not in names},
        tuple((name, send) for name in sent if send is not None),
        namedtuple("Row", [column.key for column in columns], rename=True) if columns else None,
        tuple((place, read) for place in came if read is not None),
    )


def run(connection: Connection, statement: Statement, **values: Any) -> list[Any]:
    """The rows of a statement, with columns as attributes; none where it returns none.

    Raises:
        DBAPIError: whatever the driver says, as SQLAlchemy says it.
    """
    prepared = _prepare(statement, connection.dialect, tuple(values))
    for name, send in prepared.senders:
        values[name] = send(values[name])
    cursor = connection.connection.cursor()
    try:
        cursor.execute(prepared.text, {**prepared.fixed, **values})
        rows = cursor.fetchall() if prepared.row is not None else []
    except connection.dialect.loaded_dbapi.Error as error:
        raise DBAPIError.instance(prepared.text, {}, error, connection.dialect.loaded_dbapi.Error) from error
    finally:
        cursor.close()
    return [_read(prepared, row) for row in rows]


def _read(prepared: Prepared, row: Any) -> Any:
    if not prepared.readers:
        return prepared.row._make(row)
    read = list(row)
    for place, convert in prepared.readers:
        read[place] = convert(read[place])
    return prepared.row._make(read)
