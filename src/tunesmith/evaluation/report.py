"""The comparison as one self-contained HTML page, no script, no network, light and dark; beside it the same as Markdown
and in lm-evaluation-harness's shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tunesmith.evaluation import plots
from tunesmith.evaluation.metrics import METRICS
from tunesmith.evaluation.written import losses_text, spread_text, to_harness, to_markdown
from tunesmith.pages import write_page
from tunesmith.storage import write_json, write_text
from tunesmith.terminal import describe_bytes

TEMPLATE = "report.html.j2"
HARNESS = "results.json"
# What comparisons of earlier versions do not have.
NEWER: Mapping[str, Any] = {"confusions": {}, "beside": {"names": [], "rows": []}, "versions": {}}
# By which of its measures forgetting is drawn, the first that there is.
DRAWN = ("probe", "own_words", "representations")


def write_report(path: Path, comparison: Mapping[str, Any]) -> None:
    """Writes the page for a comparison as it stands in comparison.json, and its like for other programs beside it."""
    names = metric_names(comparison)
    values = {
        **NEWER,
        **comparison,
        "metrics": names,
        "forgotten": list(dict.fromkeys((one["measure"], one["metric"]) for one in _all_forgotten(comparison))),
        "pictures": {name: Markup(svg) for name, svg in draw(comparison).items()},  # noqa: S704 (escaped in plots)
        "done": [system for system in comparison["systems"] if not system["error"]],
        "failed": [system for system in comparison["systems"] if system["error"]],
        "seeded": [system for system in comparison["systems"] if system.get("seeds")],
        "searched": [system for system in comparison["systems"] if system.get("search")],
        "asked": [system for system in comparison["systems"] if system.get("prompt_tokens")],
    }
    filters: dict[str, Callable[..., str]] = {"interval": interval, "bytes": size, "seconds": seconds, "count": count}
    filters |= {"losses": losses_text, "spread": spread_text}
    write_page(path, "tunesmith.evaluation", TEMPLATE, values, filters)
    write_text(path.with_suffix(".md"), to_markdown(comparison, names, interval))
    directions = {metric.name: metric.higher_is_better for metric in METRICS[comparison["data"]["task"]]}
    write_json(path.with_name(HARNESS), to_harness(comparison, directions))


def draw(comparison: Mapping[str, Any]) -> dict[str, str]:
    """The pictures by name; an empty one has nothing to show."""
    systems, primary = comparison["systems"], comparison["primary"]
    by_time = plots.cost("total_seconds", "time in seconds", "{:g}".format)
    return {
        "scores": plots.plot_scores(systems, primary, strongest_baseline(comparison)),
        "forgetting": _draw_forgetting(comparison),
        "by_time": plots.plot_against(systems, primary, by_time),
        "by_memory": plots.plot_against(systems, primary, plots.cost("peak_memory", "peak memory", size)),
        "size": plots.plot_against_size(systems, primary),
        "curves": plots.plot_curves(systems),
        "time": plots.plot_bars(systems, "total_seconds", seconds, "time in seconds"),
        "memory": plots.plot_bars(systems, "peak_memory", size, "peak memory"),
    }


def _all_forgotten(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for system in comparison["systems"] for one in system.get("forgotten", ())]


def _draw_forgetting(comparison: Mapping[str, Any]) -> str:
    """What was learned over what was forgotten."""
    found = _all_forgotten(comparison)
    named = {one["measure"]: one for one in reversed(found)}
    one = next((named[name] for name in DRAWN if name in named), None)
    if one is None:
        return ""
    across = plots.lost(one["measure"], one["metric"], one["higher_is_better"])
    return plots.plot_against(comparison["systems"], comparison["primary"], across)


def strongest_baseline(comparison: Mapping[str, Any]) -> float | None:
    """The best value of the primary metric among the baselines."""
    found = [
        system["metrics"][comparison["primary"]]["value"]
        for system in comparison["systems"]
        if system["kind"] == "baseline" and comparison["primary"] in system["metrics"]
    ]
    found = [value for value in found if value is not None]  # NaN in Python is null in JSON
    return (max(found) if comparison["higher_is_better"] else min(found)) if found else None


def metric_names(comparison: Mapping[str, Any]) -> list[str]:
    """The primary one first, the others as the systems have them."""
    found = dict.fromkeys(name for system in comparison["systems"] for name in system["metrics"])
    return sorted(found, key=lambda name: name != comparison["primary"])


def interval(value: Mapping[str, float | None] | None) -> str:
    if value is None or value["value"] is None:
        return "-"
    if value["low"] is None or value["high"] is None:
        return f"{value['value']:.3f}"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


def size(value: float) -> str:
    return describe_bytes(value) if value else "-"


def count(value: float) -> str:
    return f"{value:,}" if value else "-"
