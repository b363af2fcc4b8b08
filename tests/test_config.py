"""The schema: a dial sets its parts, what is given beats it, and a file and flags are read in this order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.config import MEMORY_DIALS, MEMORY_PARTS, PlanConfig, TuneConfig
from tunesmith.config_compare import CompareConfig
from tunesmith.errors import InputError
from tunesmith.methods.table import METHODS

BASE = {"model": "m", "data": "d"}


def parts(config: Any) -> dict[str, Any]:
    return {key: getattr(config, key) for key in MEMORY_PARTS}


@pytest.mark.parametrize("schema", [TuneConfig, CompareConfig])
def test_balanced_is_the_default_of_every_part(schema: type[TuneConfig]) -> None:
    """So a run begun before there was a dial had just these."""
    defaults = {key: schema.model_fields[key].default for key in MEMORY_PARTS}
    assert parts(schema.read(given=BASE)) == defaults
    assert parts(schema.read(given=BASE | {"memory": "balanced"})) == defaults


def test_the_dial_sets_what_is_not_given() -> None:
    low = {key: settings[MEMORY_DIALS.index("low")] for key, settings in MEMORY_PARTS.items()}
    assert parts(TuneConfig.read(given=BASE | {"memory": "low"})) == low
    mixed = TuneConfig.read(given=BASE | {"memory": "low", "gradient_checkpointing": "false"})
    assert parts(mixed) == low | {"gradient_checkpointing": False}
    with pytest.raises(InputError, match=r"memory: .*'tiny'"):
        TuneConfig.read(given=BASE | {"memory": "tiny"})


def test_a_dial_that_is_turned_moves_what_an_earlier_file_has(tmp_path: Path) -> None:
    """config.yaml of a run names every part; the dial beside it would have no say."""
    file = tmp_path / "config.yaml"
    file.write_text(TuneConfig.read(given=BASE).to_yaml())
    assert TuneConfig.read(file, {"memory": "low"}).gradient_checkpointing
    assert not TuneConfig.read(file, {}).gradient_checkpointing
    file.write_text("model: m\ndata: d\nmemory: low\nactivation_checkpointing: false\n")
    assert not TuneConfig.read(file, {}).gradient_checkpointing, "the file's own dial does not beat the file's own part"


def test_a_plan_is_for_every_method() -> None:
    """The schema lies below the table and cannot read it."""
    assert set(PlanConfig.model_fields["methods"].default) <= set(METHODS)
