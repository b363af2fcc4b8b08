"""What comes out of a store: read back by datasets, TRL and tunesmith itself, and safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.feedback.houses import make_items, new_key
from tunesmith import cli
from tunesmith.data.sources import load
from tunesmith.errors import InputError
from tunesmith.feedback.database import open_database
from tunesmith.feedback.export import export_store
from tunesmith.feedback.forms import Candidate, Item, Response
from tunesmith.feedback.people import People
from tunesmith.feedback.results import read_results
from tunesmith.feedback.settings import ExportConfig, SimulateConfig
from tunesmith.feedback.simulate import simulate
from tunesmith.feedback.store import Store, Study
from tunesmith.records import Judgement, Message, Ranking


@pytest.fixture
def address(tmp_path: Path) -> str:
    """Three answers to each of 40 prompts, ranked by two people: one before the tie of the others."""
    address = str(tmp_path / "feedback.db")
    database = open_database(address, create=True)
    store, people = Store(database), People(database)
    store.add_items(make_items(40, 3))
    store.change_study(Study(overlap=2))
    for name in ("ann", "ben"):
        person = people.find_or_add(name)
        while (shown := store.take_next(person.id)) is not None:
            best, *others = sorted(name for name, _ in shown.candidates)
            store.rank(person.id, shown.item_id, 0, new_key(), Response(levels=((best,), tuple(others))), 2.0)
    database.close()
    return address


def run_export(address: str, output: Path, **settings: Any) -> dict[str, int]:
    return export_store(ExportConfig.read(given={"database": address, "output": output, **settings}))[1]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rankings_are_read_by_tunesmith_as_they_were_made(address: str, tmp_path: Path) -> None:
    assert run_export(address, tmp_path / "out.jsonl") == {str(tmp_path / "out.jsonl"): 80}
    examples = load(tmp_path / "out.jsonl")
    assert examples.task == "ranking"
    database = open_database(address)
    results = read_results(database)
    database.close()
    for row, ranked in zip(examples.rows, results.rankings, strict=True):
        assert isinstance(row, Ranking)
        item = results.items[ranked.item]
        assert row.prompt == item.prompt
        texts = {item.candidates[name].text: rank for name, rank in ranked.ranks.items()}
        assert dict(zip(row.answers, row.ranks, strict=True)) == texts


def test_unranked_answers_come_last_and_are_marked(tmp_path: Path) -> None:
    address = str(tmp_path / "few.db")
    database = open_database(address, create=True)
    store, person = Store(database), People(database).find_or_add("ann")
    store.add_items(make_items(1))
    shown = store.take_next(person.id)
    assert shown is not None
    first, *others = [name for name, _ in shown.candidates]
    store.rank(person.id, shown.item_id, 0, new_key(), Response(levels=((first,),), unranked=tuple(others)))
    database.close()
    run_export(address, tmp_path / "out.jsonl")
    (row,) = read(tmp_path / "out.jsonl")
    assert row["ranks"] == [1, 2, 2, 2]
    assert row["is_ranked"] == [True, False, False, False]
    run_export(address, tmp_path / "pairs.jsonl", form="dpo", ties="half")
    assert len(read(tmp_path / "pairs.jsonl")) == 3, "what was not compared is no tie"


def test_pairs_drop_ties_or_halve_them(address: str, tmp_path: Path) -> None:
    run_export(address, tmp_path / "drop.jsonl", form="dpo")
    run_export(address, tmp_path / "half.jsonl", form="dpo", ties="half")
    drop, half = read(tmp_path / "drop.jsonl"), read(tmp_path / "half.jsonl")
    assert (len(drop), len(half)) == (80 * 2, 80 * 4)
    assert sum(row["weight"] for row in half) == 80 * 3
    assert load(tmp_path / "drop.jsonl").task == "ranking"


def test_judgements_are_read_by_tunesmith(address: str, tmp_path: Path) -> None:
    run_export(address, tmp_path / "kto.jsonl", form="kto")
    rows = load(tmp_path / "kto.jsonl")
    assert rows.task == "judgement"
    assert all(isinstance(row, Judgement) for row in rows.rows)
    labels = [row["label"] for row in read(tmp_path / "kto.jsonl")]
    assert labels.count(True) == 80
    assert labels.count(False) == 160


@pytest.mark.parametrize(("form", "kind"), [("dpo", "preference"), ("reward", "preference"), ("kto", "unpaired")])
def test_datasets_and_trl_read_them(address: str, tmp_path: Path, form: str, kind: str) -> None:
    """TRL's own functions say what a row is, and render it with a chat template."""
    datasets = pytest.importorskip("datasets")
    utilities = pytest.importorskip("trl.data_utils", reason="trl comes with the extra `bench`")
    from tests.parity.tiny import make_tokenizer

    run_export(address, tmp_path / "out.jsonl", form=form)
    rows = datasets.load_dataset(
        "json", data_files=str(tmp_path / "out.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert utilities.is_conversational(rows[0])
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    rendered = utilities.apply_chat_template(dict(rows[0]), tokenizer)
    assert {"preference": {"chosen", "rejected"}, "unpaired": {"completion", "label"}}[kind] <= set(rendered)
    if form != "reward":
        assert rendered["prompt"].startswith("[user]Question")


def test_a_table_opens_harmlessly(tmp_path: Path) -> None:
    address = str(tmp_path / "feedback.db")
    database = open_database(address, create=True)
    store, person = Store(database), People(database).find_or_add("ann")
    texts = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\tx", 'fine, "quoted"\nand broken']
    store.add_items([Item((Message("user", "=1+1"),), tuple(Candidate(text, "m") for text in texts))])
    shown = store.take_next(person.id)
    assert shown is not None
    store.rank(
        person.id,
        shown.item_id,
        0,
        new_key(),
        Response(levels=(tuple(name for name, _ in shown.candidates),), comment="=x"),
    )
    database.close()
    run_export(address, tmp_path / "out.csv", form="csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["answer"].removeprefix("'") for row in rows) == sorted(texts)
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t"))]


def test_no_prompt_stands_in_two_parts_and_more_data_moves_none(address: str, tmp_path: Path) -> None:
    run_export(address, tmp_path / "one", split="prompt")
    parts = {path.stem: {str(row["prompt"]) for row in read(path)} for path in (tmp_path / "one").glob("*.jsonl")}
    assert set(parts) == {"train", "validation", "test"}
    assert len(set().union(*parts.values())) == sum(map(len, parts.values())) == 40
    database = open_database(address)
    Store(database).add_items(make_items(60, 3, start=40))
    database.close()
    simulate(SimulateConfig(database=address))
    run_export(address, tmp_path / "two", split="prompt")
    for path in (tmp_path / "two").glob("*.jsonl"):
        others = set().union(*(prompts for name, prompts in parts.items() if name != path.stem))
        assert not others & {str(row["prompt"]) for row in read(path)}


def test_people_can_be_held_out(address: str, tmp_path: Path) -> None:
    written = run_export(address, tmp_path / "out", split="prompt", held_out_labelers="ben")
    assert {row["labeler"] for row in read(tmp_path / "out/held-out-labelers.jsonl")} == {"ben"}
    assert {row["labeler"] for row in read(tmp_path / "out/train.jsonl")} == {"ann"}
    assert sum(written.values()) == 80
    about = json.loads((tmp_path / "out/export.json").read_text())
    assert about["labelers"] == {"ann": 40, "ben": 40}
    with pytest.raises(InputError, match="nobody called 'bem' has ranked: did you mean 'ben'"):
        run_export(address, tmp_path / "no", held_out_labelers="bem")


def test_a_snapshot_is_the_same_for_ever(address: str, tmp_path: Path) -> None:
    database = open_database(address)
    until = read_results(database).rankings[9].event
    store, person = Store(database), People(database).find_or_add("ann")
    run_export(address, tmp_path / "before.jsonl", until=until)
    item = store.history(person.id)[-1]
    names = sorted(name for name, _ in store.open_mine(person.id, item["item_id"]).candidates)
    store.rank(person.id, item["item_id"], item["version"], new_key(), Response(levels=(tuple(names),)))
    database.close()
    run_export(address, tmp_path / "after.jsonl", until=until)
    assert (tmp_path / "before.jsonl").read_bytes() == (tmp_path / "after.jsonl").read_bytes()
    assert len(read(tmp_path / "before.jsonl")) == 10
    with pytest.raises(InputError, match="there is no event 999999 yet"):
        run_export(address, tmp_path / "none.jsonl", until=999999)


def test_simulated_rankings_say_so_and_can_be_left_out(address: str, tmp_path: Path) -> None:
    database = open_database(address)
    Store(database).change_study(Study(overlap=4))
    database.close()
    assert simulate(SimulateConfig(database=address, num_labelers=2, noise=0.0)) == 80
    run_export(address, tmp_path / "all.jsonl")
    rows = read(tmp_path / "all.jsonl")
    assert sum(row["simulated"] for row in rows) == 80
    for row in rows:
        if row["simulated"]:
            assert row["labeler"].startswith("simulated longer")
            lengths = [len(answer) for answer in row["answers"]]
            assert lengths == sorted(lengths, reverse=True), "what they prefer is known"
    run_export(address, tmp_path / "people.jsonl", simulated="false")
    assert not [row for row in read(tmp_path / "people.jsonl") if row["simulated"]]


def test_what_the_owner_decided_stands_alone(address: str, tmp_path: Path) -> None:
    database = open_database(address)
    store, owner = Store(database), People(database).find_or_add("owner", "owner")
    item = read_results(database).rankings[0].item
    shown = store.open_aside(owner.id, item)
    store.rank(owner.id, item, 0, new_key(), Response(levels=(tuple(name for name, _ in shown.candidates),)))
    database.close()
    run_export(address, tmp_path / "out.jsonl")
    assert [row["labeler"] for row in read(tmp_path / "out.jsonl") if row["item"] == item] == ["owner"]


def test_nothing_is_written_over_and_nothing_of_nothing(address: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="is there already"):
        run_export(address, tmp_path / "there")
    empty = str(tmp_path / "empty.db")
    open_database(empty, create=True).close()
    with pytest.raises(InputError, match="nothing was ranked yet"):
        run_export(empty, tmp_path / "no.jsonl")


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = tmp_path / "answers.jsonl"
    rows = [
        {"prompt": f"Q{at}", "answers": ["short", "a longer one"], "models": ["a", "b"], "ranks": [2, 1]}
        for at in range(20)
    ]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    database = ["--database", str(tmp_path / "feedback.db")]

    def ok(*words: str) -> Any:
        assert cli.run(["feedback", *words, *database, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    assert ok("import", str(answers), "--gold", "true")["added"] == 20
    assert ok("import", str(answers))["added"] == 0
    opened = open_database(database[1])
    Store(opened).change_study(Study(overlap=3))
    opened.close()
    assert ok("simulate", "--num-labelers", "3", "--noise", "0")["rankings"] == 60
    found = {one["name"]: one for one in ok("agreement")["measures"]}
    assert found["pairwise agreement"]["value"] == 1.0
    assert "these are 3" in found["Cohen's kappa"]["why"]
    assert cli.run(["feedback", "agreement", *database]) == 0
    assert "InstructGPT" in capsys.readouterr().out
    assert list(ok("export", "--form", "dpo", "--output", str(tmp_path / "dpo.jsonl"))["rows"].values()) == [60]
    assert cli.run(["feedback", "agreement", "--database", str(tmp_path / "no.db")]) == 2
    assert "no such feedback store" in capsys.readouterr().err
    assert cli.run(["feedback", "simulate", *database, "--prefer", "model=c"]) == 2
    assert "no answer is of 'c'. Models: a, b" in capsys.readouterr().err
    assert cli.run(["feedback", "export", "--form", "ppo", "--output", "x", *database]) == 2
    assert "form: Input should be 'rankings'" in capsys.readouterr().err
