"""The picture of docs/inside.md: a page of `tunesmith inspect`, photographed in Chromium.

    python examples/inspection_screenshots.py PAGE [--output docs/images] [--dark] [--phone]

Needs playwright (the extra `dev`) and Debian's chromium.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="what `tunesmith inspect --page` wrote")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "docs/images")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--phone", action="store_true")
    parser.add_argument("--whole", action="store_true", help="all of the page, not its first screen")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    width, height = (390, 1500) if options.phone else (1120, 1340)
    ending = f"{'-phone' if options.phone else ''}{'-dark' if options.dark else ''}.png"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if options.dark else "light"
        )
        page.goto(options.page.resolve().as_uri())
        page.locator("#words").wait_for()
        page.screenshot(path=options.output / f"inspect{ending}", full_page=options.whole)
        browser.close()


if __name__ == "__main__":
    main()
