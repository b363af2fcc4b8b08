"""Who may do what: accounts by invitation, sessions that can be revoked, passwords as scrypt hashes.

Tokens are 256 random bits; the store has their sha256 alone, so who reads it cannot be anybody with it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from tunesmith.errors import InputError
from tunesmith.feedback.database import Database
from tunesmith.feedback.forms import check_text
from tunesmith.feedback.schema import event, invitation, labeler, session
from tunesmith.feedback.statements import SESSION

Role = Literal["owner", "labeler"]
OWNER = "owner"  # the account that the start-up token opens

DAYS = 24 * 3600.0
SESSION_SECONDS, INVITATION_SECONDS = 30 * DAYS, 7 * DAYS
# OWASP's password storage cheat sheet: N = 2^16, r = 8, p = 2 takes 64 MiB and about a quarter of a second.
SCRYPT = {"n": 2**16, "r": 8, "p": 2}
SCRYPT_MEMORY = 128 * 1024 * 1024
SHORTEST_PASSWORD, LONGEST_PASSWORD = 10, 200


class EntryError(InputError):
    """Wrong name or password, an invitation that does not hold, a blocked account."""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody signed in."""

    id: int
    name: str
    role: Role

    @property
    def is_owner(self) -> bool:
        return self.role == "owner"


class People:
    """`clock` gives seconds since 1970."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self.database, self.clock = database, clock

    # Accounts

    def find_or_add(self, name: str, role: Role = "labeler", kind: str = "human") -> Person:
        """An account without a password: the owner's, a simulated labeler's, one that an import names."""
        with self.database.writing() as connection:
            found = connection.execute(select(labeler).where(labeler.c.name == name)).first()
            if found is not None and found.kind != kind:
                raise InputError(f"'{name}' is a {found.kind} labeler already. Take another name")
            if found is not None:
                return Person(found.id, found.name, found.role)
            return Person(self._add(connection, name, role, kind, ""), name, role)

    def _add(self, connection: Connection, name: str, role: Role, kind: str, password: str) -> int:
        values = {"name": name, "role": role, "kind": kind, "password": password, "is_blocked": False}
        made = connection.execute(insert(labeler).values(**values, joined_at=self.clock()).returning(labeler.c.id))
        number = int(made.scalar_one())
        self._note(connection, "joined", number, {"name": name, "role": role, "kind": kind})
        return number

    def invite(self, role: Role = "labeler", by: int | None = None) -> str:
        """A token that opens one account, once, within a week."""
        token, now = secrets.token_urlsafe(32), self.clock()
        values = {"token": hash_token(token), "role": role, "made_at": now, "until": now + INVITATION_SECONDS}
        with self.database.writing() as connection:
            connection.execute(insert(invitation).values(**values))
            self._note(connection, "invited", by, {"role": role})
        return token

    def join(self, token: str, name: str, password: str) -> str:
        """Opens the account of an invitation; returns the token of a session.

        Raises:
            EntryError: the invitation is unknown, used or over.
            InputError: a name that is taken or empty, or a password that is too short.
        """
        name = " ".join(name.split())
        if not 1 <= len(name) <= 60:
            raise InputError("the name must have 1 to 60 letters")
        check_text(name, "the name")
        hashed = hash_password(password)
        its = invitation.c.token == hash_token(token)
        try:
            with self.database.writing() as connection:
                found = connection.execute(select(invitation).where(its)).first()
                if found is None or found.used_at is not None or found.until < self.clock():
                    raise EntryError("this invitation does not hold: it is unknown, used or over. Ask for another one")
                number = self._add(connection, name, found.role, "human", hashed)
                connection.execute(update(invitation).where(its).values(used_at=self.clock(), used_by=number))
                return self._begin(connection, number)
        except IntegrityError as error:
            raise InputError(f"the name '{name}' is taken. Choose another one") from error

    def sign_in(self, name: str, password: str) -> str:
        """A session by name and password; a wrong name takes as long to refuse as a wrong password."""
        with self.database.reading() as connection:
            named = select(labeler).where(labeler.c.name == " ".join(name.split()))
            found = connection.execute(named).first() if "\0" not in name else None
        kept = found.password if found is not None and found.password else NOBODY
        if not is_password(password, kept) or found is None or found.is_blocked:
            raise EntryError("wrong name or password")
        return self.begin_session(found.id)

    # Sessions

    def begin_session(self, labeler_id: int) -> str:
        with self.database.writing() as connection:
            return self._begin(connection, labeler_id)

    def _begin(self, connection: Connection, labeler_id: int) -> str:
        token, now = secrets.token_urlsafe(32), self.clock()
        values = {"token": hash_token(token), "labeler_id": labeler_id, "begun_at": now, "until": now + SESSION_SECONDS}
        connection.execute(insert(session).values(**values))
        self._note(connection, "signed in", labeler_id, {})
        return token

    def who(self, token: str) -> Person | None:
        """Whose session it is; None when it is unknown, over or revoked, or its account blocked."""
        found = self.database.ask(SESSION, its_token=hash_token(token), now=self.clock())
        return Person(*found[0]) if found else None

    def sign_out(self, token: str) -> None:
        with self.database.writing() as connection:
            its = session.c.token == hash_token(token)
            connection.execute(update(session).where(its).values(revoked_at=self.clock()))

    def set_blocked(self, labeler_id: int, is_blocked: bool, by: int) -> None:
        """Blocks an account, which ends its sessions at once, or lets it in again.

        Raises:
            InputError: one's own account, or none.
        """
        if labeler_id == by:
            raise InputError("you cannot block yourself")
        with self.database.writing() as connection:
            its = labeler.c.id == labeler_id
            if not connection.execute(update(labeler).where(its).values(is_blocked=is_blocked)).rowcount:
                raise InputError("no such labeler")
            if is_blocked:
                theirs = (session.c.labeler_id == labeler_id, session.c.revoked_at.is_(None))
                connection.execute(update(session).where(*theirs).values(revoked_at=self.clock()))
            self._note(connection, "blocked" if is_blocked else "unblocked", by, {"labeler": labeler_id})

    def listing(self) -> list[dict[str, Any]]:
        """All accounts: id, name, role, kind, is_blocked, joined_at, seen_at."""
        seen = select(event.c.labeler_id, func.max(event.c.at).label("seen_at")).group_by(event.c.labeler_id).subquery()
        columns = (labeler.c[name] for name in ("id", "name", "role", "kind", "is_blocked", "joined_at"))
        found = select(*columns, seen.c.seen_at).outerjoin(seen, seen.c.labeler_id == labeler.c.id)
        with self.database.reading() as connection:
            return [dict(row) for row in connection.execute(found.order_by(labeler.c.id)).mappings()]

    def _note(self, connection: Connection, action: str, labeler_id: int | None, payload: Mapping[str, Any]) -> None:
        values = {"at": self.clock(), "labeler_id": labeler_id, "action": action, "payload": dict(payload)}
        connection.execute(insert(event).values(**values))


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def hash_password(password: str) -> str:
    """scrypt$n$r$p$salt$hash.

    Raises:
        InputError: too short, or too long to be one.
    """
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise InputError(f"the password must have {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} letters")
    salt = secrets.token_bytes(16)
    numbers = "$".join(str(number) for number in SCRYPT.values())
    return f"scrypt${numbers}${b64encode(salt).decode()}${b64encode(_scrypt(password, salt, SCRYPT)).decode()}"


def is_password(password: str, kept: str) -> bool:
    _, n, r, p, salt, hashed = kept.split("$")
    made = _scrypt(password[: LONGEST_PASSWORD + 1], b64decode(salt), {"n": int(n), "r": int(r), "p": int(p)})
    return hmac.compare_digest(made, b64decode(hashed))


def _scrypt(password: str, salt: bytes, numbers: Mapping[str, int]) -> bytes:
    word = password.encode(errors="surrogatepass")
    return hashlib.scrypt(word, salt=salt, maxmem=SCRYPT_MEMORY, **numbers)


# What is compared with when there is no such account: a hash that no password has.
NOBODY = (
    f"scrypt${SCRYPT['n']}${SCRYPT['r']}${SCRYPT['p']}${b64encode(bytes(16)).decode()}${b64encode(bytes(64)).decode()}"
)
