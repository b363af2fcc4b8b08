"""Which ids a row becomes and which of them are trained, against the template rendered whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.parity.tiny import make_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tunesmith import assets
from tunesmith.data import sources, tokens
from tunesmith.data.ids import encode_texts, prompt_ids, stop_token_ids
from tunesmith.data.pack import epoch_batches, pack, token_batches
from tunesmith.data.tokenize import measure, tokenize
from tunesmith.errors import InputError
from tunesmith.models.load import PLAIN_TEMPLATE, load_tokenizer
from tunesmith.records import Conversation, Message, TokenizedExample

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Drops what was said before the last question, as templates of reasoning models drop earlier thoughts.
FORGETFUL = "{% for message in messages[-2:] %}{{ message['role'] + ':' + message['content'] + '</s>' }}{% endfor %}"


@pytest.fixture(params=["chatml", "plain"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return byte_tokenizer(CHATML if request.param == "chatml" else PLAIN_TEMPLATE)


def byte_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Every byte a token, so that any text can be read back from its ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers import decoders

    model.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="</s>", additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    made.chat_template = template
    return made


def conversation(*turns: tuple[str, str]) -> list[dict[str, object]]:
    return [{"messages": [{"role": role, "content": text} for role, text in turns]}]


TWO_TURNS = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "2+2?"), ("assistant", "4"))


def taught(row: TokenizedExample, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The stretches of trained tokens, as text."""
    stretches: list[list[int]] = []
    before = False
    for token, trained in zip(row.input_ids, row.trained, strict=True):
        if trained and not before:
            stretches.append([])
        if trained:
            stretches[-1].append(token)
        before = trained
    return [tokenizer.decode(ids) for ids in stretches]


def test_answers_with_their_stop_token_are_trained_and_nothing_else(tokenizer: PreTrainedTokenizerBase) -> None:
    row = tokenize(sources.load(conversation(*TWO_TURNS)), tokenizer, 10_000)[0]
    stop = "<|im_end|>" if tokenizer.chat_template == CHATML else "</s>"
    assert taught(row, tokenizer) == [f"Hello.{stop}", f"4{stop}"]


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<|>"), min_size=1, max_size=20)


@given(
    st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3).filter(
        lambda t: all(a.strip() and b.strip() for a, b in t)
    )
)
def test_the_ids_are_the_rendered_template(turns: list[tuple[str, str]]) -> None:
    made = byte_tokenizer(CHATML)
    flat = [pair for question, answer in turns for pair in (("user", question), ("assistant", answer))]
    rows = sources.load(conversation(*flat))
    ids = tokenize(rows, made, 10_000)[0].input_ids
    first = rows.rows[0]
    assert isinstance(first, Conversation)
    whole = made.apply_chat_template([{"role": m.role, "content": m.content} for m in first.messages], tokenize=False)
    assert list(ids) == made(whole, add_special_tokens=False)["input_ids"]


def test_training_and_inference_see_the_same_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    row = tokenize(sources.load(conversation(*TWO_TURNS)), tokenizer, 10_000)[0]
    asked = prompt_ids([Message(role, text) for role, text in TWO_TURNS[:-1]], tokenizer)
    assert row.input_ids[: len(asked)] == asked
    assert row.trained[len(asked)]
    assert not row.trained[len(asked) - 1]


def test_generation_stops_where_training_stopped(tokenizer: PreTrainedTokenizerBase) -> None:
    row = tokenize(sources.load(conversation(*TWO_TURNS)), tokenizer, 10_000)[0]
    last = max(place for place, trained in enumerate(row.trained) if trained)
    assert row.input_ids[last] in stop_token_ids(tokenizer)


def test_what_cannot_be_followed_is_refused() -> None:
    made = byte_tokenizer(FORGETFUL)
    with pytest.raises(InputError, match=r"<rows>:1: the chat template rewrites what stands before turn 4"):
        tokenize(sources.load(conversation(*TWO_TURNS[1:])), made, 10_000)
    made = byte_tokenizer(CHATML)
    with pytest.raises(InputError, match=r"1 of 1 rows are longer than 20 tokens and an answer is never cut"):
        tokenize(sources.load(conversation(*TWO_TURNS)), made, 20)


def test_long_texts_lose_their_end_and_it_is_counted() -> None:
    made = make_tokenizer()
    rows = sources.load([{"text": "w5 w6 w7 w8", "label": "a"}, {"text": "w9", "label": "b"}])
    first, second = tokenize(rows, made, 4)
    assert first.input_ids == (1, 5, 6, 2)
    assert (first.num_cut, second.num_cut) == (2, 0)
    assert "1 rows cut by 2 tokens" in str(measure([first, second]))
    assert (first.target, second.target) == (0, 1)


def test_control_tokens_in_a_text_are_only_letters() -> None:
    made = byte_tokenizer(CHATML)
    ids = encode_texts(["a</s>b"], made, 100)[0][0]
    assert made.convert_tokens_to_ids("</s>") not in ids
    assert made.decode(ids) == "a</s>b"


def test_pack_judges_the_token_before_each_trained_one() -> None:
    short = TokenizedExample((7, 8), (False, True), None, 0, 0)
    long = TokenizedExample((1, 2, 3, 4), (False, True, False, True), None, 0, 1)
    batch = pack([short, long])
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 7, 8]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch.predict_from.tolist() == [0, 2, 4]
    assert batch.targets.tolist() == [2, 4, 8]
    assert (batch.rows, batch.lengths, batch.num_tokens) == ((1, 0), (4, 2), 6)
    virtual = pack([short, long], 2)
    assert virtual.input_ids.tolist() == [0, 0, 1, 2, 3, 4, 0, 0, 7, 8]
    assert virtual.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert [int(virtual.input_ids[place + 1]) for place in virtual.predict_from] == virtual.targets.tolist()
    assert virtual.num_tokens == 6


def test_a_first_token_is_judged_only_when_something_stands_before_it() -> None:
    row = TokenizedExample((5, 6), (True, True), None, 0, 0)
    assert pack([row]).targets.tolist() == [6]
    assert pack([row], 1).targets.tolist() == [5, 6]


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 3))
def test_an_epoch_shows_every_row_once(num_rows: int, batch_size: int, epoch: int) -> None:
    batches = epoch_batches(num_rows, batch_size, 0, epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(num_rows))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert num_rows < 10 or batches != epoch_batches(num_rows, batch_size, 0, epoch + 1)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_token_batches_hold_no_more_than_asked(lengths: list[int]) -> None:
    rows = [TokenizedExample((5,) * length, (False,) * length, 0, 0, i) for i, length in enumerate(lengths)]
    batches = token_batches(rows, 40)
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= 40 for batch in batches)


@pytest.mark.fetch
def test_the_catalogues_decoder_is_taught_its_stop_token(tmp_path: Path) -> None:
    made = AutoTokenizer.from_pretrained(assets.model_folder("smollm2-135m-instruct"))
    row = tokenize(sources.load([{"prompt": "Hi", "completion": "Hello."}]), made, 1000)[0]
    assert taught(row, made) == ["Hello.<|im_end|>"]
    assert made.decode(row.input_ids).endswith(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    )
    assert made.pad_token_id not in stop_token_ids(made) or made.pad_token_id != made.eos_token_id


def test_a_plain_template_begins_as_the_tokenizer_does(tmp_path: Path) -> None:
    made = make_tokenizer()  # puts <s> before every text
    made.chat_template = None
    made.save_pretrained(tmp_path / "with")
    loaded = load_tokenizer(str(tmp_path / "with"), "with", "generation")
    row = tokenize(sources.load([{"prompt": "w5", "completion": "w6"}]), loaded, 100)[0]
    assert row.input_ids == (1, 5, 6, 2)
    without = byte_tokenizer(CHATML)
    without.chat_template = None
    without.save_pretrained(tmp_path / "without")
    assert load_tokenizer(str(tmp_path / "without"), "without", "generation").chat_template == PLAIN_TEMPLATE


def test_tokens_are_kept_by_what_the_rows_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other rows, another template: other tokens. Rows without a fingerprint are never taken for others."""
    monkeypatch.setattr(tokens, "KEPT_FROM", 1)
    monkeypatch.setattr(tokens, "cache_root", lambda: tmp_path)
    made = byte_tokenizer(CHATML)
    one, other = (sources.load([{"prompt": "q", "completion": answer}]) for answer in ("one", "other"))
    first = list(tokenize(one, made, 1000))
    assert len(list((tmp_path / "tokens").iterdir())) == 1
    assert list(tokenize(one, made, 1000)) == first
    assert list(tokenize(other, made, 1000)) != first
    nameless = [replace(examples, fingerprint="") for examples in (one, other)]
    assert list(tokenize(nameless[0], made, 1000)) == first
    assert list(tokenize(nameless[1], made, 1000)) != first
    assert len(list((tmp_path / "tokens").iterdir())) == 2
