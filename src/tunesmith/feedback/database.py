"""A database that loses nothing it has said it keeps: SQLite in a file, or PostgreSQL by its address.

Whoever writes holds the only write transaction, which is short. SQLite: write-ahead log, flushed to the disk at each
commit, so that what was committed outlives a power cut (sqlite.org/wal.html). PostgreSQL flushes at commit as it comes;
an advisory lock makes writers queue there too, so events get their ids in the order in which they become visible.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

from tunesmith.errors import InputError
from tunesmith.feedback.driver import Statement, run, run_text

SECONDS_TO_WAIT = 30  # for another process to finish its write
MOST_CONNECTIONS = 48  # a web server's threads are fewer
WRITERS = 0x74756E65  # "tune": the number under which PostgreSQL's writers queue


class Database:
    """Transactions on a store, whose tables are brought up to date when it is opened."""

    def __init__(self, engine: Engine) -> None:
        self._readers, self._lock, self._at_work = engine, threading.Lock(), threading.local()
        self._writers = engine.execution_options(is_writer=True)
        with self.writing() as connection:
            settings = Config()
            settings.set_main_option("script_location", str(files("tunesmith.feedback") / "migrations"))
            settings.attributes["connection"] = connection
            command.upgrade(settings, "head")

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One state of the store, whatever is written meanwhile; within `writing`, what stands there so far."""
        outer = getattr(self._at_work, "connection", None)
        if outer is not None:
            yield outer
            return
        with self._readers.begin() as connection:
            yield connection

    def ask(self, statement: Statement, **values: Any) -> list[Any]:
        """The rows of a single statement, which is a transaction by itself."""
        with self._readers.connect() as connection:
            return run(connection, statement, **values)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """The only write transaction: on the disk when the block has ended, or not at all if it raises.

        Within another one of the same thread it is a part of that one, which is shorter than two: one lock, one flush.
        """
        outer = getattr(self._at_work, "connection", None)
        if outer is not None:
            yield outer
            return
        with self._lock, self._writers.begin() as connection:
            self._at_work.connection = connection
            try:
                yield connection
            finally:
                self._at_work.connection = None

    def close(self) -> None:
        self._readers.dispose()


def open_database(address: str, create: bool = False) -> Database:
    """A store by the path of its file, or by a URL that begins with postgresql://.

    Raises:
        InputError: no such file (unless it is to be made), not a store, or a server that does not answer.
    """
    try:
        return Database(_postgres(address) if "://" in address else _sqlite(Path(address).expanduser(), create))
    except (ArgumentError, NoSuchModuleError) as error:
        raise InputError(
            f"{_without_password(address)}: {error}. Give a file, or postgresql://USER@HOST/NAME"
        ) from error
    except DatabaseError as error:
        raise InputError(
            f"{_without_password(address)}: cannot be opened as a feedback store: {str(error.orig).strip()}. "
            "Give the file that `tunesmith feedback sample` has made, or the address of a running server"
        ) from error


def _without_password(address: str) -> str:
    try:
        return make_url(address).render_as_string() if "://" in address else address
    except ArgumentError:
        return address.partition("://")[0] + "://..."


def _sqlite(path: Path, create: bool) -> Engine:
    if not path.exists():
        if not create:
            raise InputError(f"{path}: no such feedback store. `tunesmith feedback sample` or `import` makes one")
        if not path.parent.is_dir():
            raise InputError(f"{path}: no folder {path.parent}. Make it first")
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    elif path.is_dir():
        raise InputError(f"{path} is a folder; give the file of a feedback store")
    if os.name == "posix" and path.stat().st_uid == os.getuid():
        path.chmod(0o600)  # it holds sessions and passwords, if only as hashes; the log beside it gets the same mode
    engine = create_engine(
        f"sqlite:///{path}",
        pool_size=MOST_CONNECTIONS,
        max_overflow=0,
        connect_args={"timeout": SECONDS_TO_WAIT},
        pool_use_lifo=True,
        paramstyle="named",  # so that parameters go by name, as with PostgreSQL
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "trusted_schema = OFF"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    is_writer = connection.get_execution_options().get("is_writer")
    run_text(connection, "BEGIN IMMEDIATE" if is_writer else "BEGIN")


def _postgres(address: str) -> Engine:
    url = make_url(address)
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ArgumentError(f"'{url.get_backend_name()}' is not a database that stores are kept in")
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=MOST_CONNECTIONS,
            max_overflow=0,
            pool_pre_ping=True,
            pool_use_lifo=True,
            connect_args={"autocommit": True},  # transactions begin where we say, as with SQLite
        )
    except ModuleNotFoundError as error:
        raise InputError("PostgreSQL needs a driver: pip install 'tunesmith[postgres]'") from error
    event.listen(engine, "begin", _begin_postgres)
    return engine


def _begin_postgres(connection: Connection) -> None:
    is_writer = connection.get_execution_options().get("is_writer")
    run_text(connection, f"BEGIN; SELECT pg_advisory_xact_lock({WRITERS})" if is_writer else "BEGIN")


def is_full_disk(error: OperationalError) -> bool:
    """Whether a write failed for want of space; else somebody held the database too long, or it is gone."""
    said = str(error.orig).lower()
    return "full" in said or "no space" in said
