"""The page of `tunesmith inspect` in a real browser: true numbers, no other host, only text, keys alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.browser.desk import Desk
from tests.inspection.houses import ANSWER, TEXT, save_model
from tunesmith import cli
from tunesmith.inspection.look import Sampling, inspect

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
HOSTILE = {
    "w5": "<img/src=x/onerror=alert(1)>",
    "w17": "</script><script>alert(2)</script>",
    "w40": "\u202edetsurt",
    "w93": '"onfocus="alert(3)',
    "w21": "{{7*7}}",
}


def renamed(folder: Path) -> None:
    """Some words of the vocabulary become what a hostile text would hold."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {HOSTILE.get(word, word): at for word, at in vocabulary.items()}
    file.write_text(json.dumps(content))


def hostile(text: str) -> str:
    return " ".join(HOSTILE.get(word, word) for word in text.split())


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same hostile text in two decoders, in an encoder and in an encoder-decoder."""
    place = tmp_path_factory.mktemp("pages")
    for name, kind, seed in (("tuned", "llama", 0), ("base", "llama", 1), ("bert", "bert", 0), ("t5", "t5", 0)):
        save_model(kind, place / name, seed)
        renamed(place / name)
    rows = "".join(
        json.dumps({"text": hostile(f"w{at} w5 w17"), "label": HOSTILE[("w5", "w17")[at % 2]]}) + "\n"
        for at in range(6, 12)
    )
    (place / "texts.jsonl").write_text(rows)
    text, answer = hostile(TEXT), hostile(ANSWER)
    both = ["--beside", str(place / "base"), "--texts", str(place / "texts.jsonl"), "--answer", answer]
    assert cli.run(["inspect", str(place / "tuned"), text, *both, "--page", str(place / "both.html")]) == 0
    assert cli.run(["inspect", str(place / "bert"), text, "--page", str(place / "bert.html")]) == 0
    assert cli.run(["inspect", str(place / "t5"), text, "--answer", answer, "--page", str(place / "t5.html")]) == 0
    return {name: place / f"{name}.html" for name in ("both", "bert", "t5")}


@pytest.fixture
def desks(browser: Any) -> Iterator[Any]:
    opened: list[Desk] = []

    def sit_down(page: Path, **settings: Any) -> Desk:
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **settings})
        context.set_default_timeout(10_000)
        desk = Desk(context.new_page(), context)
        desk.watch(desk.page)
        desk.page.goto(page.as_uri())
        expect(desk.page.locator("#token")).not_to_be_empty()
        opened.append(desk)
        return desk

    yield sit_down
    for desk in opened:
        desk.context.close()
        assert desk.hosts == {""}, "a file, and nothing besides"
        assert desk.complaints == []


@pytest.mark.parametrize("name", ["both", "bert", "t5"])
def test_hostile_text_stays_text(name: str, desks: Any, pages: dict[str, Path]) -> None:
    ann = desks(pages[name])
    shown = ann.page.locator("#tokens").inner_text()
    for text in (HOSTILE["w5"], HOSTILE["w17"], HOSTILE["w93"]):
        assert text in shown
    assert "\\u202edetsurt" in shown, "what turns the direction of writing is spelled out"
    assert ann.page.locator("main img, main script, main a, main [onerror], main [onfocus]").count() == 0
    assert "\u202e" not in ann.page.evaluate("document.body.innerText")
    assert ann.page.evaluate("document.scripts.length") == 2


def shares(desk: Desk) -> dict[str, list[str]]:
    rows = desk.page.locator("#words tbody tr").all()
    cells = [[cell.inner_text() for cell in row.locator("td").all()] for row in rows]
    return {row[0]: row[1:3] for row in cells}


def test_live_sampling_is_that_of_the_package(desks: Any, pages: dict[str, Path]) -> None:
    ann, folder = desks(pages["both"]), pages["both"].parent
    found = inspect(str(folder / "tuned"), hostile(TEXT), str(folder / "base"), hostile(ANSWER))
    for temperature, top_k, top_p in (
        (1, 0, 1),
        (0.5, 0, 1),
        (2, 0, 1),
        (1, 5, 1),
        (1, 0, 0.5),
        (1.5, 20, 0.6),
        (0, 0, 1),
    ):
        for key, value in (("temperature", temperature), ("topK", top_k), ("topP", top_p)):
            ann.page.locator(f"#set-{key}").fill(str(value))
        word = found.next_word(count=10, sampling=Sampling(temperature, top_k, top_p))
        seen = shares(ann)
        for each in word.words:
            said = seen[each.text.replace("\u202e", "\\u202e")]
            assert said == [f"{100 * (share or 0):.1f} %" for share in each.probabilities]
        for at, entropy in enumerate(word.entropies):
            assert float(seen["entropy, bits"][at]) == pytest.approx(entropy, abs=0.006)


def test_others_are_one_mass_at_any_temperature() -> None:
    """Of a large vocabulary most words are in the histogram alone."""
    from tunesmith.inspection.steps import MOST_WORDS, small

    torch.manual_seed(0)
    logits = torch.randn(30_000) * 3
    made = small([logits], None)
    assert len(made["ids"]) == MOST_WORDS
    assert sum(count for _, count in made["others"][0]) == 30_000 - MOST_WORDS
    for temperature, places in ((0.5, 0.01), (1.0, 0.001), (2.0, 0.01)):
        hidden = torch.ones(30_000, dtype=torch.bool)
        hidden[made["ids"]] = False
        true = float((logits / temperature).double().softmax(-1)[hidden].sum())
        kept = torch.tensor([float(logits[word]) / temperature for word in made["ids"]]).double().exp().sum()
        rest = sum(count * torch.tensor(logit / temperature).double().exp() for logit, count in made["others"][0])
        assert float(rest / (rest + kept)) == pytest.approx(true, rel=places)


def test_one_word_on(desks: Any, pages: dict[str, Path]) -> None:
    ann, folder = desks(pages["both"]), pages["both"].parent
    last = ann.page.locator("#tokens button").last
    last.focus()
    ann.press("Enter")
    button = ann.page.locator("#words button").first
    word = button.inner_text().replace("\\u202e", "\u202e")
    button.focus()
    ann.press("Enter")
    expect(ann.page.locator("#where button")).to_be_focused()
    on = inspect(str(folder / "tuned"), hostile(TEXT), str(folder / "base"), f"{hostile(ANSWER)} {word}").next_word(
        count=3
    )
    seen = shares(ann)
    for each in on.words[:3]:
        assert seen[each.text.replace("\u202e", "\\u202e")] == [
            f"{100 * (share or 0):.1f} %" for share in each.probabilities
        ]
    ann.press("Enter")
    expect(ann.page.locator("#where button")).to_have_count(0)


def test_by_keyboard_alone(desks: Any, pages: dict[str, Path]) -> None:
    ann = desks(pages["both"])
    reached = set()
    for _ in range(60):
        ann.press("Tab")
        reached.add(
            ann.page.evaluate(
                "(n => n.id || n.getAttribute('aria-label') || n.closest('[id]')?.id || '')(document.activeElement)"
            )
        )
    wanted = {"tokens", "set-temperature", "set-topK", "set-topP", "said", "attention", "arcs", "maps", "changes"}
    wanted |= {"Words and their shares", "Words by layer and token"}
    assert wanted <= reached, wanted - reached
    ann.page.locator("#heads button[tabindex='0']").focus()
    ann.press("ArrowRight", "ArrowDown")
    expect(ann.page.locator("#head")).to_contain_text("layer 2, head 2")
    expect(ann.page.locator("#heads button[aria-pressed='true']")).to_have_count(1)
    ann.page.locator("#tokens button[tabindex='0']").focus()
    ann.press("Home", "ArrowRight")
    expect(ann.page.locator("#token")).to_contain_text("Token 1")


def test_attention_is_what_the_model_has(desks: Any, pages: dict[str, Path]) -> None:
    ann, folder = desks(pages["t5"]), pages["t5"].parent
    ann.page.get_by_label("attention of").select_option("tokens to source")
    ann.page.locator("#heads button").nth(1).click()
    ann.page.locator("#tokens button").nth(2).click()
    weights = inspect(str(folder / "t5"), hostile(TEXT), answer=hostile(ANSWER)).head(0, 1, "cross")[2]
    said = ann.page.locator("#looks li").nth(1).inner_text()
    assert float(said.rpartition(" %")[0].rpartition(" ")[2]) == pytest.approx(100 * max(weights), abs=0.25)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 390)])
def test_axe_finds_nothing_and_nothing_sticks_out(scheme: str, width: int, desks: Any, pages: dict[str, Path]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    ann = desks(pages["both"], color_scheme=scheme, viewport={"width": width, "height": 900})
    assert ann.page.evaluate("document.documentElement.scrollWidth") <= width
    assert ann.page.evaluate((Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")) == []
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = axe.Axe().run(ann.page, options={"runOnly": {"type": "tag", "values": tags}})
    assert [(one["id"], one["help"], one["nodes"][0]["html"]) for one in found.response["violations"]] == []


def test_a_changed_script_does_not_run(desks: Any, browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    """The policy names the page's own script by its fingerprint, so whatever else came in would not run."""
    text = pages["bert"].read_text(encoding="utf-8")
    assert "showTokens();\n" in text
    (tmp_path / "changed.html").write_text(
        text.replace("showTokens();\n", "document.title = 'changed';\n"), encoding="utf-8"
    )
    context = browser.new_context()
    page = context.new_page()
    page.goto((tmp_path / "changed.html").as_uri())
    assert page.title() != "changed"
    context.close()
