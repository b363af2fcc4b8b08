"""The page: whole, safe against what stands in the data, and true to the numbers."""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.evaluation.comparisons import SAMPLE, make_comparison, with_all

from tunesmith.evaluation import plots, report
from tunesmith.records import TASKS, Task

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Rows of each table as texts, all visible text, and tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data


def render(folder: Path, comparison: dict[str, Any]) -> str:
    report.write_report(folder / "report.html", comparison)
    return (folder / "report.html").read_text(encoding="utf-8")


def set_primary(comparison: dict[str, Any], name: str, value: float | None) -> None:
    system = next(system for system in comparison["systems"] if system["name"] == name)
    system["metrics"][comparison["primary"]] = dict.fromkeys(("value", "low", "high"), value)


@pytest.mark.parametrize("task", TASKS)
def test_the_page_is_well_formed_and_asks_for_nothing(tmp_path: Path, task: Task) -> None:
    html = render(tmp_path, make_comparison(task))
    page = Page(html)
    assert page.open == []
    assert page.addresses == []
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


@pytest.mark.parametrize("task", TASKS)
def test_the_table_says_what_the_systems_measured(tmp_path: Path, task: Task) -> None:
    made = make_comparison(task)
    head, *rows = Page(render(tmp_path, made)).tables[0]
    assert head[1] == made["primary"]
    done = [system for system in made["systems"] if not system["error"]]
    assert len(rows) == len(done)
    for system, row in zip(done, rows, strict=True):
        cells = dict(zip(head, row, strict=True))
        assert cells["system"].startswith(system["name"])
        for name, end in system["metrics"].items():
            known = end["value"] is not None
            assert cells[name] == (f"{end['value']:.3f} [{end['low']:.3f}, {end['high']:.3f}]" if known else "-")
    lora = dict(zip(head, next(row for row in rows if row[0].startswith("lora")), strict=True))
    assert lora["system"] == "lorarecommended"
    assert (lora["trained"], lora["share"]) == ("812,162", "3.58 %")
    assert lora["against best baseline"] == "0.048 [0.028, 0.068]"


def test_text_from_the_data_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    html = render(tmp_path, make_comparison())
    page = Page(html)
    assert "<script" not in html.lower()
    assert ["<s>" in cell for cell in page.tables[1][1]] == [True, True, False]
    assert page.tables[1][1] == [SAMPLE["input"], SAMPLE["expected"], SAMPLE["output"]]
    assert "dora failed: RuntimeError: out of <memory>" in page.text


def test_forgetting_confusions_and_changed_rows_are_on_the_page(tmp_path: Path) -> None:
    made = with_all()
    html = render(tmp_path, made)
    page = Page(html)
    assert page.open == []
    assert not page.tags & {"script", "link"}
    assert "<script" not in html.lower()
    _, forgotten, first, second, beside = page.tables
    lora = next(row for row in forgotten if row[0] == "lora")
    assert lora[1] == "-0.120 [-0.140, -0.105]13 lost, 1 gained of 202"
    assert [row[1:] for row in second[1:]] == [["401", "99"], ["60", "440"]]
    assert [row[1:] for row in first[1:]] == [["350", "150"], ["120", "380"]]
    assert beside[0] == ["input", "expected", "lora", "linear-probe"]
    assert [row[2:] for row in beside[1:]] == [["<s>", "neg & pos"], ["neg & pos", "<s>"], ["neg & pos"] * 2]
    assert html.count('class="gained"') == html.count('class="lost"') == html.count('class="wrong"') == 1


def test_what_is_learned_stands_over_what_is_forgotten() -> None:
    """More forgotten is further to the right, by another way than the plot's scale."""
    made = with_all()
    root = ElementTree.fromstring(report.draw(made)["forgetting"])
    places = {dot.findtext("title", "").split(":")[0]: float(dot.get("cx", "nan")) for dot in root.iter("circle")}
    value = {s["name"]: s["forgotten"][0]["change"]["value"] for s in made["systems"] if s.get("forgotten")}
    assert set(places) == set(value)
    slope = (places["lora"] - places["full"]) / (value["lora"] - value["full"])
    assert slope < 0
    for name, place in places.items():
        assert place == pytest.approx(places["full"] + slope * (value[name] - value["full"]), abs=0.2)


def test_other_programs_find_the_shape_of_the_harness(tmp_path: Path) -> None:
    made = make_comparison()
    render(tmp_path, made)
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["results"]) == {system["name"] for system in made["systems"] if not system["error"]}
    assert found["results"]["lora"]["acc,none"] == 0.838
    # An interval of 0.97 to 1.03 times the value is 2 x 1.96 standard errors wide.
    assert found["results"]["lora"]["acc_stderr,none"] == pytest.approx(0.06 * 0.838 / 3.92, rel=1e-3)
    assert found["higher_is_better"]["lora"]["acc"]
    assert not found["higher_is_better"]["lora"]["ece"]


def test_markdown_says_what_the_page_says_and_nothing_in_it_is_markup(tmp_path: Path) -> None:
    made = with_all()
    render(tmp_path, made)
    text = (tmp_path / "report.md").read_text()
    head, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == len(made["systems"])
    assert {len(row) for row in rows[:-1]} == {len(head)}
    lora = dict(zip(head, next(row for row in rows if row[0] == "lora"), strict=True))
    assert lora["accuracy"] == "0.838 \\[0.813, 0.863\\]"
    assert "out of \\<memory\\>" in text


def test_names_in_pictures_are_escaped() -> None:
    made = with_all()
    for system in made["systems"]:
        system["name"] = f"</svg><script>{system['name']}&"
    for name, svg in report.draw(made).items():
        assert ElementTree.fromstring(svg).tag == "svg", name


def test_every_picture_has_a_name_for_those_who_cannot_see_it() -> None:
    for svg in report.draw(with_all()).values():
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert root.get("aria-label") == root.findtext("title") != ""


def test_dots_stand_where_their_values_are() -> None:
    """Positions along the axis are a linear function of the values, by another way than the plot's scale."""
    made = make_comparison()
    root = ElementTree.fromstring(report.draw(made)["scores"])
    places = [float(dot.get("cx", "nan")) for dot in root.iter("circle")]
    measured = [system["metrics"]["accuracy"]["value"] for system in made["systems"] if not system["error"]]
    slope = (places[3] - places[0]) / (measured[3] - measured[0])
    assert slope > 0
    assert places == pytest.approx([places[0] + slope * (value - measured[0]) for value in measured], abs=0.2)
    reference = next(line for line in root.iter("line") if line.get("class") == "reference")
    assert float(reference.get("x1", "nan")) == pytest.approx(places[2], abs=0.2)  # linear-probe


@pytest.mark.parametrize(
    ("task", "best"), [("classification", 0.79), ("regression", 4 * 0.21), ("generation", 4 * 0.45)]
)
def test_the_strongest_baseline_is_by_the_direction_of_the_metric(task: Task, best: float) -> None:
    assert report.strongest_baseline(make_comparison(task)) == pytest.approx(best)


def test_failed_systems_and_missing_curves_stay_out_of_the_pictures() -> None:
    pictures = report.draw(make_comparison())
    assert all(">dora<" not in svg for svg in pictures.values())
    assert ">prompt<" not in pictures["curves"]
    assert ">prompt<" in pictures["scores"]


def test_unknown_values_are_left_out_and_do_not_crash(tmp_path: Path) -> None:
    made = make_comparison()
    set_primary(made, "majority", None)
    full = next(system for system in made["systems"] if system["name"] == "full")
    full["curve"][1]["validation_loss"] = None
    assert report.strongest_baseline(made) == pytest.approx(0.79)
    assert "nan" not in re.sub(r"<style>.*</style>", "", render(tmp_path, made), flags=re.DOTALL).lower()


def test_nothing_finished_is_still_a_page(tmp_path: Path) -> None:
    made = make_comparison()
    made["systems"] = [system for system in made["systems"] if system["error"]]
    made["verdict"] = {"best": "", "recommended": "", "reason": "No system finished."}
    assert "No system finished" in Page(render(tmp_path, made)).text


@pytest.mark.parametrize("value", [0.5, 0.0])
def test_equal_values_everywhere_do_not_divide_by_zero(tmp_path: Path, value: float) -> None:
    made = make_comparison()
    for system in made["systems"]:
        if not system["error"]:
            set_primary(made, system["name"], value)
        for point in system["curve"]:
            point["validation_loss"] = value
    assert Page(render(tmp_path, made)).open == []


def test_labels_of_curves_that_end_alike_do_not_touch_and_stay_in_the_picture() -> None:
    made = make_comparison()
    for system in made["systems"]:
        for point in system["curve"]:
            point["validation_loss"] = 1 / point["epoch"]
    root = ElementTree.fromstring(report.draw(made)["curves"])
    heights = sorted(float(text.get("y", "nan")) for text in root.iter("text") if text.get("class") == "label")
    assert len(heights) == 6
    assert all(below - above >= plots.LETTERS for above, below in pairwise(heights))
    assert heights[-1] <= plots.FLOOR


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.713, 0.869), (-3e-5, 2e-5), (0.0, 123456.0)])
def test_ticks_are_round_inside_the_range_and_few(low: float, high: float) -> None:
    found = plots.ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    step = found[1] - found[0]
    assert any(math.isclose(step / 10 ** math.floor(math.log10(step) + 1e-9), size, rel_tol=1e-6) for size in (1, 2, 5))


def first_pixel(png: bytes) -> tuple[int, ...]:
    """Red, green and blue of the upper left: a PNG's filters leave the first pixel as it is."""
    place, packed = 8, b""
    while place < len(png):
        size, kind = struct.unpack(">I4s", png[place : place + 8])
        packed += png[place + 8 : place + 8 + size] if kind == b"IDAT" else b""
        place += size + 12
    return tuple(zlib.decompress(packed)[1:4])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize(("scheme", "page"), [(1, "#ffffff"), (0, "#14171a")], ids=["light", "dark"])
def test_a_browser_draws_the_page_in_the_colours_its_reader_prefers(tmp_path: Path, scheme: int, page: str) -> None:
    assert page in render(tmp_path, make_comparison())
    command = [
        *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *(f"--blink-settings=preferredColorScheme={scheme}", f"--user-data-dir={tmp_path / 'profile'}"),
        *(f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "report.html").as_uri()),
    ]
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert first_pixel((tmp_path / "page.png").read_bytes()) == tuple(bytes.fromhex(page[1:]))
