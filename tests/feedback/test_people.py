"""Accounts, invitations and sessions."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import select

from tests.feedback.houses import Clock
from tunesmith.errors import InputError
from tunesmith.feedback import people as module
from tunesmith.feedback.people import EntryError, People, hash_password, is_password
from tunesmith.feedback.schema import event, invitation, labeler, session

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strong ones take a quarter of a second each; one test below looks at those."""
    quick = {"n": 2, "r": 8, "p": 1}
    monkeypatch.setattr(module, "SCRYPT", quick)
    monkeypatch.setattr(module, "NOBODY", module.NOBODY.replace("$65536$8$2$", "$2$8$1$"))


def test_an_invitation_opens_one_account_once(people: People, clock: Clock) -> None:
    token = people.invite()
    person = people.who(people.join(token, " Ann  Lee ", PASSWORD))
    assert person is not None
    assert (person.name, person.role) == ("Ann Lee", "labeler")
    with pytest.raises(EntryError, match="does not hold"):
        people.join(token, "Ben", PASSWORD)
    with pytest.raises(EntryError):
        people.join("made up", "Ben", PASSWORD)
    late = people.invite()
    clock.now += 8 * 24 * 3600
    with pytest.raises(EntryError):
        people.join(late, "Ben", PASSWORD)


def test_a_name_is_taken_once_and_the_invitation_still_holds(people: People) -> None:
    people.join(people.invite(), "Ann", PASSWORD)
    token = people.invite()
    with pytest.raises(InputError, match="is taken"):
        people.join(token, "Ann", PASSWORD)
    assert people.who(people.join(token, "Ben", PASSWORD)) is not None


@pytest.mark.parametrize(
    ("name", "password"), [("", PASSWORD), ("x" * 61, PASSWORD), ("Ann", "short"), ("A\0", PASSWORD)]
)
def test_names_and_passwords_have_limits(people: People, name: str, password: str) -> None:
    with pytest.raises(InputError):
        people.join(people.invite(), name, password)


def test_signing_in_needs_the_right_password(people: People) -> None:
    people.join(people.invite(), "Ann", PASSWORD)
    assert people.who(people.sign_in("Ann", PASSWORD)) is not None
    for name, password in (
        ("Ann", PASSWORD + "x"),
        ("ann", PASSWORD),
        ("Nobody", PASSWORD),
        ("", ""),
        ("A\0", "\ud800"),
    ):
        with pytest.raises(EntryError, match="wrong name or password"):
            people.sign_in(name, password)


def test_an_account_without_a_password_opens_with_none(people: People) -> None:
    people.find_or_add("owner", "owner")
    for password in ("", " ", "owner", "\0"):
        with pytest.raises(EntryError):
            people.sign_in("owner", password)


def test_sessions_end(people: People, clock: Clock) -> None:
    owner = people.find_or_add("owner", "owner")
    first = people.join(people.invite(), "Ann", PASSWORD)
    second = people.sign_in("Ann", PASSWORD)
    assert first != second, "signing in gives a session of its own"
    people.sign_out(first)
    assert people.who(first) is None
    ann = people.who(second)
    assert ann is not None
    people.set_blocked(ann.id, True, owner.id)
    assert people.who(second) is None, "at once"
    with pytest.raises(EntryError):
        people.sign_in("Ann", PASSWORD)
    people.set_blocked(ann.id, False, owner.id)
    assert people.who(second) is None, "what was revoked stays so"
    third = people.sign_in("Ann", PASSWORD)
    clock.now += 31 * 24 * 3600
    assert people.who(third) is None
    with pytest.raises(InputError, match="yourself"):
        people.set_blocked(owner.id, True, owner.id)


def test_the_store_has_nothing_to_sign_in_with(people: People) -> None:
    """Whoever reads the database finds no token and no password in it."""
    token = people.invite()
    cookie = people.join(token, "Ann", PASSWORD)
    with people.database.reading() as connection:
        kept = str([connection.execute(select(table)).all() for table in (session, invitation, labeler, event)])
    assert token not in kept
    assert cookie not in kept
    assert PASSWORD not in kept
    assert "scrypt$" in kept


def test_a_simulated_labeler_is_not_taken_for_a_person(people: People) -> None:
    people.join(people.invite(), "Ann", PASSWORD)
    with pytest.raises(InputError, match="is a human labeler already"):
        people.find_or_add("Ann", kind="simulated")


def test_hashes_are_slow_salted_and_their_own_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    start = time.perf_counter()
    kept = hash_password(PASSWORD)
    assert time.perf_counter() - start > 0.05
    assert kept.startswith("scrypt$65536$8$2$")
    assert is_password(PASSWORD, kept)
    assert not is_password(PASSWORD.upper(), kept)
