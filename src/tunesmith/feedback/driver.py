"""Statements handed to the driver itself. SQLAlchemy puts each together, once; run by SQLAlchemy, a small one takes
64 µs of which SQLite needs 4 (docs/log.md), and an answer needs a dozen of them.
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
    """A statement as a driver takes it: its text, the values that stand in it, what turns values (by name) into what
    the driver knows, and JSON that comes (by place) back. `row` is None where no rows come."""

    text: str
    fixed: Mapping[str, Any]
    senders: Mapping[str, Convert]
    row: Any
    readers: Mapping[int, Convert]


@lru_cache(maxsize=256)
def _prepare(statement: Statement, dialect: Dialect, names: tuple[str, ...]) -> Prepared:
    compiled = statement.compile(dialect=dialect, column_keys=list(names))
    found = {name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in compiled.binds.items()}
    senders = {name: send for name, send in found.items() if send is not None}
    fixed = {name: value for name, value in compiled.params.items() if name not in names}
    columns = list(statement.exported_columns)
    read = JSON().dialect_impl(dialect).result_processor(dialect, None)
    return Prepared(
        str(compiled),
        {name: senders[name](value) if name in senders else value for name, value in fixed.items()},
        {name: send for name, send in senders.items() if name in names},
        namedtuple("Row", [str(column.key) for column in columns], rename=True) if columns else None,
        {place: read for place, column in enumerate(columns) if isinstance(column.type, JSON) and read is not None},
    )


def run(connection: Connection, statement: Statement, **values: Any) -> list[Any]:
    """The rows of a statement, with columns as attributes; none where it returns none.

    Raises:
        DBAPIError: whatever the driver says, as SQLAlchemy says it.
    """
    prepared = _prepare(statement, connection.dialect, tuple(values))
    for name, send in prepared.senders.items():
        values[name] = send(values[name])
    rows = run_text(connection, prepared.text, {**prepared.fixed, **values}, prepared.row is not None)
    return [_read(prepared, row) for row in rows]


def run_text(
    connection: Connection, text: str, values: Mapping[str, Any] | None = None, has_rows: bool = False
) -> list[Any]:
    """As `run`, of a statement as the driver takes it; its rows come as they are."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(*(text, values) if values else (text,))
        return list(cursor.fetchall()) if has_rows else []
    except connection.dialect.loaded_dbapi.Error as error:
        raise DBAPIError.instance(text, {}, error, connection.dialect.loaded_dbapi.Error) from error
    finally:
        cursor.close()


def _read(prepared: Prepared, row: Any) -> Any:
    if not prepared.readers:
        return prepared.row._make(row)
    read = list(row)
    for place, convert in prepared.readers.items():
        read[place] = convert(read[place])
    return prepared.row._make(read)
