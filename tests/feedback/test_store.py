"""The store: who gets which item, what is kept of what they say, and what nothing can take away. On both databases."""

from __future__ import annotations

import random
import threading
from collections import Counter

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.exc import DatabaseError

from tests.feedback.houses import Clock, fill, make_items, new_key
from tunesmith.errors import InputError
from tunesmith.feedback.database import Database, open_database
from tunesmith.feedback.forms import Response, Shown
from tunesmith.feedback.people import People
from tunesmith.feedback.results import read_results
from tunesmith.feedback.schema import assignment, event, item, metadata
from tunesmith.feedback.store import ConflictError, NotLentError, Store, Study, shuffle


def ids_of(shown: Shown) -> list[str]:
    return [name for name, _ in shown.candidates]


def as_shown(shown: Shown) -> Response:
    return Response(levels=tuple((name,) for name in ids_of(shown)))


def rank(store: Store, labeler: int, shown: Shown, key: str = "") -> int:
    return store.rank(labeler, shown.item_id, shown.version, key or new_key(), as_shown(shown), 3.0)


def take(store: Store, labeler: int) -> Shown:
    shown = store.take_next(labeler)
    assert shown is not None
    return shown


def add_people(people: People, count: int) -> list[int]:
    return [people.find_or_add(f"person {number}").id for number in range(count)]


def num_events(database: Database, action: str) -> int:
    with database.reading() as connection:
        return connection.execute(select(func.count()).where(event.c.action == action)).scalar_one()


def test_the_tables_are_those_of_the_schema(database: Database) -> None:
    """What the migrations make is what the code asks for."""
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_what_is_said_comes_back_as_ids(store: Store, people: People) -> None:
    fill(store, 1)
    (ann,) = add_people(people, 1)
    shown = take(store, ann)
    one, two, three, four = ids_of(shown)
    said = Response(
        levels=((two,), (four, one)), unranked=(three,), unsafe=(three,), comment="ŁÓ \U0001f600 שלום", all_bad=True
    )
    version = store.rank(ann, shown.item_id, 0, new_key(), said, 12.5)
    (ranked,) = read_results(store.database).rankings
    assert ranked.ranks == {two: 1, four: 2, one: 2, three: None}
    assert (ranked.labeler, ranked.event, ranked.seconds) == ("person 0", version, 12.5)
    assert (ranked.unsafe, ranked.comment, ranked.all_bad) == ((three,), "ŁÓ \U0001f600 שלום", True)
    assert list(ranked.shown) == ids_of(shown)


def test_the_order_that_is_shown_is_random_kept_and_of_its_seed(store: Store, people: People) -> None:
    fill(store, 60)
    ann, ben = add_people(people, 2)
    store.change_study(Study(overlap=2))
    firsts: Counter[int] = Counter()
    orders: dict[int, list[list[str]]] = {ann: [], ben: []}
    for labeler in (ann, ben):
        while (shown := store.take_next(labeler)) is not None:
            assert ids_of(take(store, labeler)) == ids_of(shown), "the same person sees the same order again"
            orders[labeler].append(ids_of(shown))
            firsts[sorted(ids_of(shown)).index(ids_of(shown)[0])] += 1
            rank(store, labeler, shown)
    assert orders[ann] != orders[ben]
    assert all(15 <= firsts[place] <= 45 for place in range(4)), "each answer comes first about as often"
    with store.database.reading() as connection:
        for row in connection.execute(select(assignment)).mappings():
            assert row["shown"] == shuffle(row["shown"], row["seed"])


def test_two_people_get_different_items_and_overlap_makes_them_meet(store: Store, people: People) -> None:
    fill(store, 2)
    ann, ben, cem = add_people(people, 3)
    one, two = take(store, ann), take(store, ben)
    assert one.item_id != two.item_id
    assert store.take_next(cem) is None
    store.change_study(Study(overlap=2))
    third = take(store, cem)
    rank(store, cem, third)
    rank(store, ann, one)
    assert take(store, ann).item_id == two.item_id


def test_nobody_is_over_assigned_when_all_ask_at_once(store: Store, people: People) -> None:
    """Eight people in as many threads, two for each item: every item has exactly two rankings at the end."""
    fill(store, 12)
    store.change_study(Study(overlap=2))
    labelers, problems = add_people(people, 8), []

    def work(labeler: int) -> None:
        try:
            while (shown := store.take_next(labeler)) is not None:
                rank(store, labeler, shown)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(labeler,)) for labeler in labelers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    counts = Counter(ranked.item for ranked in read_results(store.database).rankings)
    assert sorted(counts.values()) == [2] * 12


def test_a_lease_that_runs_out_is_lent_again_and_late_work_still_counts(
    store: Store, people: People, clock: Clock
) -> None:
    fill(store, 1)
    ann, ben = add_people(people, 2)
    shown = take(store, ann)
    store.save_draft(ann, shown.item_id, 0, {"at": 1})
    clock.now += 60 * 29
    assert store.take_next(ben) is None
    store.save_draft(ann, shown.item_id, 0, {"at": 2})  # a change keeps it lent
    clock.now += 60 * 29
    assert store.take_next(ben) is None
    clock.now += 120
    other = take(store, ben)
    assert other.item_id == shown.item_id
    assert num_events(store.database, "expired") == 1
    rank(store, ann, shown)
    rank(store, ben, other)
    assert {ranked.labeler for ranked in read_results(store.database).rankings} == {"person 0", "person 1"}


def test_whose_lease_ran_out_may_go_on_with_the_draft(store: Store, people: People, clock: Clock) -> None:
    fill(store, 1)
    (ann,) = add_people(people, 1)
    shown = take(store, ann)
    store.save_draft(ann, shown.item_id, 0, {"at": 1, "comment": "half"})
    clock.now += 3600
    again = take(store, ann)
    assert (again.item_id, again.draft, ids_of(again)) == (shown.item_id, {"at": 1, "comment": "half"}, ids_of(shown))


def test_the_same_key_is_the_same_request(store: Store, people: People) -> None:
    fill(store, 2)
    (ann,) = add_people(people, 1)
    shown, key = take(store, ann), new_key()
    first = rank(store, ann, shown, key)
    assert rank(store, ann, shown, key) == first
    assert num_events(store.database, "ranked") == 1
    other = take(store, ann)
    with pytest.raises(ConflictError, match="another answer"):
        rank(store, ann, other, key)


def test_a_key_that_comes_with_other_words_is_not_taken_for_the_same_request(store: Store, people: People) -> None:
    """A ranking whose answer was lost on the way back, then a skip: "Saved" would be said of what is not."""
    fill(store, 1)
    (ann,) = add_people(people, 1)
    shown, key = take(store, ann), new_key()
    rank(store, ann, shown, key)
    with pytest.raises(ConflictError, match="another answer"):
        store.skip(ann, shown.item_id, 0, key, "I cannot judge this")
    with pytest.raises(ConflictError, match="another answer"):
        store.rank(ann, shown.item_id, 0, key, Response(levels=(tuple(ids_of(shown)),)))
    assert len(read_results(store.database).rankings) == 1


def test_an_older_page_overwrites_nothing(store: Store, people: People) -> None:
    fill(store, 1)
    (ann,) = add_people(people, 1)
    shown = take(store, ann)
    version = rank(store, ann, shown)
    with pytest.raises(ConflictError, match="answered since"):
        rank(store, ann, shown)
    with pytest.raises(ConflictError):
        store.save_draft(ann, shown.item_id, 0, {})
    better = Response(levels=(tuple(ids_of(shown)),))
    store.rank(ann, shown.item_id, version, new_key(), better)
    (ranked,) = read_results(store.database).rankings
    assert set(ranked.ranks.values()) == {1}
    assert num_events(store.database, "revised") == 1
    first = read_results(store.database, until=version).rankings[0]
    assert len(set(first.ranks.values())) == 4, "what was said before can still be read"


def test_skipping_leaves_an_item_to_others_and_can_be_taken_back(store: Store, people: People) -> None:
    fill(store, 1)
    ann, ben = add_people(people, 2)
    shown = take(store, ann)
    version = store.skip(ann, shown.item_id, 0, new_key(), "I cannot judge this")
    assert store.take_next(ann) is None
    assert take(store, ben).item_id == shown.item_id
    assert read_results(store.database).skips == {"person 0": 1}
    store.rank(ann, shown.item_id, version, new_key(), as_shown(shown))
    assert len(read_results(store.database).rankings) == 1


def test_nobody_reaches_what_they_were_not_shown(store: Store, people: People) -> None:
    fill(store, 1)
    ann, ben = add_people(people, 2)
    shown = take(store, ann)
    for reach in (
        lambda: store.open_mine(ben, shown.item_id),
        lambda: rank(store, ben, shown),
        lambda: store.save_draft(ben, shown.item_id, 0, {}),
        lambda: store.skip(ben, shown.item_id, 0, new_key(), ""),
        lambda: store.open_aside(ben, "0" * 16),
    ):
        with pytest.raises(NotLentError):
            reach()
    assert store.history(ben) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda names: {"levels": [[names[0]], [names[1]]]}, "each answer of this item once"),
        (lambda names: {"levels": [[names[0], names[0]], names[1:]]}, "each answer of this item once"),
        (lambda names: {"levels": [names[:3], ["0" * 16]]}, "each answer of this item once"),
        (lambda names: {"levels": [[], names]}, "level of the ranking is empty"),
        (lambda names: {"levels": [], "unranked": names}, "nothing is ranked"),
        (lambda names: {"levels": [names], "unsafe": ["f" * 16]}, "is no answer of this item"),
        (lambda names: {"levels": [names], "comment": "a\0b"}, "cannot be stored"),
    ],
)
def test_what_does_not_fit_the_item_is_refused(store: Store, people: People, change: object, words: str) -> None:
    fill(store, 1)
    (ann,) = add_people(people, 1)
    shown = take(store, ann)
    response = Response(**change(ids_of(shown)))  # type: ignore[operator]
    with pytest.raises(InputError, match=words):
        store.rank(ann, shown.item_id, 0, new_key(), response)
    assert num_events(store.database, "ranked") == 0


def test_events_can_be_neither_changed_nor_removed(store: Store, people: People) -> None:
    fill(store, 1)
    for change in (update(event).values(at=0.0), delete(event)):
        with pytest.raises(DatabaseError, match="never changed"), store.database.writing() as connection:
            connection.execute(change)
    assert num_events(store.database, "added") == 1


def test_a_transaction_that_fails_leaves_nothing(store: Store, people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, 1)
    (ann,) = add_people(people, 1)
    shown = take(store, ann)

    with monkeypatch.context() as patched:
        patched.setattr("tunesmith.feedback.statements.ANSWER", None)  # after the event, before the assignment
        with pytest.raises(AttributeError):
            rank(store, ann, shown)
    assert num_events(store.database, "ranked") == 0
    assert take(store, ann).version == 0


def test_what_is_known_to_matter_comes_first(store: Store, people: People) -> None:
    items = fill(store, 5)
    (ann,) = add_people(people, 1)
    store.set_priorities({items[3].id: (2.0, "the reward models disagree"), items[1].id: (1.0, "")})
    order = []
    while (shown := store.take_next(ann)) is not None:
        order.append(shown.item_id)
        rank(store, ann, shown)
    assert order[:2] == [items[3].id, items[1].id]
    assert order[2:] == sorted((items[at].id for at in (0, 2, 4)), reverse=True), "by ids, which are hashes"


def test_the_owner_decides_beside_the_queue(store: Store, people: People) -> None:
    items = fill(store, 1)
    ann, owner = add_people(people, 2)
    rank(store, ann, take(store, ann))
    shown = store.open_aside(owner, items[0].id)
    store.rank(owner, items[0].id, 0, new_key(), Response(levels=(tuple(ids_of(shown)),)))
    decided = [ranked.is_adjudication for ranked in read_results(store.database).rankings]
    assert decided == [False, True]
    assert store.progress(ann).left == 0


def test_progress_counts_what_is_left_to_oneself(store: Store, people: People, clock: Clock) -> None:
    fill(store, 4)
    store.change_study(Study(overlap=2))
    ann, ben = add_people(people, 2)
    for _ in range(2):
        rank(store, ann, take(store, ann))
    store.skip(ann, take(store, ann).item_id, 0, new_key(), "")
    clock.now += 60
    found = store.progress(ann)
    assert (found.ranked, found.skipped, found.left) == (2, 1, 1)
    assert store.progress(ben).left == 4


def test_the_same_items_are_added_once(store: Store) -> None:
    assert store.add_items(make_items(3)) == 3
    assert store.add_items(make_items(5)) == 2


def test_a_store_is_opened_again_as_it_was(address: str, store: Store, people: People) -> None:
    fill(store, 2)
    (ann,) = add_people(people, 1)
    rank(store, ann, take(store, ann))
    store.database.close()
    again = open_database(address)
    assert len(read_results(again).rankings) == 1
    again.close()


def test_random_work_keeps_the_books(store: Store, people: People, clock: Clock) -> None:
    """Whatever three people do in whatever order, `is_free` says what a count of rankings and leases says."""
    fill(store, 6)
    store.change_study(Study(overlap=2))
    rng, labelers = random.Random(7), add_people(people, 3)
    for _ in range(120):
        labeler = rng.choice(labelers)
        clock.now += rng.choice([1, 60, 2000])
        shown = store.take_next(labeler)
        past = store.history(labeler)
        if past and rng.random() < 0.3:
            shown = store.open_mine(labeler, rng.choice(past)["item_id"])
        if shown is None:
            continue
        if rng.random() < 0.3:
            store.skip(labeler, shown.item_id, shown.version, new_key(), "")
        elif rng.random() < 0.8:
            rank(store, labeler, shown)
    with store.database.reading() as connection:
        for row in connection.execute(select(item.c.id, item.c.is_free)):
            states = connection.execute(select(assignment.c.state).where(assignment.c.item_id == row.id)).scalars()
            assert row.is_free == (sum(state in ("open", "ranked") for state in states) < 2)


def test_sqlite_writes_through_to_the_disk(tmp_path: object, store: Store) -> None:
    if store.database._readers.dialect.name != "sqlite":
        pytest.skip("SQLite's own settings")
    with store.database.reading() as connection:
        found = {name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")}
    assert found == {"journal_mode": "wal", "synchronous": 2}


def test_a_store_that_is_none_is_named(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "text.db").write_text("this is no database, whatever its name says " * 50)
    for given, words in (
        (str(folder / "absent.db"), "no such feedback store"),
        (str(folder / "no" / "such.db"), "no such feedback store"),
        (str(folder), "is a folder"),
        (str(folder / "text.db"), "cannot be opened as a feedback store"),
        ("mysql://me:secret@host/name", "mysql"),
        ("postgresql://me:secret@127.0.0.1:1/name", "cannot be opened"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            open_database(given)
        assert "secret" not in str(caught.value)


def test_a_transaction_within_another_is_a_part_of_it(store: Store, people: People) -> None:
    """All of it or nothing, and what is read within is what was written so far."""
    fill(store, 2)
    (ann,) = add_people(people, 1)
    shown = take(store, ann)

    def rank_and_fail() -> None:
        with store.database.writing():
            rank(store, ann, shown)
            assert store.progress(ann).ranked == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rank_and_fail()
    assert store.progress(ann).ranked == 0
    with store.database.writing():
        rank(store, ann, shown)
        take(store, ann)
    assert store.progress(ann).ranked == 1
    assert num_events(store.database, "ranked") == 1
