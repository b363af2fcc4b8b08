"""Systems that were judged, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tunesmith.evaluation.written import losses_text, spread_text
from tunesmith.terminal import describe_bytes, describe_seconds

if TYPE_CHECKING:  # not at run time: it brings torch, and help texts should come at once
    from tunesmith.evaluation.forgetting import Change


def comparison_table(content: Mapping[str, Any]) -> Table:
    """Systems as rows: metrics with intervals, and what they cost. The best is marked, so is the advice.

    Half the width of the interval fits 80 columns; the page shows both ends.
    """
    systems = content["systems"]
    names = _metrics_shown(content, systems)
    table = _table()
    table.add_column("")
    table.add_column("system")
    for name in names:
        table.add_column(name, justify="right")
    measures = forgetting_columns(systems)
    for title in (*(f"Δ {name}" for name in measures), "trained", "peak memory", "time"):
        table.add_column(title, justify="right")
    for system in systems:
        best, advised = (system["name"] == content["verdict"][key] for key in ("best", "recommended"))
        mark = ("★" if best else "") + ("✓" if advised else "")
        cells = [interval_text(system["metrics"].get(name)) for name in names]
        cells += [interval_text(forgotten(system).get(name, {}).get("change")) for name in measures]
        if system["error"]:
            table.add_row("✗", system["name"], system["error"].splitlines()[0], style="red")
            continue
        trained = f"{system['trainable_parameters']:,}" if system["trainable_parameters"] else "-"
        cost = (trained, describe_bytes(system["peak_memory"]), f"{system['total_seconds']:.0f} s")
        table.add_row(mark, system["name"], *cells, *cost, style="bold" if best else "")
    table.caption = f"★ best {content['primary']}   ✓ recommended   ± half of the 95 % bootstrap interval"
    table.caption += "   Δ tuned - base: what was forgotten" if measures else ""
    return table


def _table() -> Table:
    return Table(box=None, header_style="bold", pad_edge=False, caption_justify="left")


def _metrics_shown(content: Mapping[str, Any], systems: Sequence[Mapping[str, Any]]) -> list[str]:
    """Three: what the advice goes by first, whichever of the systems lacks it."""
    found = (name for system in systems for name in system["metrics"])
    return list(dict.fromkeys([content["primary"], *found]))[:3]


def use_table(content: Mapping[str, Any]) -> Table | None:
    """What each answer costs; None where nothing was asked of a model."""
    asked = [system for system in content["systems"] if system.get("prompt_tokens")]
    if not asked:
        return None
    table = _table()
    table.add_column("to answer")
    for title in ("tokens read", "seconds", "stored"):
        table.add_column(title, justify="right")
    table.add_column("chosen")
    for system in asked:
        stored = describe_bytes(system["stored_bytes"]) if system["stored_bytes"] else "-"
        cost = (f"{system['prompt_tokens']:,.0f}", f"{system['answer_seconds']:.3f}", stored)
        table.add_row(system["name"], *cost, system["note"])
    table.caption = "for each test row, answered in batches; stored: what the run adds to the disk"
    return table


def seed_table(content: Mapping[str, Any]) -> Table | None:
    """What methods came to with other seeds; None where each was trained once."""
    seeded = [system for system in content["systems"] if system.get("seeds")]
    if not seeded:
        return None
    names = _metrics_shown(content, seeded)
    table = _table()
    table.add_column("over seeds")
    for name in names:
        table.add_column(name, justify="right")
    for system in seeded:
        table.add_row(system["name"], *(spread_text(system, name) for name in names))
    table.caption = f"mean ± standard deviation of {len(seeded[0]['seeds'])} trainings each"
    return table


def search_table(content: Mapping[str, Any]) -> Table | None:
    """The learning rates that were tried; None where none were."""
    searched = [system for system in content["systems"] if system.get("search")]
    if not searched:
        return None
    table = _table()
    table.add_column("learning rates")
    table.add_column("rate", justify="right")
    table.add_column("validation loss (after steps)")
    table.add_column("outcome")
    for system in searched:
        for trial in system["search"]["trials"]:
            style = "bold" if trial["outcome"] == "chosen" else ""
            table.add_row(system["name"], f"{trial['rate']:g}", losses_text(trial), trial["outcome"], style=style)
    spent = sum(system["search"]["spent"] for system in searched)
    notes = [f"{system['name']}: {system['search']['note']}" for system in searched]
    table.caption = "\n".join((f"successive halving on validation rows, {describe_seconds(spent)} in all", *notes))
    return table


def forgetting_columns(systems: Sequence[Mapping[str, Any]]) -> list[str]:
    """The measures of forgetting that a comparison shows beside the metrics; the page has all of them."""
    names = dict.fromkeys(name for system in systems for name in forgotten(system))
    return [name for name in names if name in ("own_words", "probe", "representations") or name.startswith("also: ")]


def forgotten(system: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What a system has forgotten, by measure; the first metric of each."""
    found: dict[str, Mapping[str, Any]] = {}
    for one in system.get("forgotten", ()):
        found.setdefault(one["measure"], one)
    return found


def forgetting_table(changes: Sequence[Change]) -> Table:
    """Measures as rows, before and after; what is worse, as far as these rows can tell, is marked."""
    table = _table()
    for title in ("", "measure", "metric"):
        table.add_column(title, no_wrap=True)
    for title in ("rows", "base", "tuned", "change", "kept", "lost", "gained"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in changes:
        counts = ("-" if count is None else str(count) for count in (one.kept, one.lost, one.gained))
        mark = "▼" if one.is_worse else "▲" if one.is_better else ""
        numbers = (f"{one.base.value:.3f}", f"{one.tuned.value:.3f}", str(one.change))
        style = "red" if one.is_worse else ""
        table.add_row(mark, one.measure, one.metric, f"{one.num_rows:,}", *numbers, *counts, style=style)
    table.caption = "▼ worse   ▲ better, by the 95 % interval of the change (paired bootstrap over the same rows)"
    return table


def interval_text(interval: Mapping[str, float | None] | None) -> str:
    ends = [] if interval is None else [interval[end] for end in ("value", "low", "high")]
    known = [end for end in ends if end is not None]
    if len(known) < 3:
        return "-" if not known else f"{known[0]:.3f}"
    value, low, high = known
    return f"{value:.3f} ±{(high - low) / 2:.3f}"


def duel_lines(found: Mapping[str, Any]) -> list[str]:
    """How often one model is preferred to another."""
    lengths = " and ".join(f"{length:.0f}" for length in found["mean_length"].values())
    return [
        f"preferred        {found['win_rate']} of {found['prompts']:,} prompts, {found['level']:.1%} level",
        f"at equal length  {found['at_equal_length']}; the answers have {lengths} characters",
        "mean score       " + ", ".join(f"{key} {score:.3f}" for key, score in found["mean_score"].items()),
    ]
