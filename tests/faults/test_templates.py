"""Chat templates that attack or never end are refused; real ones pass, and the meter changes nothing in them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from tests.faults.templates import INNOCENT, LARGE, TEMPLATES
from tests.faults.zoo import edit, refusal, save_clean
from tests.parity.tiny import make_tokenizer

from tunesmith import assets
from tunesmith.models import sandbox, template
from tunesmith.models.load import PLAIN_TEMPLATE, load_network, load_tokenizer
from tunesmith.models.template import check_template


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_hostile_template_is_refused(name: str) -> None:
    text, words = TEMPLATES[name]
    said = refusal(check_template, text, "given/model")
    assert words in said
    assert said.startswith("given/model: the chat template ")


@pytest.mark.parametrize("name", LARGE)
def test_what_is_large_is_never_made(name: str) -> None:
    template._find_fault.cache_clear()
    tracemalloc.start()
    try:
        refusal(check_template, TEMPLATES[name][0], "given")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", INNOCENT)
def test_an_innocent_template_passes(name: str) -> None:
    check_template(INNOCENT[name], "given")


def test_the_templates_in_use_pass() -> None:
    check_template(None, "given")
    check_template(PLAIN_TEMPLATE, "given")
    for model in assets.MODELS:
        if (path := assets.cache_root() / model / "chat_template.jinja").is_file():
            check_template(path.read_text(encoding="utf-8"), model)


@pytest.mark.parametrize("name", [*INNOCENT, "plain"])
def test_the_meter_changes_nothing(name: str) -> None:
    """What is rendered under it is what transformers renders, errors included."""
    text = INNOCENT.get(name, PLAIN_TEMPLATE)
    meter = sandbox.Meter()
    guard = sandbox.Guard(meter)
    tree = sandbox.Metering().visit(guard.parse(text))
    tree.set_environment(guard)
    metered = guard.template_class.from_code(guard, guard.compile(tree), guard.make_globals(None))
    tokenizer = make_tokenizer()
    for probe in template._probes():
        turns, prompt = probe["messages"], probe["add_generation_prompt"]
        probe |= {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        meter.refill()
        ours = rendered(metered.render, probe)
        theirs = rendered(
            tokenizer.apply_chat_template, turns, chat_template=text, tokenize=False, add_generation_prompt=prompt
        )
        assert ours == theirs


def rendered(render: Any, *arguments: Any, **keywords: Any) -> str:
    try:
        return str(render(*arguments, **keywords))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json", "additional_chat_templates"])
def test_a_template_is_found_wherever_it_lies(place: str, tmp_path: Path) -> None:
    folder = save_clean(tmp_path / "model")
    attack = TEMPLATES["nested loops"][0]
    if place == "tokenizer_config.json":
        edit(
            folder / place, chat_template=[{"name": "default", "template": "x"}, {"name": "tools", "template": attack}]
        )
    else:
        (folder / "chat_template.jinja").write_text(attack if place.endswith("jinja") else "x")
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tools.jinja").write_text("y" if place.endswith("jinja") else attack)
    for reader in (load_tokenizer, load_network):
        arguments = (str(folder), "generation") if reader is load_network else (str(folder), "given", "generation")
        said = refusal(reader, *arguments)
        assert "steps" in said
        assert ("'tools'" in said) == (place != "chat_template.jinja")
