"""The numbers an owner looks at, from what was said so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from sqlalchemy import func, select

from tunesmith.feedback.agreement import (
    INSTRUCTGPT,
    Measure,
    agreement_by_labeler,
    by_item,
    contested,
    count_pairs,
    measure_agreement,
)
from tunesmith.feedback.database import Database
from tunesmith.feedback.forms import Ranked
from tunesmith.feedback.results import Results, StoredItem, read_results
from tunesmith.feedback.schema import item
from tunesmith.feedback.statements import QUEUE
from tunesmith.feedback.strengths import rate_first_place, rate_longer, rate_models, rate_ties

MOST_DISAGREEMENTS = 50
MOST_NEXT = 10
MOST_RANKINGS = 20_000  # the newest ones, which the numbers are of


def overview(database: Database, until: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Progress, people, agreement, what else decides, models, and the items people quarrel about."""
    results = read_results(database, until)
    latest = sorted(results.rankings, key=lambda ranked: ranked.event)[-MOST_RANKINGS:]
    opinions = [ranked for ranked in latest if not ranked.is_adjudication]
    items = by_item((ranked.item, ranked.labeler, ranked.ranks) for ranked in opinions)
    candidates = {name: one.candidates for name, one in results.items.items()}
    return {
        "snapshot": results.snapshot,
        "num_left_out": len(results.rankings) - len(latest),
        "progress": _progress(database, results),
        "labelers": _labelers(opinions, results),
        "agreement": [asdict(measure) for measure in measure_agreement(items, seed)],
        "instructgpt": INSTRUCTGPT,
        "bias": {
            "first": asdict(rate_first_place(opinions, seed)),
            "longer": asdict(rate_longer(opinions, candidates, seed)),
            "ties": asdict(rate_ties(opinions, seed)),
        },
        "models": [asdict(one) for one in rate_models(opinions, candidates, seed)],
        "disagreements": _disagreements(latest, items, results.items),
        "next": _next(database),
    }


def measure(database: Database, until: int | None = None, seed: int = 0) -> tuple[int, list[Measure]]:
    """(snapshot, all measures of agreement); adjudications are no opinions beside others and stand aside."""
    results = read_results(database, until)
    opinions = [ranked for ranked in results.rankings if not ranked.is_adjudication]
    items = by_item((ranked.item, ranked.labeler, ranked.ranks) for ranked in opinions)
    return results.snapshot, measure_agreement(items, seed)


def _progress(database: Database, results: Results) -> dict[str, Any]:
    with database.reading() as connection:
        free, all_ = (
            connection.execute(select(func.count()).select_from(item).where(*condition)).scalar_one()
            for condition in ((item.c.is_free,), ())
        )
    return {
        "items": all_,
        "open_items": free,
        "rankings": len(results.rankings),
        "ranked_items": len({ranked.item for ranked in results.rankings}),
        "skips": sum(results.skips.values()),
        "adjudicated": len({ranked.item for ranked in results.rankings if ranked.is_adjudication}),
        "gold": sum(bool(one.gold) for one in results.items.values()),
        "unsafe": len({name for ranked in results.rankings for name in ranked.unsafe}),
    }


def _next(database: Database) -> list[dict[str, Any]]:
    """The items that are asked for first, with what was said for it: item, prompt, priority, reason."""
    with database.reading() as connection:
        rows = connection.execute(QUEUE, {"most": MOST_NEXT}).mappings().all()
    return [
        {
            "item": row["id"],
            "prompt": row["messages"][-1]["content"][:160],
            "priority": row["priority"],
            "reason": row["reason"],
        }
        for row in rows
    ]


def _labelers(opinions: Sequence[Ranked], results: Results) -> dict[str, dict[str, Any]]:
    """By name: ranked, skipped, median_seconds, agreement with others, tie_rate, gold (share right of gold pairs)."""
    theirs: dict[str, list[Ranked]] = defaultdict(list)
    for ranked in opinions:
        theirs[ranked.labeler].append(ranked)
    agreement = agreement_by_labeler(by_item((one.item, one.labeler, one.ranks) for one in opinions))
    return {
        name: {
            "ranked": len(theirs[name]),
            "skipped": results.skips.get(name, 0),
            "median_seconds": _median_seconds(theirs[name]),
            "agreement": agreement.get(name),
            "tie_rate": rate_ties(theirs[name]).value if theirs[name] else None,
            "gold": rate_gold(theirs[name], results.items),
        }
        for name in sorted({*theirs, *results.skips})
    }


def _median_seconds(rankings: Sequence[Ranked]) -> float | None:
    known = [ranked.seconds for ranked in rankings if ranked.seconds is not None]
    return median(known) if known else None


def rate_gold(rankings: Sequence[Ranked], items: Mapping[str, StoredItem]) -> float | None:
    """Share of the pairs that gold items tell apart in which this person chose the right answer; None without any."""
    right = judged = 0.0
    for ranked in rankings:
        gold = items[ranked.item].gold
        if gold:
            ranks = {name: rank for rank, level in enumerate(gold, 1) for name in level}
            counts = count_pairs({"gold": ranks, ranked.labeler: ranked.ranks})
            right, judged = right + counts[0], judged + counts[1]
    return right / judged if judged else None


def _disagreements(
    latest: Sequence[Ranked], items: Mapping[str, Mapping[str, Any]], stored: Mapping[str, StoredItem]
) -> list[dict[str, Any]]:
    decided = {ranked.item for ranked in latest if ranked.is_adjudication}
    return [
        {
            "item": name,
            "prompt": stored[name].prompt[-1].content[:160],
            "share": share,
            "labelers": sorted(items[name]),
            "is_adjudicated": name in decided,
        }
        for name, share in contested(items)[:MOST_DISAGREEMENTS]
    ]
