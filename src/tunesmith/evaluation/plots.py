"""Small SVG pictures for the report: drawn here, so the page needs no script and no network.

Colours come from the page's style sheet by class, so one picture serves light and dark. Text is always
escaped: a class may be called `<s>`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

System = Mapping[str, Any]
WIDTH = 860
ROW = 30
LABELS = 150
# Labels in a picture with a vertical axis: highest and lowest base line, and the height of a line of text.
TOP, FLOOR, LETTERS = 12, 258, 14


@dataclass
class Canvas:
    """Shapes of one picture, in pixels from the upper left."""

    height: float
    title: str
    shapes: list[str] = field(default_factory=list)

    def line(self, ends: tuple[float, float, float, float], kind: str) -> None:
        x1, y1, x2, y2 = ends
        self.shapes.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def dot(self, x: float, y: float, kind: str, hint: str) -> None:
        self.shapes.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5.5"><title>{escape(hint)}</title></circle>'
        )

    def bar(self, x: float, y: float, width: float, kind: str) -> None:
        self.shapes.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="12" rx="2"/>'
        )

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        self.shapes.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.shapes.append(f'<polyline class="{kind}" points="{joined}"/>')

    def svg(self) -> str:
        return (
            f'<svg viewBox="0 0 {WIDTH} {self.height:.0f}" role="img" aria-label="{escape(self.title, quote=True)}">'
            f"<title>{escape(self.title)}</title>{''.join(self.shapes)}</svg>"
        )


Scale = Callable[[float], float]


def linear(low: float, high: float, start: float, stop: float) -> Scale:
    """Maps [low, high] to [start, stop] pixels."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (stop - start)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside the range."""
    step = (high - low) / wanted or 1.0
    power = 10 ** math.floor(math.log10(step))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= step)
    first = math.ceil(low / step)
    return [round(index * step, 10) for index in range(first, math.floor(high / step) + 1)]


def colour(system: System) -> str:
    return "baseline" if system["kind"] == "baseline" else f"family-{system['family']}"


def plot_scores(systems: Sequence[System], metric: str, reference: float | None) -> str:
    """A dot and its 95 % interval per system; a dashed line at the strongest baseline."""
    shown = [system for system in systems if _interval(system, metric)]
    if not shown:
        return ""
    ends = [_interval(system, metric) for system in shown]
    low, high = min(end["low"] for end in ends), max(end["high"] for end in ends)
    margin = (high - low) * 0.05 or 0.05
    x = linear(low - margin, high + margin, LABELS, WIDTH - 70)
    canvas = Canvas(len(shown) * ROW + 34, f"{metric} of every system with its 95 % interval")
    bottom = len(shown) * ROW + 6
    for value in ticks(low - margin, high + margin):
        canvas.line((x(value), 4, x(value), bottom), "grid")
        canvas.text(x(value), bottom + 18, f"{value:g}", "axis", "middle")
    if reference is not None:
        canvas.line((x(reference), 0, x(reference), bottom), "reference")
    for index, (system, end) in enumerate(zip(shown, ends, strict=True)):
        y = index * ROW + 18
        canvas.text(LABELS - 12, y + 4, system["name"], "label", "end")
        canvas.line((x(end["low"]), y, x(end["high"]), y), f"interval {colour(system)}")
        hint = f"{system['name']}: {end['value']:.3f} [{end['low']:.3f}, {end['high']:.3f}]"
        canvas.dot(x(end["value"]), y, colour(system), hint)
        canvas.text(WIDTH - 58, y + 4, f"{end['value']:.3f}", "value")
    return canvas.svg()


@dataclass(frozen=True, slots=True)
class Across:
    """What lies along the horizontal axis of a plot: a name, the place of each system (value, low, high), None where
    it has none; on a logarithmic axis, or a plain one."""

    name: str
    place: Callable[[System], tuple[float, float, float] | None]
    is_log: bool = False
    write: Callable[[float], str] = "{:g}".format


def plot_against_size(systems: Sequence[System], metric: str) -> str:
    """Score over the number of trained parameters, on a logarithmic axis."""
    return plot_against(systems, metric, cost("trainable_parameters", "trained parameters", _count))


def cost(key: str, name: str, write: Callable[[float], str]) -> Across:
    """What a system costs: one of its own numbers, where it is not 0."""
    return Across(name, lambda system: (system[key],) * 3 if system[key] else None, is_log=True, write=write)


def lost(measure: str, metric: str, higher_is_better: bool) -> Across:
    """How much a system has forgotten, by one measure: more is further to the right, nothing is 0."""
    sign = -1 if higher_is_better else 1

    def place(system: System) -> tuple[float, float, float] | None:
        for one in system.get("forgotten", ()):
            if (one["measure"], one["metric"]) == (measure, metric) and None not in one["change"].values():
                ends = sorted((sign * one["change"]["low"], sign * one["change"]["high"]))
                return sign * one["change"]["value"], ends[0], ends[1]
        return (0.0, 0.0, 0.0) if system["kind"] == "baseline" and system["family"] == "prompting" else None

    return Across(f"forgotten: {measure}, {metric}", place)


def plot_against(systems: Sequence[System], metric: str, across: Across) -> str:
    """Score over something else, both with their intervals."""
    placed = [(system, across.place(system), _interval(system, metric)) for system in systems]
    shown = [(system, place, end) for system, place, end in placed if place is not None and end]
    if len(shown) < 2:
        return ""
    low, high = min(end["low"] for *_, end in shown), max(end["high"] for *_, end in shown)
    x, marks = _axis_x(across, [value for _, place, _ in shown for value in place])
    y = linear(low, high, 250, 16)
    canvas = Canvas(300, f"{metric} over {across.name}")
    _axis_y(canvas, y, ticks(low, high), 60, WIDTH - 110)
    for value in marks:
        canvas.text(x(value), 276, across.write(value), "axis", "middle")
    canvas.text((60 + WIDTH - 110) / 2, 296, across.name, "axis", "middle")
    taken: list[tuple[float, float]] = []
    for system, (value, left, right), end in sorted(shown, key=lambda item: -item[2]["value"]):
        kind = colour(system)
        canvas.line((x(value), y(end["low"]), x(value), y(end["high"])), f"interval {kind}")
        if left < right:
            canvas.line((x(left), y(end["value"]), x(right), y(end["value"])), f"interval {kind}")
        canvas.dot(x(value), y(end["value"]), kind, f"{system['name']}: {metric} {end['value']:.3f}, {value:,.3g}")
        beside = 4 if left == right else -6  # above the line of its own interval
        level = _free_level(taken, x(value) + 10, y(end["value"]) + beside)
        canvas.text(x(value) + 10, level, system["name"], "label")
    return canvas.svg()


def _axis_x(across: Across, values: Sequence[float]) -> tuple[Scale, list[float]]:
    """The horizontal scale, and where it is marked: at powers of ten (and between them where few), or evenly."""
    if not across.is_log:
        low, high = min(values), max(values)
        return linear(low, high, 60, WIDTH - 110), ticks(low, high)
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = 0.03 * (high - low) or 0.1
    near = linear(low - margin, high + margin, 60, WIDTH - 110)
    steps = (1, 2, 5) if high - low < 3 else (1,)
    marks = [step * 10.0**power for power in range(math.floor(low) - 1, math.ceil(high) + 1) for step in steps]
    return (lambda value: near(math.log10(value))), [
        value for value in marks if low - margin <= math.log10(value) <= high + margin
    ]


def plot_curves(systems: Sequence[System]) -> str:
    """Validation loss over epochs, each line named at its end."""
    lines = [Line(system["name"], _curve_points(system), colour(system)) for system in systems]
    return plot_lines(lines, "validation loss while training", "epochs")


@dataclass(frozen=True, slots=True)
class Line:
    """A curve through points (across, up), its name at its end; `marked` points have a dot each."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str
    marked: bool = False


def plot_lines(lines: Sequence[Line], title: str, across: str) -> str:
    """Curves over one axis; nothing where no curve has two points."""
    shown = sorted((line for line in lines if len(line.points) > 1), key=lambda line: line.points[-1][1], reverse=True)
    if not shown:
        return ""
    places, values = zip(*(point for line in shown for point in line.points), strict=True)
    last, low, high = max(places), min(values), max(values)
    x, y = linear(0, last, 60, WIDTH - 130), linear(low, high, 250, 16)
    canvas = Canvas(300, title)
    _axis_y(canvas, y, ticks(low, high), 60, WIDTH - 130)
    for value in ticks(0, last):
        canvas.text(x(value), 276, f"{value:g}", "axis", "middle")
    canvas.text((60 + WIDTH - 130) / 2, 296, across, "axis", "middle")
    levels = _spread([y(line.points[-1][1]) + 4 for line in shown])
    for line, level in zip(shown, levels, strict=True):
        canvas.path([(x(place), y(value)) for place, value in line.points], f"curve {line.kind}")
        for place, value in line.points if line.marked else ():
            canvas.dot(x(place), y(value), line.kind, f"{line.name}: {value:.3f} at {place:.3g}")
        canvas.text(x(line.points[-1][0]) + 8, level, line.name, "label")
    return canvas.svg()


def plot_bars(systems: Sequence[System], key: str, describe: Callable[[float], str], title: str) -> str:
    """One bar per system, its value written at the end."""
    shown = [system for system in systems if system[key] and not system["error"]]
    if not shown:
        return ""
    x = linear(0, max(system[key] for system in shown), 0, WIDTH - LABELS - 110)
    canvas = Canvas(len(shown) * 24 + 6, title)
    for index, system in enumerate(shown):
        y = index * 24 + 6
        canvas.text(LABELS - 12, y + 10, system["name"], "label", "end")
        canvas.bar(LABELS, y, x(system[key]), colour(system))
        canvas.text(LABELS + x(system[key]) + 8, y + 10, describe(system[key]), "value")
    return canvas.svg()


def _axis_y(canvas: Canvas, y: Scale, values: Sequence[float], left: float, right: float) -> None:
    for value in values:
        canvas.line((left, y(value), right, y(value)), "grid")
        canvas.text(left - 8, y(value) + 4, f"{value:g}", "axis", "end")


def _free_level(placed: list[tuple[float, float]], x: float, y: float) -> float:
    """The height next to `y`, above the axis, at which a label covers no other."""
    near = [other_y for other_x, other_y in placed if abs(x - other_x) < 90]
    free = [level for level in range(TOP, FLOOR) if all(abs(level - other) >= LETTERS for other in near)]
    level = min(free, key=lambda level: abs(level - y), default=y)
    placed.append((x, level))
    return level


def _spread(levels: Sequence[float]) -> list[float]:
    """The same heights, from the top down, pushed apart so that labels do not touch, all above the axis."""
    apart: list[float] = []
    for level in levels:
        apart.append(max(level, apart[-1] + LETTERS if apart else TOP))
    limit = float(FLOOR)
    for index in reversed(range(len(apart))):
        apart[index] = min(apart[index], limit)
        limit = apart[index] - LETTERS
    return apart


def _curve_points(system: System) -> list[tuple[float, float]]:
    """(epoch, validation loss) where the loss is known."""
    points = [(point["epoch"], point["validation_loss"]) for point in system["curve"]]
    return [(epoch, loss) for epoch, loss in points if loss is not None]


def _interval(system: System, metric: str) -> dict[str, float]:
    """The interval, or nothing when the system failed or its ends are not known."""
    found = system["metrics"].get(metric)
    return dict(found) if found and None not in found.values() else {}


def _count(number: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"
