"""Results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tunesmith.terminal import describe_bytes, describe_seconds

if TYPE_CHECKING:  # not at run time: it brings torch, and help texts should come at once
    from tunesmith.train.plan import Forecast


def plan_table(forecasts: Sequence[Forecast]) -> Table:
    """Memory by what it is for, arithmetic, time, disk.

    Memory is in MB throughout, so that columns can be added up by eye.
    """
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("")
    table.add_column("method")
    for title in (
        "trained",
        "peak MB",
        "weights",
        "grads",
        "optim.",
        "activ.",
        "store",
        "base",
        "TFLOP",
        "time",
        "disk",
    ):
        table.add_column(title, justify="right")
    for one in forecasts:
        if not one.num_steps:
            table.add_row("-", one.method, *["-"] * 10, style="dim")
            continue
        held = one.memory
        passing = held.activations + held.temporaries + held.prefix
        parts = (one.peak, held.parameters, held.gradients, held.optimizer, passing, held.base)
        cost = (f"{one.flops / 1e12:,.1f}", describe_seconds(one.seconds), describe_bytes(one.disk))
        cells = [f"{one.trained:,}", *(f"{size / 1e6:,.0f}" for size in parts), *cost]
        table.add_row("✓" if one.fits else "✗", one.method, *cells, style="" if one.fits else "red")
    free = describe_bytes(forecasts[0].available)
    table.caption = f"✓ fits   ✗ does not fit into the {free} that are free   activ.: and what else passes"
    table.caption_justify = "left"
    return table


def comparison_table(content: Mapping[str, Any]) -> Table:
    """Systems as rows: metrics with intervals, and what they cost. The best is marked, so is the advice.

    Half the width of the interval fits 80 columns; the page shows both ends.
    """
    systems = content["systems"]
    names = list(dict.fromkeys(name for system in systems for name in system["metrics"]))[:3]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    table.add_column("system")
    for name in names:
        table.add_column(name, justify="right")
    for title in ("trained", "peak memory", "time"):
        table.add_column(title, justify="right")
    for system in systems:
        best, advised = (system["name"] == content["verdict"][key] for key in ("best", "recommended"))
        mark = ("★" if best else "") + ("✓" if advised else "")
        cells = [interval_text(system["metrics"].get(name)) for name in names]
        if system["error"]:
            table.add_row("✗", system["name"], system["error"].splitlines()[0], style="red")
            continue
        trained = f"{system['trainable_parameters']:,}" if system["trainable_parameters"] else "-"
        cost = (trained, describe_bytes(system["peak_memory"]), f"{system['total_seconds']:.0f} s")
        table.add_row(mark, system["name"], *cells, *cost, style="bold" if best else "")
    table.caption = f"★ best {content['primary']}   ✓ recommended   ± half of the 95 % bootstrap interval"
    table.caption_justify = "left"
    return table


def interval_text(interval: Mapping[str, float | None] | None) -> str:
    ends = [] if interval is None else [interval[end] for end in ("value", "low", "high")]
    known = [end for end in ends if end is not None]
    if len(known) < 3:
        return "-" if not known else f"{known[0]:.3f}"
    value, low, high = known
    return f"{value:.3f} ±{(high - low) / 2:.3f}"
