"""The pictures of docs/feedback.md: a small study, ranked by simulated labelers, photographed in Chromium.

    python examples/feedback_screenshots.py [--output docs/images] [--dark] [--phone]

Needs playwright (the extra `dev`) and Debian's chromium.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tunesmith.feedback.database import open_database
from tunesmith.feedback.forms import Candidate, Item
from tunesmith.feedback.settings import SimulateConfig
from tunesmith.feedback.simulate import simulate
from tunesmith.feedback.store import Store, Study
from tunesmith.records import Message

PROMPTS = (
    "May I build a shed without a building permit?",
    "Do I need to ask anybody before I put up a shed?",
    "How large may my shed be?",
    "I want to build a shed in the garden. What must I know?",
    "Is a shed a building that needs a permit?",
)
ANSWERS = (
    (
        "tuned",
        "Often yes: many municipalities let you build a small shed without one, as long as it is under a certain size "
        "and away from the boundary. Ask the building office first; a phone call is enough.",
    ),
    (
        "base",
        "Yes, you can build a shed. Sheds are small buildings. Sheds are used to keep tools in. Sheds are useful.",
    ),
    ("larger", "It depends on three things:\n\n1. its size,\n2. how far it stands from the boundary,\n3. local rules."),
    (
        "reference",
        "Usually, up to 15 square metres.\n```text\n0 to 15 m2   no permit\nover 15 m2   permit\n```\nCheck locally.",
    ),
)
GUIDELINES = (
    "A good answer is true, to the point, and says what it does not know. Length is no merit.\n\nTies are welcome."
)


def make_study(address: str) -> None:
    database = open_database(address, create=True)
    store = Store(database)
    store.add_items(
        Item(
            (Message("user", prompt if not number else f"{prompt} ({number})"),),
            tuple(Candidate(text + " Really." * (number % 3), model) for model, text in ANSWERS),
            f"prompts.jsonl:{number}",
        )
        for number in range(8)
        for prompt in PROMPTS
    )
    store.change_study(Study(title="Which answer helps most?", guidelines=GUIDELINES, overlap=3))
    database.close()
    for preference, count in (("model=tuned", 2), ("longer", 1)):
        simulate(SimulateConfig(database=address, prefer=preference, num_labelers=count, noise=0.3, max_items=30))
    database = open_database(address)
    Store(database).change_study(Study(title="Which answer helps most?", guidelines=GUIDELINES, overlap=5))
    database.close()


def photograph(browser: Browser, address: str, folder: Path, options: argparse.Namespace) -> None:
    size = {"width": 390, "height": 1500} if options.phone else {"width": 1120, "height": 1340}
    scheme = "dark" if options.dark else "light"
    context = browser.new_context(viewport=size, color_scheme=scheme, device_scale_factor=1.5)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(address)
    ending = f"{'-phone' if options.phone else ''}{'-dark' if options.dark else ''}.png"
    page.locator("#models table").wait_for()
    page.screenshot(path=folder / f"feedback-owner{ending}")
    page.goto(f"{address.partition('?')[0]}rank")
    rank_some(page)
    page.screenshot(path=folder / f"feedback-rank{ending}")
    context.close()


def rank_some(page: Page) -> None:
    page.locator(".card").first.wait_for()
    page.keyboard.press("c")
    page.keyboard.press("a")
    page.keyboard.press("Shift+D")
    page.locator("#prompt-title").focus()
    page.locator("#saved", has_text="Draft kept").wait_for()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "docs/images")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--phone", action="store_true")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        store = str(Path(folder) / "feedback.db")
        make_study(store)
        command = [sys.executable, "-m", "tunesmith.cli", "feedback", "serve", "--database", store, "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found, "the server did not start"
        program = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        photograph(browser, found[0], options.output, options)
        browser.close()
        server.terminate()
        server.wait(30)
        server.stdout.close()


if __name__ == "__main__":
    main()
