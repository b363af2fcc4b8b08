"""What people said as rows that trainers read: `datasets`, TRL and tunesmith itself.

Each row says whose it is, of which event, and whether its labeler was simulated. Where the owner has decided an item,
the decision stands in place of what others said of it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tunesmith.errors import InputError, nearest
from tunesmith.feedback.agreement import filled
from tunesmith.feedback.database import open_database
from tunesmith.feedback.forms import Ranked, turn_fields
from tunesmith.feedback.pairs import comparisons
from tunesmith.feedback.results import Results, StoredItem, read_results
from tunesmith.feedback.settings import ExportConfig
from tunesmith.records import Message
from tunesmith.storage import appearing, explained, write_json, write_text

Row = dict[str, Any]
Turns = list[dict[str, str]]
TRAIN, VALIDATION = 0.8, 0.9  # up to these shares of the hashes of prompts
GOOD_RATING, BAD_RATING = 5, 3  # of 7, at least and at most
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would calculate


def to_rankings(ranked: Ranked, item: StoredItem, ties: str) -> Iterator[Row]:
    """`answers` best first with their `ranks`; unranked answers share the last rank, `is_ranked` tells them."""
    ranks = filled(ranked.ranks)
    order = sorted(ranks, key=lambda name: (ranks[name], name))
    yield {
        "prompt": turn_fields(item.prompt),
        "answers": [item.candidates[name].text for name in order],
        "ranks": [ranks[name] for name in order],
        "is_ranked": [ranked.ranks[name] is not None for name in order],
        "models": [item.candidates[name].model for name in order],
        "shown_at": [ranked.shown.index(name) + 1 for name in order],
        "ratings": [ranked.ratings.get(name) for name in order],
        "is_unsafe": [name in ranked.unsafe for name in order],
        "all_bad": ranked.all_bad,
        "comment": ranked.comment,
        "seconds": ranked.seconds,
    }


def to_dpo(ranked: Ranked, item: StoredItem, ties: str) -> Iterator[Row]:
    """Explicit prompt, `chosen` and `rejected` as the assistant's turn: TRL's conversational preference format."""
    for chosen, rejected, weight in _pairs(ranked, ties):
        yield {
            "prompt": turn_fields(item.prompt),
            "chosen": [_turn(item, chosen)],
            "rejected": [_turn(item, rejected)],
            "weight": weight,
        }


def to_reward(ranked: Ranked, item: StoredItem, ties: str) -> Iterator[Row]:
    """`chosen` and `rejected` as whole conversations, the prompt within: what reward trainers take."""
    prompt: Turns = turn_fields(item.prompt)
    for chosen, rejected, weight in _pairs(ranked, ties):
        yield {
            "chosen": [*prompt, _turn(item, chosen)],
            "rejected": [*prompt, _turn(item, rejected)],
            "weight": weight,
        }


def _pairs(ranked: Ranked, ties: str) -> Iterator[tuple[str, str, float]]:
    for pair in comparisons(ranked.ranks):
        if pair.outcome:
            yield pair.winner, pair.loser, 1.0
        elif ties == "half":
            yield pair.first, pair.second, 0.5
            yield pair.second, pair.first, 0.5


def _turn(item: StoredItem, name: str) -> dict[str, str]:
    return {"role": "assistant", "content": item.candidates[name].text}


def to_kto(ranked: Ranked, item: StoredItem, ties: str) -> Iterator[Row]:
    """Answers that are good or bad by themselves (Ethayarajh et al. 2024, arXiv 2402.01306).

    Bad: flagged as unsafe, all called bad, or rated 3 of 7 at most. Good: rated 5 at least. Where there are no
    ratings, the first of a ranking is good and the last bad; what lies between is not told.
    """
    for name in sorted(ranked.ranks):
        verdict = _verdict(ranked, name)
        if verdict is not None:
            yield {
                "prompt": turn_fields(item.prompt),
                "completion": [_turn(item, name)],
                "label": verdict,
            }


def _verdict(ranked: Ranked, name: str) -> bool | None:
    if ranked.all_bad or name in ranked.unsafe:
        return False
    if name in ranked.ratings:
        rating = ranked.ratings[name]
        return True if rating >= GOOD_RATING else False if rating <= BAD_RATING else None
    ranks = filled(ranked.ranks)
    first, last = min(ranks.values()), max(ranks.values())
    if ranked.ratings or first == last:
        return None
    return True if ranks[name] == first else False if ranks[name] == last else None


def to_table(ranked: Ranked, item: StoredItem, ties: str) -> Iterator[Row]:
    """One line for each answer, for spreadsheets: what they would take for a formula gets a quote before it."""
    for name, candidate in item.candidates.items():
        yield {
            "prompt": item.prompt[-1].content,
            "answer": candidate.text,
            "model": candidate.model,
            "rank": ranked.ranks[name],
            "shown_at": ranked.shown.index(name) + 1,
            "rating": ranked.ratings.get(name),
            "is_unsafe": name in ranked.unsafe,
            "all_bad": ranked.all_bad,
            "comment": ranked.comment,
            "seconds": ranked.seconds,
        }


FORMS: Mapping[str, Callable[[Ranked, StoredItem, str], Iterator[Row]]] = {
    "rankings": to_rankings,
    "dpo": to_dpo,
    "reward": to_reward,
    "kto": to_kto,
    "csv": to_table,
}


def rows_of(
    form: str, rankings: Iterable[Ranked], items: Mapping[str, StoredItem], ties: str = "drop"
) -> Iterator[Row]:
    """The rows of a form, each with where it comes from."""
    for ranked in rankings:
        marks = {
            "labeler": ranked.labeler,
            "simulated": ranked.is_simulated,
            "adjudicated": ranked.is_adjudication,
            "item": ranked.item,
            "event": ranked.event,
        }
        for row in FORMS[form](ranked, items[ranked.item], ties):
            yield {**row, **marks}


def settle(results: Results) -> list[Ranked]:
    """The rankings, where the owner's decision replaces all others of its item."""
    decided = {ranked.item for ranked in results.rankings if ranked.is_adjudication}
    return [ranked for ranked in results.rankings if ranked.is_adjudication or ranked.item not in decided]


def to_text(form: str, rows: Sequence[Row]) -> str:
    if form != "csv":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def part_of(prompt: Sequence[Message]) -> str:
    """train, validation or test: by the prompt alone, so that more data moves no prompt into another part."""
    content = json.dumps(turn_fields(prompt), ensure_ascii=True).encode()
    share = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
    return "train" if share < TRAIN else "validation" if share < VALIDATION else "test"


def export(config: ExportConfig, results: Results) -> dict[str, int]:
    """Writes what people said; returns the number of rows of each file.

    Raises:
        InputError: nothing was ranked, an unknown labeler, or an output that is there already.
    """
    rankings = [one for one in settle(results) if config.simulated or not one.is_simulated]
    if not rankings:
        raise InputError(f"{config.database}: nothing was ranked yet. `tunesmith feedback serve` opens the page")
    people = sorted({ranked.labeler for ranked in rankings})
    for name in config.held_out_labelers:
        if name not in people:
            raise InputError(f"held_out_labelers: nobody called '{name}' has ranked: {nearest(name, people)}")
    if config.output.exists():
        raise InputError(f"{config.output} is there already. Give another --output")
    parts: dict[str, list[Ranked]] = {"train": [], "validation": [], "test": [], "held-out-labelers": []}
    for ranked in rankings:
        held_out = ranked.labeler in config.held_out_labelers
        name = "held-out-labelers" if held_out else part_of(results.items[ranked.item].prompt)
        parts[name].append(ranked)
    with explained("what people said", config.output.parent):
        if config.split == "none" and not config.held_out_labelers:
            return _write_file(config, results, rankings)
        return _write_folder(config, results, parts)


def _write_file(config: ExportConfig, results: Results, rankings: Sequence[Ranked]) -> dict[str, int]:
    rows = list(rows_of(config.form, rankings, results.items, config.ties))
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(config.output, to_text(config.form, rows))
    return {str(config.output): len(rows)}


def _write_folder(config: ExportConfig, results: Results, parts: Mapping[str, list[Ranked]]) -> dict[str, int]:
    if config.split == "none":
        parts = {
            "train": [one for name in ("train", "validation", "test") for one in parts[name]],
            "held-out-labelers": parts["held-out-labelers"],
        }
    ending = "csv" if config.form == "csv" else "jsonl"
    written = {}
    with appearing(config.output) as folder:
        for name, rankings in parts.items():
            rows = list(rows_of(config.form, rankings, results.items, config.ties))
            if rows:
                write_text(folder / f"{name}.{ending}", to_text(config.form, rows))
                written[str(config.output / f"{name}.{ending}")] = len(rows)
        people = Counter(ranked.labeler for rankings in parts.values() for ranked in rankings)
        facts = {"snapshot": results.snapshot, "labelers": people, "rows": written}
        write_json(folder / "export.json", {**config.model_dump(mode="json"), **facts})
    return written


def export_store(config: ExportConfig) -> tuple[int, dict[str, int]]:
    """(snapshot, rows of each file) of a store by its address."""
    database = open_database(config.database)
    try:
        results = read_results(database, config.until)
        return results.snapshot, export(config, results)
    finally:
        database.close()
