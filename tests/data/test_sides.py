"""Source and target of an encoder-decoder: what becomes of turns, of what is too long, and of the prefix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.parity.tiny import make_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tunesmith.data import tokenize as tokenizing
from tunesmith.data.ids import Encoded, Encoder, Ids, Refusal, TooLong, prompt_ids, stop_token_ids
from tunesmith.data.pack import pack
from tunesmith.data.sides import find_sides, set_start, use_prefix
from tunesmith.data.signal import prove, refuse_broken
from tunesmith.data.sources import load
from tunesmith.data.tokenize import tokenize
from tunesmith.errors import InputError
from tunesmith.models.load import load_tokenizer, resolve_model
from tunesmith.records import Conversation, Message, Origin

BEGIN, END = 1, 2


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    """Writes <s> ... </s>, and its decoder starts with </s>, as BART's does."""
    made = make_tokenizer()
    set_start(made, END)
    return made


def talk(*turns: str) -> Conversation:
    """From the last turn back: assistant, user, assistant...; one that begins with "S:" is the system's."""
    roles = [("assistant", "user")[(len(turns) - 1 - number) % 2] for number in range(len(turns))]
    messages = [
        Message("system", text.removeprefix("S:")) if text.startswith("S:") else Message(role, text)
        for role, text in zip(roles, turns, strict=True)
    ]
    return Conversation(tuple(messages), Origin("here", 1))


def encode(
    tokenizer: PreTrainedTokenizerBase, row: Conversation, longest: int = 99, how: TooLong = "refuse"
) -> Encoded:
    (made,) = Encoder(tokenizer, longest, how, {}).encode([row])
    return made


def sides(made: Encoded) -> tuple[list[int], list[int]]:
    assert isinstance(made, Ids)
    assert (np.diff(made.trained.astype(int)) >= 0).all(), "the source stands before the target"
    return made.ids[~made.trained].tolist(), made.ids[made.trained].tolist()


def test_all_turns_before_the_last_answer_are_the_source(tokenizer: PreTrainedTokenizerBase) -> None:
    row = talk("S:w5", "w6", "w7", "w8", "w9 w10")
    assert sides(encode(tokenizer, row)) == ([BEGIN, 5, 6, 7, 8, END], [BEGIN, 9, 10, END])
    assert prompt_ids(row.messages[:-1], tokenizer) == (BEGIN, 5, 6, 7, 8, END)
    assert stop_token_ids(tokenizer) == (END,)


def test_a_target_does_not_begin_with_what_the_decoder_starts_with(tokenizer: PreTrainedTokenizerBase) -> None:
    set_start(tokenizer, BEGIN)
    assert sides(encode(tokenizer, talk("w5", "w6")))[1] == [6, END]


def test_a_control_token_in_a_text_is_read_as_letters() -> None:
    """BERT's, whose decoder starts with [CLS] and closes an answer with [SEP]."""
    tokenizer = load_tokenizer(resolve_model("minilm-l6"), "minilm-l6", "classification")
    begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    set_start(tokenizer, begin)
    source, target = sides(encode(tokenizer, talk("one [SEP] two", "three [SEP] [CLS] four")))
    assert (source[0], source[-1], source.count(begin), source.count(end)) == (begin, end, 1, 1)
    assert (target[-1], target.count(begin), target.count(end)) == (end, 0, 1)
    assert tokenizer.decode(target, skip_special_tokens=True) == "three [ sep ] [ cls ] four"


def test_the_decoder_reads_the_target_one_place_late(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"source": "w5 w6", "target": "w7"}\n{"source": "w8 w9 w10", "target": "w11 w12"}\n')
    rows = tokenize(load(str(path), "generation"), tokenizer, 99)
    batch = pack(list(rows))
    assert batch.source is not None
    assert batch.source.input_ids.tolist() == [BEGIN, 8, 9, 10, END, BEGIN, 5, 6, END]
    assert batch.source.position_ids.tolist() == [*range(5), *range(4)]
    assert batch.input_ids.tolist() == [END, BEGIN, 11, 12, END, BEGIN, 7]
    assert batch.targets.tolist() == [BEGIN, 11, 12, END, BEGIN, 7, END]
    assert (batch.rows, batch.lengths, batch.source.lengths) == ((1, 0), (4, 3), (5, 4))
    assert batch.num_tokens == 16


def test_what_is_too_long(tokenizer: PreTrainedTokenizerBase) -> None:
    """A source loses its oldest exchanges and then its end; a target is never cut; each side has the limit."""
    document = talk("w5 w6 w7 w8 w9", "w10")
    assert sides(encode(tokenizer, document, 5, "cut")) == ([BEGIN, 5, 6, 7, END], [BEGIN, 10, END])
    made = encode(tokenizer, document, 5, "cut")
    assert isinstance(made, Ids)
    assert made.num_cut == 2
    chat = talk("S:w5", "w6 w6", "w7 w7", "w8", "w9")
    assert sides(encode(tokenizer, chat, 4, "cut"))[0] == [BEGIN, 5, 8, END]
    assert sides(encode(tokenizer, talk("w5 w6", "w7 w8"), 4))[0] == [BEGIN, 5, 6, END]
    refused = encode(tokenizer, document, 5)
    assert isinstance(refused, Refusal)
    assert refused.is_too_long
    assert refused.problem == "source 7 tokens"
    assert encode(tokenizer, document, 5, "skip") is None
    for how in ("refuse", "cut"):
        answer = encode(tokenizer, talk("w5", "w6 w7 w8 w9"), 5, how)  # type: ignore[arg-type]
        assert isinstance(answer, Refusal)
        assert answer.problem == "target 6 tokens"


def test_tools_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    row = talk("w5", "w6")
    made = encode(tokenizer, Conversation(row.messages, row.origin, '[{"name": "f"}]'))
    assert isinstance(made, Refusal)
    assert "tools" in made.problem


def test_the_prefix_is_saved_with_the_tokenizer(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    use_prefix(tokenizer, "w20 ")
    use_prefix(tokenizer, "")  # none given: what is there stays
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert find_sides(again) == find_sides(tokenizer)
    for one in (tokenizer, again):
        assert prompt_ids([Message("user", "w5")], one) == (BEGIN, 20, 5, END)
        assert sides(encode(one, talk("w5", "w6")))[0] == [BEGIN, 20, 5, END]


def test_a_prefix_for_a_decoder_is_refused() -> None:
    with pytest.raises(InputError, match="source_prefix"):
        use_prefix(make_tokenizer(), "w5")


def test_the_signal_is_proved(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"source": "w5 w6", "target": "w7"}\n' * 3 + '{"source": "w5", "target": "w8"}\n')
    examples = load(str(path), "generation")
    use_prefix(tokenizer, "w20 ")
    proof = prove(tokenize(examples, tokenizer, 99), examples, tokenizer)
    refuse_broken(proof)
    assert proof.num_stopped == 4
    assert "the last answer of a row is the target" in str(proof)
    assert "'w20 '" in str(proof)


def test_kept_rows_are_found_with_their_start_and_not_under_another_prefix(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tunesmith.data.tokens.KEPT_FROM", 1)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"source": "w5 w6", "target": "w7"}\n{"source": "w5", "target": "w8"}\n')
    examples = load(str(path), "generation")
    first = list(tokenize(examples, tokenizer, 99))
    with monkeypatch.context() as patch:
        patch.setattr(tokenizing, "_encode_all", lambda *_: pytest.fail("made again"))
        assert list(tokenize(examples, tokenizer, 99)) == first
    assert first[0].start == END
    use_prefix(tokenizer, "w20 ")
    assert list(tokenize(examples, tokenizer, 99)) != first


def test_workers_make_the_same(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_prefix(tokenizer, "w20 ")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"source": "w{5 + i % 90} w6", "target": "w{5 + i % 80}"}}\n' for i in range(1100)))
    examples = load(str(path), "generation")
    alone = list(tokenize(examples, tokenizer, 99))
    monkeypatch.setattr(tokenizing, "count_workers", lambda _: 2)
    assert list(tokenize(examples, tokenizer, 99)) == alone
