"""What is trained, for any text: the properties that peers lose, and planted faults that show the tests can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.data.test_tokenize import CHATML, byte_tokenizer, conversation, taught
from transformers import PreTrainedTokenizerBase

from tunesmith.data import ids, sources, tokenize
from tunesmith.data.pack import pack
from tunesmith.data.signal import prove, refuse_broken
from tunesmith.errors import InputError
from tunesmith.records import Conversation, Message

# Control tokens, parts of them, line ends, letters of several bytes: what a user may write.
PARTS = st.sampled_from(
    [
        "\U00100000",
        "\U0010fffd",
        "<|im_end|>",
        "<|im_start|>",
        "</s>",
        "<|im_",
        "end|>",
        "user",
        "\n",
        " ",
        "é",
        "🙂",
        "a",
        "<",
        "|",
    ]
)
TEXT = st.lists(PARTS, min_size=1, max_size=8).map("".join).filter(str.strip)
# Without making failures small: that takes minutes where faults are planted.
SOME = settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
TURNS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)
# Gemma's way: no system role, an error when there is one. And one that drops it without a word.
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
DROPS_SYSTEM = CHATML.replace(
    "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
)
DROPS_TOOLS = CHATML.replace(
    "{% for message in messages %}", "{% for message in messages if message['role'] != 'tool' %}"
)


def flat(turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [pair for asked, answered in turns for pair in (("user", asked), ("assistant", answered))]


def encoded(
    turns: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, limit: int = 10_000, how: Any = "refuse"
) -> Any:
    return tokenize.tokenize(sources.load(conversation(*turns)), tokenizer, limit, how)


def chatml() -> PreTrainedTokenizerBase:
    made = byte_tokenizer(CHATML)
    made.pad_token = made.eos_token  # as of most decoders: what is padding must never decide what is trained
    return made


@SOME
@given(TURNS)
def test_user_text_never_becomes_control_tokens(turns: list[tuple[str, str]]) -> None:
    made = chatml()
    row = encoded(flat(turns), made)[0]
    controls = {made.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>", "</s>")}
    assert sum(token in controls for token in row.input_ids) == 4 * len(turns), "two for each turn, from the template"
    assert made.decode(row.input_ids) == made.apply_chat_template(
        [{"role": role, "content": text} for role, text in flat(turns)], tokenize=False
    )


@SOME
@given(TURNS)
def test_every_answer_and_its_stop_token_is_trained_once(turns: list[tuple[str, str]]) -> None:
    made = chatml()
    row = encoded(flat(turns), made)[0]
    assert taught(row, made) == [f"{answer}<|im_end|>" for _, answer in turns]
    stops = [
        place
        for place, token in enumerate(row.input_ids)
        if row.trained[place] and made.decode([token]) == "<|im_end|>"
    ]
    assert len(stops) == len(turns)


@SOME
@given(TURNS)
def test_training_and_inference_render_the_same_ids(turns: list[tuple[str, str]]) -> None:
    made = chatml()
    row = encoded(flat(turns), made)[0]
    messages = [Message(role, text) for role, text in flat(turns)]
    for place in range(1, len(messages), 2):
        asked = ids.prompt_ids(messages[:place], made)
        assert row.input_ids[: len(asked)] == asked
        assert row.trained[len(asked)]


@SOME
@given(st.lists(st.tuples(TEXT, TEXT), min_size=2, max_size=5))
def test_no_label_crosses_a_segment(turns: list[tuple[str, str]]) -> None:
    """Each row packed by itself judges the same tokens as packed with others."""
    made = chatml()
    rows = tokenize.tokenize(sources.load([conversation(*flat([pair]))[0] for pair in turns]), made, 10_000)
    together = pack(list(rows))
    alone = [pack([row]) for row in (rows[index] for index in together.rows)]
    assert together.targets.tolist() == [token for one in alone for token in one.targets.tolist()]
    starts = [sum(together.lengths[:at]) for at in range(len(together.lengths))]
    for place in together.predict_from.tolist():
        assert place + 1 not in starts, "the token that is judged is of the row that it is judged from"


@SOME
@given(TURNS, st.integers(10, 120))
def test_cutting_keeps_the_answer_or_refuses(turns: list[tuple[str, str]], limit: int) -> None:
    made = chatml()
    whole = encoded(flat(turns), made)[0]
    try:
        row = encoded(flat(turns), made, limit, "cut")[0]
    except InputError:
        return  # what stands outside of the question is longer than the limit
    assert len(row.input_ids) <= limit
    assert taught(row, made)[-1:] == [f"{turns[-1][1]}<|im_end|>"]
    kept = taught(row, made)
    assert kept == taught(whole, made)[-len(kept) :], "answers are kept whole or left out"
    assert row.num_cut == len(whole.input_ids) - len(row.input_ids)


# The same properties with the fault that they are there for


def _marks_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "mark_controls", lambda dialogue, controls: dialogue)


def _stop_masked_as_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ids.encode_pieces

    def masked(rows: Any, tokenizer: Any, words: Any = None) -> Any:
        made = original(rows, tokenizer, words)
        stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
        return [replace(row, trained=row.trained & (row.ids != stop)) for row in made]

    monkeypatch.setattr(ids, "encode_pieces", masked)


def _everything_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ids.encode_pieces
    monkeypatch.setattr(
        ids,
        "encode_pieces",
        lambda *given: [replace(row, trained=row.trained | True) for row in original(*given)],
    )


def _prompt_without_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(messages: Any, tokenizer: Any) -> Any:
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    monkeypatch.setattr(ids, "prompt_ids", without)


def _cut_from_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def shorten(self: Any, row: Any, ids: Any) -> Any:
        limit = self._max_length
        return replace(ids, ids=ids.ids[:limit], trained=ids.trained[:limit], num_cut=len(ids.ids) - limit)

    monkeypatch.setattr(ids.Encoder, "_shorten", shorten)


@pytest.mark.parametrize(
    ("plant", "prop"),
    [
        (_marks_ignored, test_user_text_never_becomes_control_tokens),
        (_stop_masked_as_padding, test_every_answer_and_its_stop_token_is_trained_once),
        (_everything_trained, test_every_answer_and_its_stop_token_is_trained_once),
        (_prompt_without_opening, test_training_and_inference_render_the_same_ids),
        (_cut_from_the_end, test_cutting_keeps_the_answer_or_refuses),
    ],
)
def test_a_planted_fault_is_seen(
    plant: Callable[[pytest.MonkeyPatch], None], prop: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, BaseExceptionGroup)):  # hypothesis groups failures that differ
        prop()


# What a template may do to a conversation

SYSTEM_TURNS = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello.")]


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, DROPS_SYSTEM])
def test_without_a_system_role_its_text_opens_the_question(template: str) -> None:
    made = byte_tokenizer(template)
    rows = encoded(SYSTEM_TURNS, made)
    assert "user\nBe brief.\n\nHi<|im_end|>" in made.decode(rows[0].input_ids)
    asked = ids.prompt_ids([Message(role, text) for role, text in SYSTEM_TURNS[:2]], made)
    assert rows[0].input_ids[: len(asked)] == asked
    proof = prove(rows, sources.load(conversation(*SYSTEM_TURNS)), made)
    assert "no system role" in str(proof)


def test_a_template_that_drops_a_turn_is_refused() -> None:
    turns = [("user", "Hi"), ("assistant", "Let me see."), ("tool", "42 degrees"), ("assistant", "Warm.")]
    made = byte_tokenizer(DROPS_TOOLS)
    with pytest.raises(InputError, match=r"<rows>:1: the chat template leaves out the tool's text '42 degrees'"):
        encoded(turns, made)
    whole = encoded(turns, byte_tokenizer(CHATML))[0]
    assert taught(whole, made) == ["Let me see.<|im_end|>", "Warm.<|im_end|>"]


def test_tools_reach_the_template() -> None:
    template = "{{ tools | tojson if tools else '' }}" + CHATML.replace(
        "message['content'] +", "message['content'] + (message.tool_calls | tojson if message.tool_calls else '') +"
    )
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
    row = {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "blue"},
            {"role": "assistant", "content": "Fine."},
        ],
        "tools": [{"type": "function", "function": {"name": "look"}}],
    }
    examples = sources.load([row])
    made = byte_tokenizer(template)
    tokenized = tokenize.tokenize(examples, made, 10_000)[0]
    first, last = taught(tokenized, made)
    assert '"at": "sky"' in first
    assert last == "Fine.<|im_end|>"
    assert made.decode(tokenized.input_ids).startswith('[{"type": "function"')
    assert isinstance(examples.rows[0], Conversation)


# Signals that are refused


def test_a_broken_signal_is_refused() -> None:
    twice = byte_tokenizer("{{ bos_token + bos_token }}" + CHATML)
    twice.bos_token = "<|im_start|>"
    examples = sources.load(conversation(("user", "Hi"), ("assistant", "Hello.")))
    with pytest.raises(InputError, match=r"beginning-of-text token twice: <rows>:1"):
        refuse_broken(prove(tokenize.tokenize(examples, twice, 1_000), examples, twice))
    endless = byte_tokenizer("{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}")
    endless.eos_token = None
    with pytest.raises(InputError, match="the stop token is trained in 0 of 1 rows"):
        refuse_broken(prove(tokenize.tokenize(examples, endless, 1_000), examples, endless))


def test_too_long_rows_are_left_out_when_asked_and_the_others_keep_their_names() -> None:
    made = chatml()
    short, long = ("user", "q"), ("user", "q" * 500)
    data = [conversation(turn, ("assistant", "a"))[0] for turn in (short, long, short)]
    rows = tokenize.tokenize(sources.load(data), made, 100, "skip")
    assert [row.row for row in rows] == [0, 1]
    assert list(rows.examples) == [0, 2]
    proof = prove(rows, sources.load(data), made)
    assert proof.num_left_out == 1
    assert "1 rows too long, left out" in str(proof)
