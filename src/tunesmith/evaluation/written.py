"""A comparison for other programs and for other pages: in lm-evaluation-harness's shape, and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# 95 % of a normal distribution lie within so many standard errors of its mean.
ERRORS = 1.959964
# Names that the harness has for what we call otherwise.
NAMES = {"accuracy": "acc", "macro_f1": "f1", "bits_per_byte": "bits_per_byte", "exact_match": "exact_match"}


def to_harness(comparison: Mapping[str, Any], higher_is_better: Mapping[str, bool]) -> dict[str, Any]:
    """`results` of each system as lm-evaluation-harness 0.4 writes them: "acc,none" and "acc_stderr,none".

    A standard error is the bootstrap interval's width in those of a normal distribution.
    """
    done = [system for system in comparison["systems"] if not system["error"]]
    num_rows = comparison["data"]["num_test"]
    return {
        "results": {system["name"]: {"alias": system["name"], **_measures(system)} for system in done},
        "higher_is_better": {
            system["name"]: {NAMES.get(name, name): higher_is_better[name] for name in system["metrics"]}
            for system in done
        },
        "n-samples": {system["name"]: {"original": num_rows, "effective": num_rows} for system in done},
        "config": {"model": "tunesmith", "model_args": comparison["model"]["name"], "data": comparison["data"]["name"]},
        "versions": comparison.get("versions", {}),
        "date": comparison["created"],
        "total_evaluation_time_seconds": str(comparison["seconds"]),
    }


def _measures(system: Mapping[str, Any]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name, interval in system["metrics"].items():
        key = NAMES.get(name, name)
        found[f"{key},none"] = interval["value"]
        known = interval["low"] is not None and interval["high"] is not None
        found[f"{key}_stderr,none"] = (interval["high"] - interval["low"]) / 2 / ERRORS if known else None
    return found


def to_markdown(comparison: Mapping[str, Any], columns: Sequence[str], interval: Any) -> str:
    """The answer, the table and how to repeat it. `interval` writes a value with its ends."""
    return "\n".join(_lines(comparison, columns, interval)) + "\n"


def _lines(comparison: Mapping[str, Any], columns: Sequence[str], interval: Any) -> Iterator[str]:
    verdict, data = comparison["verdict"], comparison["data"]
    advice = f"Use {verdict['recommended']}" if verdict["recommended"] else "No system finished"
    yield from (f"# {_cell(advice)}: {_cell(comparison['model']['name'])} on {_cell(data['name'])}", "")
    yield from (_cell(verdict["reason"]), "")
    yield (
        f"{data['task']}, {data['num_train']:,} training rows, {data['num_validation']:,} for validation, "
        f"{data['num_test']:,} for testing. Brackets are 95 % bootstrap intervals."
    )
    measures = list(dict.fromkeys(_measure_name(one) for s in comparison["systems"] for one in s.get("forgotten", ())))
    heads = ["system", *columns, *(f"Δ {name}" for name in measures), "trained", "peak MB", "seconds"]
    yield from ("", _row(heads), _row(["---", *["---:"] * (len(heads) - 1)]))
    for system in comparison["systems"]:
        if system["error"]:
            yield _row([system["name"], f"failed: {system['error'].splitlines()[0]}", *[""] * (len(heads) - 2)])
            continue
        forgotten = {_measure_name(one): one["change"] for one in system.get("forgotten", ())}
        cells = [interval(system["metrics"].get(name)) for name in columns]
        cells += [interval(forgotten.get(name)) for name in measures]
        trained = f"{system['trainable_parameters']:,}" if system["trainable_parameters"] else "-"
        cost = (trained, f"{system['peak_memory'] / 1e6:,.0f}", f"{system['total_seconds']:,.0f}")
        yield _row([system["name"], *cells, *cost])
    yield from _seeds([system for system in comparison["systems"] if system.get("seeds")], columns)
    yield from _searches([system for system in comparison["systems"] if system.get("search")])
    yield from ("", "To repeat it:", "", f"    {' '.join(str(comparison['command']).split())}", "")
    known = {**comparison["machine"], **comparison.get("versions", {})}
    yield " · ".join(f"{_cell(key)}: {_cell(value)}" for key, value in known.items())


def _seeds(systems: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[str]:
    """What the same methods came to with other seeds."""
    if not systems:
        return
    num_seeds = max(len(system["seeds"]) for system in systems)
    yield from ("", f"Mean and standard deviation over {num_seeds} seeds:")
    yield from ("", _row(["system", *columns]), _row(["---", *["---:"] * len(columns)]))
    for system in systems:
        yield _row([system["name"], *(spread_text(system, name) for name in columns)])


def spread_text(system: Mapping[str, Any], metric: str) -> str:
    """Mean and standard deviation of a metric over the seeds that came to an end: '0.812 ±0.010'."""
    values = [seed["metrics"][metric] for seed in system["seeds"] if seed["metrics"].get(metric) is not None]
    if len(values) < 2:
        return "-"
    failed = sum(bool(seed["error"]) for seed in system["seeds"])
    more = f" ({failed} failed)" if failed else ""
    return f"{statistics.mean(values):.3f} ±{statistics.stdev(values):.3f}{more}"


def _searches(systems: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The learning rates that were tried."""
    if not systems:
        return
    heads = ["system", "learning rate", "validation loss (after steps)", "outcome"]
    yield from ("", _row(heads), _row(["---"] * len(heads)))
    for system in systems:
        for trial in system["search"]["trials"]:
            yield _row([system["name"], f"{trial['rate']:g}", losses_text(trial), trial["outcome"]])
    for system in systems:
        yield from ("", f"{_cell(system['name'])}: {_cell(system['search']['note'])}.")


def losses_text(trial: Mapping[str, Any]) -> str:
    """The lowest validation losses so far of one learning rate: '0.5320 (12), 0.4810 (24)'."""
    return ", ".join(f"{loss:.4f} ({step})" for step, loss in trial["losses"].items()) or "-"


def _measure_name(forgotten: Mapping[str, Any]) -> str:
    return f"{forgotten['measure']} {forgotten['metric']}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: Any) -> str:
    """Text that neither breaks a table nor becomes markup."""
    plain = " ".join(str(text).split())
    for sign in "\\|<>*_`[]":
        plain = plain.replace(sign, f"\\{sign}")
    return plain
