"""The ranking page in a real browser: what is seen there is what is stored, whatever happens in between."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import House
from tests.browser.desk import LETTERS, Desk, sit_down
from tests.feedback.houses import fill
from tunesmith.feedback import web
from tunesmith.feedback.forms import Candidate, Item, Ranked
from tunesmith.feedback.results import read_results
from tunesmith.feedback.store import Study
from tunesmith.records import Message

STATIC = Path(web.__file__).parent / "static"
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect


class Room:
    """Desks in one house, closed at the end; nothing but the house was asked for anything."""

    def __init__(self, browser: Any, house: House) -> None:
        self.browser, self.house = browser, house
        self.desks: list[Desk] = []
        self.planted: dict[str, str] = {}
        self.may_complain = False

    def desk(self, name: str, role: Any = "labeler", where: str = "rank", **settings: Any) -> Desk:
        session = self.house.people.begin_session(self.house.people.find_or_add(name, role).id)
        self.desks.append(sit_down(self.browser, self.house.url, session, where, planted=self.planted, **settings))
        return self.desks[-1]

    def weaken(self, script: str, good: str, bad: str) -> None:
        """Serves a script with a weakness in it to the desks to come."""
        code = (STATIC / script).read_text(encoding="utf-8")
        assert good in code
        self.planted[f"**/static/{script}"] = code.replace(good, bad)

    def rankings(self, name: str) -> list[Ranked]:
        return [ranked for ranked in read_results(self.house.database).rankings if ranked.labeler == name]

    def close(self) -> None:
        for desk in self.desks:
            desk.context.close()
        for desk in self.desks:
            assert desk.hosts == {self.house.url.removeprefix("http://")}
            assert self.may_complain or desk.complaints == []


@pytest.fixture
def room(browser: Any, house: House) -> Iterator[Room]:
    made = Room(browser, house)
    yield made
    made.close()


@pytest.fixture
def full_room(browser: Any, full_house: House) -> Iterator[Room]:
    made = Room(browser, full_house)
    yield made
    made.close()


def levels_of(ranked: Ranked) -> list[list[str]]:
    known = sorted({rank for rank in ranked.ranks.values() if rank is not None})
    return [sorted(name for name, rank in ranked.ranks.items() if rank == one) for one in known]


# Ranking


def test_by_keyboard_alone(full_room: Room) -> None:
    ann = full_room.desk("ann of the keys")
    ann.press("b", "d", "Shift+A", "c")
    assert ann.letters() == ["B", "AD", "C"]
    expect(ann.card("C")).to_be_focused()
    ann.press("Alt+ArrowUp", "Alt+ArrowUp", "Alt+ArrowUp")
    assert ann.letters() == ["C", "B", "AD"]
    ann.press("t")
    assert ann.letters() == ["C", "B", "AD"], "there is nothing above the first"
    ann.press("ArrowDown", "t")
    assert ann.letters() == ["BC", "AD"]
    ann.press("t", "z", "z")
    assert ann.letters() == ["C", "B", "AD"]
    ann.press("ArrowDown", "ArrowDown", "Backspace")
    unranked = ann.page.locator("#unranked .card")
    expect(unranked).to_have_count(1)
    last = str(unranked.get_attribute("data-letter"))
    ann.press("1")
    assert ann.letters()[0] == last
    ann.press("Backspace")
    shown, left = ann.levels(), ann.id_of(last)
    ann.submit()
    (ranked,) = full_room.rankings("ann of the keys")
    assert levels_of(ranked) == shown
    assert ranked.ranks[left] is None


def test_plain_keys_never_submit_and_writing_never_ranks(full_room: Room) -> None:
    ann = full_room.desk("ann who types")
    before = ann.item()
    ann.press("a", "Enter", "Space", "Enter")
    ann.page.locator("#comment").fill("")
    ann.page.locator("#comment").press_sequentially("bad abc 123 xzs")
    assert ann.letters() == ["A"]
    assert ann.item() == before
    assert full_room.rankings("ann who types") == []
    ann.submit()
    assert full_room.rankings("ann who types")[0].comment == "bad abc 123 xzs"


def test_by_dragging(full_room: Room) -> None:
    ann = full_room.desk("ann who drags")
    ann.drag("C", ann.page.locator("#nothing-ranked"))
    assert ann.letters() == ["C"]
    ann.drag("A", ann.card("C"), 0.1)
    assert ann.letters() == ["A", "C"]
    ann.drag("B", ann.card("C"), 0.95)
    assert ann.letters() == ["A", "C", "B"]
    ann.drag("D", ann.card("C"), 0.5)
    assert ann.letters() == ["A", "CD", "B"]
    ann.drag("B", ann.card("A"), 0.05)
    assert ann.letters() == ["B", "A", "CD"]
    ann.drag("C", ann.page.locator("#ranked > .level").nth(0), 0.02)
    assert ann.letters() == ["C", "B", "A", "D"]
    shown = ann.levels()
    ann.submit()
    assert levels_of(full_room.rankings("ann who drags")[0]) == shown


def test_a_drag_is_cancelled_by_escape(full_room: Room) -> None:
    ann = full_room.desk("ann who cancels")
    ann.press("a")
    box = ann.card("B").locator(".handle").bounding_box()
    assert box is not None
    ann.page.mouse.move(box["x"] + 9, box["y"] + 9)
    ann.page.mouse.down()
    ann.page.mouse.move(box["x"] + 9, box["y"] - 150, steps=4)
    ann.press("Escape")
    ann.page.mouse.up()
    assert ann.letters() == ["A"]
    assert ann.page.locator(".dragged, .drop-tie, .drop-before").count() == 0


PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


def touch(desk: Desk, points: list[tuple[float, float]]) -> None:
    """A finger put down, moved and lifted."""
    session = desk.context.new_cdp_session(desk.page)
    kinds = ["touchStart", *["touchMove"] * (len(points) - 1)]
    for kind, (x, y) in zip(kinds, points, strict=True):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        desk.page.wait_for_timeout(20)
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    session.detach()


def middle(desk: Desk, selector: str) -> tuple[float, float]:
    box = desk.page.locator(selector).first.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_by_touch_at_phone_width(full_room: Room) -> None:
    ann = full_room.desk("ann on the phone", **PHONE)
    x, y = middle(ann, ".card[data-letter=A] .handle")
    to_x, to_y = middle(ann, "#nothing-ranked")
    touch(ann, [(x, y), (x, (y + to_y) / 2), (to_x, to_y), (to_x, to_y)])
    assert ann.letters() == ["A"]
    ann.page.locator(".card[data-letter=B] .tool-rank").tap()
    assert ann.letters() == ["A", "B"]
    before = ann.page.evaluate("scrollY")
    x, y = middle(ann, ".card[data-letter=A] .text")
    touch(ann, [(x, y), (x, y - 60), (x, y - 130), (x, y - 200)])
    ann.page.wait_for_function("before => scrollY > before + 50", arg=before)
    assert ann.letters() == ["A", "B"], "a finger on the text scrolls"
    assert ann.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the phone"
    small = ann.page.evaluate(
        """[...document.querySelectorAll("#work button, .handle")]
        .filter((node) => node.offsetParent && node.offsetHeight < 24).length"""
    )
    assert small == 0, "WCAG 2.2, 2.5.8: targets of 24 pixels or more"
    shown = ann.levels()
    ann.page.locator("#submit").tap()
    expect(ann.page.locator("#saved")).to_have_text("Saved")
    (ranked,) = full_room.rankings("ann on the phone")
    assert levels_of(ranked) == shown
    assert sum(rank is None for rank in ranked.ranks.values()) == 2


def rank_somehow(desk: Desk, rng: random.Random) -> None:
    """A random ranking with ties and unranked answers, by letters, buttons, places and now and then a drag."""
    letters = rng.sample("ABCD", rng.randint(1, 4))
    for at, letter in enumerate(letters):
        way = rng.random()
        if at and way < 0.3:
            desk.press(f"Shift+{letter}")
        elif way < 0.6:
            desk.press(letter.lower())
        elif way < 0.75:
            desk.card(letter).locator(".tool-rank").click()
        elif way < 0.9:
            desk.card(letter).focus()
            desk.press(str(rng.randint(1, 4)))
        else:
            levels = desk.page.locator("#ranked > .level")
            count = levels.count()
            goal = levels.nth(rng.randrange(count)) if count else desk.page.locator("#nothing-ranked")
            desk.drag(letter, goal, rng.choice([0.05, 0.5, 0.95]))
    if rng.random() < 0.3:
        desk.card(rng.choice(letters)).focus()
        desk.press(rng.choice(["Alt+ArrowUp", "Alt+ArrowDown", "t", "z", "Backspace"]))
    if not desk.levels():
        desk.press("a")


def check_rankings_by_browser(room: Room, name: str, count: int) -> None:
    """What is on the screen when it is submitted is what is stored, of the very item that was shown."""
    desk, rng, shown = room.desk(name), random.Random(0), []
    for _ in range(count):
        rank_somehow(desk, rng)
        shown.append((desk.item().strip(), desk.levels(), [desk.id_of(letter) for letter in "ABCD"]))
        desk.submit()
    results = read_results(room.house.database)
    stored = [ranked for ranked in results.rankings if ranked.labeler == name]
    assert [(results.items[one.item].prompt[-1].content, levels_of(one), list(one.shown)) for one in stored] == shown
    assert len({str(levels) for _, levels, _ in shown}) > count / 2


def test_what_is_seen_is_what_is_stored(full_room: Room) -> None:
    check_rankings_by_browser(full_room, "somebody busy", 12)


@pytest.mark.soak
def test_what_is_seen_is_what_is_stored_two_hundred_times(full_room: Room) -> None:
    check_rankings_by_browser(full_room, "somebody busier", 200)


def test_all_that_can_be_said(room: Room) -> None:
    fill(room.house.store, 2)
    room.house.store.change_study(
        Study(ratings=True, questions=("Is it true?", "Is it polite?"), guidelines="Be fair.\n\nAlways.")
    )
    ann = room.desk("ann")
    expect(ann.page.locator("#guidelines p")).to_have_text(["Be fair.", "Always."])
    ann.card("A").locator("[data-name=rating-A] button", has_text="6").click()
    ann.card("B").locator("[data-name=rating-B] button", has_text="2").click()
    ann.card("B").locator("[data-name=rating-B] button", has_text="2").click()  # takes it back
    ann.card("A").locator("[data-name=question-A-1] button", has_text="No").click()
    ann.card("C").locator(".tool-unsafe").click()
    expect(ann.page.locator("#submit")).to_be_disabled()
    ann.page.locator("#all-bad").check()
    expect(ann.page.locator("#submit")).to_be_enabled()
    ann.page.locator("#comment").fill("ŁÓ שלום")
    a, c = ann.id_of("A"), ann.id_of("C")
    ann.submit()
    (ranked,) = room.rankings("ann")
    assert (ranked.ratings, ranked.answers, ranked.unsafe) == ({a: 6}, {a: {"1": False}}, (c,))
    assert (ranked.all_bad, ranked.comment) == (True, "ŁÓ שלום")
    assert set(ranked.ranks.values()) == {None}
    ann.press("s")
    ann.page.get_by_label("The prompt makes no sense").check()
    ann.page.get_by_role("button", name="Skip it").click()
    expect(ann.page.locator("#done")).to_be_visible()
    assert read_results(room.house.database).skips["ann"] == 1


def test_back_and_edit(room: Room) -> None:
    fill(room.house.store, 3)
    ann = room.desk("ann")
    first = ann.item()
    ann.press("a", "b", "c", "d")
    before = ann.levels()
    ann.submit()
    ann.press("b")
    ann.submit()
    third = ann.item()
    ann.press("p")
    ann.wait_for_other(third)
    second = ann.item()
    ann.press("p")
    ann.wait_for_other(second)
    assert ann.item() == first
    assert ann.levels() == before
    expect(ann.page.locator("#editing")).to_contain_text("You have ranked this item")
    ann.press("d")
    ann.card("D").focus()
    ann.press("1")
    after = ann.levels()
    ann.submit()
    assert ann.item() == third, "and on to where one was"
    assert [levels_of(ranked) for ranked in room.rankings("ann") if after[0][0] in ranked.ranks] == [after]
    assert len(room.rankings("ann")) == 2


# What may happen in between


def test_a_draft_survives_reload_and_restart(room: Room) -> None:
    room.house.serve_by_process()
    fill(room.house.store, 2)
    ann = room.desk("ann")
    item = ann.item()
    ann.press("c", "Shift+B", "a")
    ann.page.locator("#comment").fill("half a thought")
    ann.page.reload()
    ann.wait()
    assert (ann.item(), ann.letters()) == (item, ["BC", "A"])
    expect(ann.page.locator("#comment")).to_have_value("half a thought")
    expect(ann.page.locator("#saved")).to_have_text("Your draft is back")
    ann.press("d")
    expect(ann.page.locator("#saved")).to_have_text("Draft kept")
    room.house.restart()
    ann.page.evaluate("localStorage.clear()")  # as in another browser: the server has it too
    ann.page.reload()
    ann.wait()
    assert (ann.item(), ann.letters()) == (item, ["BC", "A", "D"])
    shown = ann.levels()
    room.house.restart()
    ann.submit()
    assert [levels_of(ranked) for ranked in room.rankings("ann")] == [shown]


def test_a_lost_network_loses_nothing_and_doubles_nothing(room: Room) -> None:
    room.may_complain = True  # the browser does, of requests that failed
    fill(room.house.store, 2)
    ann = room.desk("ann")
    item = ann.item()
    ann.press("d", "c", "b", "a")
    shown = ann.levels()
    ann.context.set_offline(True)
    ann.press("Control+Enter")
    expect(ann.page.locator("#problem")).to_contain_text("Not saved yet")
    assert room.rankings("ann") == []
    ann.page.wait_for_timeout(1200)
    ann.context.set_offline(False)
    ann.wait_for_other(item)
    assert [levels_of(ranked) for ranked in room.rankings("ann")] == [shown]


def test_an_answer_that_was_lost_on_the_way_back_is_kept_once(room: Room) -> None:
    """The server saved it, the page never heard: it sends again, by the same key."""
    room.may_complain = True
    fill(room.house.store, 2)
    ann = room.desk("ann")
    seen: list[str] = []

    def lose_the_answer(route: Any) -> None:
        seen.append(route.request.post_data_json["key"])
        if len(seen) == 1:
            route.fetch()
            route.abort()
        else:
            route.continue_()

    ann.intercept("**/api/rankings", lose_the_answer)
    item = ann.item()
    ann.press("a", "Control+Enter")
    ann.wait_for_other(item)
    assert len(seen) == 2
    assert len(set(seen)) == 1
    assert len(room.rankings("ann")) == 1


def test_a_double_click_is_one_answer(room: Room) -> None:
    fill(room.house.store, 3)
    ann = room.desk("ann")
    item = ann.item()
    ann.press("a")
    ann.page.locator("#submit").dblclick()
    ann.wait_for_other(item)
    ann.page.wait_for_timeout(300)
    assert len(room.rankings("ann")) == 1


def test_two_tabs_overwrite_nothing(room: Room) -> None:
    room.may_complain = True  # of the 409
    fill(room.house.store, 2)
    ann = room.desk("ann")
    other = Desk(ann.watch(ann.context.new_page()), ann.context)
    other.page.goto(f"{room.house.url}/rank")
    other.wait()
    item = ann.item()
    assert other.item() == item
    ann.press("a", "b")
    first = ann.levels()
    ann.submit()
    other.press("d", "c")
    second = other.levels()
    other.press("Control+Enter")
    expect(other.page.locator("#problem")).to_contain_text("answered meanwhile")
    assert [levels_of(ranked) for ranked in room.rankings("ann")] == [first]
    assert other.levels() == second, "and what this tab has is still here"
    other.press("Control+Enter")
    other.wait_for_other(item)
    assert [levels_of(ranked) for ranked in room.rankings("ann")] == [second]


def test_two_people_at_once_get_different_items(room: Room) -> None:
    fill(room.house.store, 2)
    ann, ben = room.desk("ann"), room.desk("ben")
    assert ann.item() != ben.item()
    ann.press("a")
    ben.press("b")
    ann.submit()
    expect(ann.page.locator("#done")).to_be_visible()
    ben.submit()
    assert len(room.rankings("ann")) == len(room.rankings("ben")) == 1


def test_an_expired_lease_goes_to_somebody_else_and_late_work_counts(room: Room) -> None:
    fill(room.house.store, 1)
    room.house.store.change_study(Study(lease_minutes=0.02))
    ann = room.desk("ann")
    item = ann.item()
    time.sleep(1.5)
    ben = room.desk("ben")
    assert ben.item() == item
    for desk, name in ((ann, "ann"), (ben, "ben")):
        desk.press("a")
        desk.submit()
        assert len(room.rankings(name)) == 1


def test_a_revoked_session_keeps_the_answer_in_the_browser(room: Room) -> None:
    room.may_complain = True
    fill(room.house.store, 1)
    ann = room.desk("ann")
    owner = room.house.people.find_or_add("owner", "owner")
    person = room.house.people.find_or_add("ann")
    ann.press("c", "a")
    room.house.people.set_blocked(person.id, True, owner.id)
    ann.press("Control+Enter")
    expect(ann.page.locator("#problem")).to_contain_text("not signed in any more")
    room.house.people.set_blocked(person.id, False, owner.id)
    port = room.house.url.rpartition(":")[2]
    session = room.house.people.begin_session(person.id)
    ann.context.add_cookies([{"name": f"tunesmith-feedback-{port}", "value": session, "url": room.house.url}])
    ann.page.reload()
    ann.wait()
    assert ann.letters() == ["C", "A"]


# What is shown

HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "<svg/onload=document.title='owned'>",
    "[click](javascript:document.title='owned') <a href='https://evil.example'>x</a>",
    "```\n</code></pre><script>document.title='owned'</script>\n```",
    "</textarea><iframe srcdoc='<script>parent.document.title=1</script>'>",
    "{{ 7 * 7 }} ${7*7} <%= 7 %> \u202e\u0007",
]


def test_text_of_models_is_text(room: Room) -> None:
    items = [
        Item((Message("user", text),), (Candidate(text + " one", "m"), Candidate(f"{text} two", "m")))
        for text in HOSTILE
    ]
    room.house.store.add_items(items)
    ann = room.desk("ann")
    title = ann.page.title()
    for _ in HOSTILE:
        text = ann.item()
        assert ann.page.locator("#work :is(img, svg, iframe, script, a)").count() == 0
        assert ann.page.title() == title
        ann.press("a")
        ann.submit()
        assert text
    owner = room.desk("owner", "owner", "owner")
    expect(owner.page.locator("#people")).to_contain_text("ann")
    assert owner.page.title() == title


def test_markup_would_be_noticed(room: Room) -> None:
    """The test above, with a page whose script takes text for markup: it is seen, though the policy runs nothing."""
    room.may_complain = True  # of what the policy has stopped
    room.house.store.add_items([Item((Message("user", HOSTILE[1]),), (Candidate("1", "m"), Candidate("2", "m")))])
    room.weaken("text.js", "node.textContent = content", "node.innerHTML = content")
    ann = room.desk("ann")
    assert ann.page.locator("#work :is(img, svg, iframe, script, a)").count() > 0
    assert "owned" not in ann.page.title()


def test_long_right_to_left_and_code_are_readable(room: Room) -> None:
    long = "word " * 900
    code = "Do this:\n```python\nif x:\n    print('שלום')\n```\nthen that."
    hebrew = "שלום עולם, מה שלומך?"
    room.house.store.add_items(
        [Item((Message("user", "?"),), tuple(Candidate(text, "m") for text in (long, code, hebrew)))]
    )
    ann = room.desk("ann")
    texts = {ann.card(letter).locator(".text").inner_text().strip()[:4]: letter for letter in "ABC"}
    folded = ann.card(texts["word"])
    short = folded.bounding_box()
    folded.locator(".fold").click()
    whole = folded.bounding_box()
    assert short is not None
    assert whole is not None
    assert whole["height"] > short["height"] * 1.5
    assert folded.locator(".text").inner_text().split() == long.split()
    expect(ann.card(texts["Do t"]).locator("pre code")).to_have_text("if x:\n    print('שלום')")
    side = ann.card(texts["שלום"]).locator(".text p").evaluate("p => getComputedStyle(p).direction")
    assert side == "rtl"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough(full_room: Room, scheme: str) -> None:
    """WCAG 2.2 AA, 1.4.3: 4.5 to 1 for every text that is seen."""
    ann = full_room.desk(f"ann in the {scheme}", color_scheme=scheme)
    ann.press("a", "Shift+B", "c")
    ann.card("C").locator(".tool-unsafe").click()
    ann.page.wait_for_timeout(300)
    assert ann.page.evaluate((Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("where", ["rank", "owner"])
def test_axe_finds_nothing(full_room: Room, where: str) -> None:
    """axe-core's rules for WCAG 2.2 A and AA."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    owner = full_room.desk("owner", "owner", where)
    if where == "rank":
        owner.press("a", "Shift+B", "c")
    else:
        expect(owner.page.locator("#people")).to_contain_text("owner")
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = axe.Axe().run(owner.page, options={"runOnly": {"type": "tag", "values": tags}})
    assert [(one["id"], one["help"], one["nodes"][0]["html"]) for one in found.response["violations"]] == []


def test_everything_has_a_name_and_a_place_in_the_tab_order(full_room: Room) -> None:
    ann = full_room.desk("ann who tabs")
    ann.press("a")
    nameless = ann.page.evaluate(
        "[...document.querySelectorAll('button, input, textarea, a, progress')].filter(n => n.checkVisibility()"
        " && !(n.getAttribute('aria-label') || n.textContent.trim() || n.labels?.length)).map(n => n.outerHTML)"
    )
    assert nameless == []
    reached = set()
    for _ in range(60):
        ann.press("Tab")
        reached.add(ann.page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"submit", "comment", "all-bad", "previous", "skip", "help"} - reached <= {"previous"}
    assert {f"answer-{letter}" for letter in LETTERS[:4]} <= reached
    expect(ann.page.locator("#live")).to_contain_text("A: 1st of 1")


def test_the_owner_invites_and_decides(room: Room) -> None:
    fill(room.house.store, 2)
    room.house.store.change_study(Study(overlap=2))
    owner = room.desk("owner", "owner", "owner")
    owner.page.locator("#invite").click()
    expect(owner.page.locator("#invitation-link")).to_have_value(re.compile(f"^{room.house.url}/join#"))
    link = owner.page.locator("#invitation-link").input_value()
    context = room.browser.new_context()
    guest = Desk(context.new_page(), context)
    room.desks.append(guest)
    guest.watch(guest.page)
    guest.page.goto(link)
    guest.page.locator("[name=name]").fill("Cem")
    guest.page.locator("[name=password]").fill("a long password")
    guest.page.get_by_role("button", name="Join").click()
    guest.page.wait_for_url("**/rank")
    guest.wait()
    ben = room.desk("ben")
    for desk, is_turned in ((guest, False), (ben, True)) * 2:  # one ranks by ids, the other the other way round
        desk.press(*[letter.lower() for letter in sorted("ABCD", key=desk.id_of, reverse=is_turned)])
        desk.submit()
    owner.page.reload()
    expect(owner.page.locator("#disagreements a")).to_have_count(2)
    expect(owner.page.locator("#people")).to_contain_text("Cem")
    owner.page.locator("#disagreements a").first.click()
    owner.wait()
    expect(owner.page.locator("#editing")).to_contain_text("You decide")
    owner.press("a", "Shift+B", "c", "d")
    owner.press("Control+Enter")
    expect(owner.page.locator("#saved")).to_have_text("Saved")
    assert [ranked.is_adjudication for ranked in read_results(room.house.database).rankings].count(True) == 1
