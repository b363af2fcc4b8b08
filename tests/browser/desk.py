"""Somebody at the page: what they see, press, drag and touch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect

LETTERS = "ABCDEFGHI"


@dataclass
class Desk:
    """One browser of one person. `hosts` are all that were contacted, `complaints` what the browser complained of."""

    page: Page
    context: BrowserContext
    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> Page:
        page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (self.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        return page

    def intercept(self, address: str, answer: Callable[[Route], None]) -> None:
        """From now on `answer` decides what becomes of requests to `address`.

        The page is loaded again: in Chromium, one that is there already learns of this a moment later than the test
        goes on, so that its next request may still pass.
        """
        self.page.route(address, answer)
        self.page.reload()
        self.wait()

    # Seeing

    def wait(self) -> None:
        """Until an item is shown."""
        expect(self.page.locator(".card").first).to_be_visible()

    def item(self) -> str:
        """The prompt's text, which differs from item to item."""
        return self.page.locator("#prompt").inner_text()

    def card(self, letter: str) -> Locator:
        return self.page.locator(f".card[data-letter={letter}]")

    def id_of(self, letter: str) -> str:
        return str(self.card(letter).get_attribute("data-id"))

    def levels(self) -> list[list[str]]:
        """The ranking on the screen: ids, each level sorted."""
        return [sorted(level) for level in self._levels("id")]

    def letters(self) -> list[str]:
        """As `levels`, by letters: ["B", "AC"]."""
        return ["".join(sorted(level)) for level in self._levels("letter")]

    def _levels(self, what: str) -> list[list[str]]:
        found: list[list[str]] = self.page.evaluate(
            """what => [...document.querySelectorAll("#ranked > .level")].map(
                (level) => [...level.querySelectorAll(".card")].map((card) => card.dataset[what]))""",
            what,
        )
        return found

    # Doing

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def submit(self) -> None:
        """Submits, and waits until the next item is there or nothing is left."""
        before = self.item()
        self.press("Control+Enter")
        self.wait_for_other(before)

    def wait_for_other(self, before: str) -> None:
        self.page.wait_for_function(
            """before => { const work = document.getElementById("work");
                return work.hidden || (!work.inert && document.getElementById("prompt").innerText !== before); }""",
            arg=before,
        )

    def drag(self, letter: str, onto: Locator, part: float = 0.5) -> None:
        """By its handle, to a part of the height of something else, as it is while dragging."""
        handle = self.card(letter).locator(".handle")
        handle.evaluate("node => node.scrollIntoView({ block: 'center' })")
        box = handle.bounding_box()
        assert box is not None
        mouse = self.page.mouse
        mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        mouse.down()
        for _ in range(3):  # what is dragged changes where things are
            goal = onto.bounding_box()
            assert goal is not None
            mouse.move(goal["x"] + goal["width"] / 2, goal["y"] + goal["height"] * part, steps=4)
        mouse.up()


def sit_down(
    browser: Browser,
    url: str,
    session: str,
    where: str = "rank",
    planted: Mapping[str, str] = MappingProxyType({}),
    **settings: Any,
) -> Desk:
    """A browser with nobody else's storage in it, signed in; `planted` are scripts that it gets in place of ours."""
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **settings})
    context.set_default_timeout(10_000)
    port = url.rpartition(":")[2]
    context.add_cookies([{"name": f"tunesmith-feedback-{port}", "value": session, "url": url}])
    for address, code in planted.items():
        context.route(address, partial(Route.fulfill, body=code, content_type="text/javascript"))
    desk = Desk(context.new_page(), context)
    desk.watch(desk.page)
    desk.page.goto(f"{url}/{where}")
    if where.startswith("rank"):
        desk.wait()
    return desk
