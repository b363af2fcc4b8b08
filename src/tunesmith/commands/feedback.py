"""The feedback commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cyclopts import App

from tunesmith.commands.console import AsJson, ConfigFile, given, out, print_json
from tunesmith.feedback.settings import (
    AgreementConfig,
    ChooseConfig,
    ExportConfig,
    ImportConfig,
    ItemsConfig,
    SampleConfig,
    ServeConfig,
    SimulateConfig,
)
from tunesmith.flags import flags_of
from tunesmith.tables import agreement_table

if TYPE_CHECKING:  # not at run time: help texts should come at once
    from tunesmith.feedback.forms import Item

app = App(name="feedback", help="People rank a model's answers in a web page, and nothing they do is lost.")


@app.command
@flags_of(SampleConfig)
def sample(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Let one or several models answer prompts several times, for people to rank."""
    from tunesmith.feedback.candidates import sample_items

    settled = SampleConfig.read(config, given(settings))
    _add(settled.database, sample_items(settled), as_json)


@app.command(name="import")
@flags_of(ImportConfig)
def import_(source: str, /, *, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Take answers that were made elsewhere: JSONL with prompt, answers and, if known, models and ranks."""
    from tunesmith.feedback.candidates import read_answers

    settled = ImportConfig.read(config, {"data": source, **given(settings)})
    _add(settled.database, read_answers(settled.data, settled.gold), as_json)


def _add(address: str, items: Sequence[Item], as_json: bool) -> None:
    from tunesmith.feedback.database import open_database
    from tunesmith.feedback.store import Store

    database = open_database(address, create=True)
    added = Store(database).add_items(items)
    database.close()
    if as_json:
        return print_json({"database": address, "items": len(items), "added": added})
    known = len(items) - added
    out.print(f"{added:,} items added to {address}{f', {known:,} were there already' if known else ''}", markup=False)
    out.print(f"next    tunesmith feedback serve --database {address}", markup=False)


@app.command
@flags_of(ServeConfig)
def serve(*, config: ConfigFile = None, **settings: Any) -> None:
    """Open the page in which people rank, until it is stopped. Prints the owner's address, with a token."""
    from tunesmith.feedback.serving import serve as run_stage

    run_stage(ServeConfig.read(config, given(settings)))


@app.command
@flags_of(ExportConfig)
def export(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Write what people said: rankings, pairs for DPO or reward models, judged answers for KTO, or a table."""
    from tunesmith.feedback.export import export_store

    snapshot, written = export_store(ExportConfig.read(config, given(settings)))
    if as_json:
        return print_json({"snapshot": snapshot, "rows": written})
    for name, count in written.items():
        out.print(f"{count:,} rows written to {name}", markup=False)
    out.print(f"as of event {snapshot}; --until {snapshot} writes the same again")


@app.command
@flags_of(AgreementConfig)
def agreement(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Say how far people agree, by five measures with intervals."""
    from tunesmith.feedback.database import open_database
    from tunesmith.feedback.overview import measure

    settled = AgreementConfig.read(config, given(settings))
    database = open_database(settled.database)
    snapshot, measures = measure(database, settled.until, settled.seed)
    database.close()
    if as_json:
        return print_json({"snapshot": snapshot, "measures": measures})
    out.print(agreement_table(measures))


@app.command
@flags_of(ItemsConfig)
def items(*, config: ConfigFile = None, **settings: Any) -> None:
    """Write all items with the ids of their answers, for a reward model to score."""
    from tunesmith.feedback.database import open_database
    from tunesmith.feedback.priorities import write_items
    from tunesmith.feedback.results import read_items

    settled = ItemsConfig.read(config, given(settings))
    database = open_database(settled.database)
    found = read_items(database)
    database.close()
    write_items(settled.output, found)
    out.print(f"{len(found):,} items written to {settled.output}", markup=False)


@app.command
@flags_of(ChooseConfig)
def choose(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Choose what is asked next: items at random, or those of which reward models are least sure."""
    from tunesmith.feedback.database import open_database
    from tunesmith.feedback.priorities import choose as run_stage

    settled = ChooseConfig.read(config, given(settings))
    database = open_database(settled.database)
    count = run_stage(settled, database)
    database.close()
    if as_json:
        return print_json({"items": count})
    out.print(f"{count:,} items have a new priority, {settled.by}", markup=False)


@app.command
@flags_of(SimulateConfig)
def simulate(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Let labelers that do not exist rank, by a preference that is known; what they say is marked as simulated."""
    from tunesmith.feedback.simulate import simulate as run_stage

    settled = SimulateConfig.read(config, given(settings))
    count = run_stage(settled)
    if as_json:
        return print_json({"rankings": count})
    out.print(f"{count:,} simulated rankings in {settled.database}", markup=False)
