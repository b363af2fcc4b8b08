"""Stage: a model that writes, and what people prefer -> a model that writes what they prefer.

Either from answers that were chosen before (DPO and its kin): rows of two answers, trained as any other task is. Or by
trial (PPO, GRPO, RLOO): the model answers prompts, and a reward judges. The run is a run of `tune` all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from tunesmith.config import TuneConfig
from tunesmith.config_align import AlignConfig, Judging
from tunesmith.data.ids import Ids, prompt_ids
from tunesmith.data.parts import load_examples, load_prompts, split_examples
from tunesmith.data.signal import Proof
from tunesmith.data.tokenize import tokenize
from tunesmith.data.tokens import TokenRows
from tunesmith.errors import InputError
from tunesmith.methods.apply import SHARE_OF_RATE, default_learning_rate, find_rates, put_under
from tunesmith.methods.method import Method
from tunesmith.models.load import Network, load_network, move
from tunesmith.records import (
    Conversation,
    Example,
    Examples,
    Judgement,
    LabelledText,
    Message,
    PlainText,
    Ranking,
    SpanQuestion,
    Split,
    TaggedWords,
)
from tunesmith.rl.loop import Trial, Trials
from tunesmith.rl.page import write_report
from tunesmith.rl.reward import open_rewards
from tunesmith.rl.rollout import Prompt
from tunesmith.rl.value import Value, open_value
from tunesmith.runs.folder import VALUE
from tunesmith.runs.run import Run
from tunesmith.runtime import choose_device, choose_precision, seed_everything
from tunesmith.train.optim import Rate
from tunesmith.train.terms import make_plan
from tunesmith.tuning import Prepared, tune

# A held-out prompt is answered at every evaluation; more than these cost more than they tell.
MOST_HELD_OUT = 64


def align(config: AlignConfig, parts: Split | None = None, quiet: bool = False) -> Run:
    """Trains and saves a run, or goes on with one that was interrupted.

    Args:
        parts: the data already divided; else read from `config.data`.

    Raises:
        InputError: the data holds no preferences, or no prompts; or as `tune`.
    """
    if parts is None:
        examples = load_prompts(config) if config.is_online else load_examples(config, config.data, config.task)
        parts = split_examples(examples, config, quiet=False)
    if config.kl_to_base or config.ewc or config.replay:
        raise InputError("kl_to_base, ewc and replay are for `tune`; align holds on to its reference by --beta")
    if config.is_online:
        return tune(config, parts, quiet, how=_prepare)
    return tune(config, _with_preferences(parts, config), quiet)


# From choices


def _with_preferences(parts: Split, config: AlignConfig) -> Split:
    """Every part as rows of two answers.

    Raises:
        InputError: the data holds no choices, or none that tells two answers apart.
    """
    wanted = ("ranking", "judgement") if config.algorithm == "kto" else ("ranking",)
    if parts.train.task not in wanted:
        raise InputError(
            f"the data is for {parts.train.task} ({parts.train.recognised}); {config.algorithm} learns from prompt, "
            "chosen and rejected, or from ranked answers"
            + (", or from judged ones" if config.algorithm == "kto" else "")
        )
    make = _judged_rows if config.algorithm == "kto" else _pairs
    train, validation, test = (_preferences(part, make) for part in (parts.train, parts.validation, parts.test))
    if not train.rows or not validation.rows:
        raise InputError("no two answers to a prompt differ in rank, so there is nothing to prefer")
    sizes = f"train {len(train.rows):,}, validation {len(validation.rows):,}, test {len(test.rows):,}"
    return Split(train, validation, test, f"{parts.note}; rows of two answers: {sizes}", parts.checked)


def _preferences(examples: Examples, make: Callable[[Sequence[Example]], Iterator[Ranking]]) -> Examples:
    fingerprint = f"{examples.fingerprint} as preferences"
    return Examples("preference", list(make(examples.rows)), (), examples.recognised, fingerprint)


def _pairs(rows: Sequence[Example]) -> Iterator[Ranking]:
    """All pairs of unequal rank, the better answer first."""
    for row in rows:
        assert isinstance(row, Ranking)
        for better, worse in combinations(range(len(row.answers)), 2):
            if row.ranks[better] < row.ranks[worse]:
                yield Ranking(row.prompt, (row.answers[better], row.answers[worse]), (1, 2), row.origin)


def _judged_rows(rows: Sequence[Example]) -> Iterator[Ranking]:
    """One answer each, good (first of its two) or bad (second); the other is an answer to another prompt, of the next
    row that has one. Of rankings the best is good and the worst is bad, and those between are neither."""
    judged = [one for row in rows for one in _verdicts(row)]
    for place, (row, answer, is_good) in enumerate(judged):
        others = (judged[(place + step) % len(judged)] for step in range(1, len(judged)))
        other = next((text for their, text, _ in others if their.prompt != row.prompt), None)
        if other is None:
            raise InputError("kto needs answers to more than one prompt")
        yield Ranking(row.prompt, (answer, other), (1, 2) if is_good else (2, 1), row.origin)


def _verdicts(row: Example) -> Iterator[tuple[Ranking | Judgement, str, bool]]:
    if isinstance(row, Judgement):
        yield row, row.answer, row.is_good
    elif isinstance(row, Ranking):
        for answer, rank in zip(row.answers, row.ranks, strict=True):
            if rank in (row.ranks[0], row.ranks[-1]) and row.ranks[0] != row.ranks[-1]:
                yield row, answer, rank == row.ranks[0]


# By trial


def _prepare(config: TuneConfig, method: Method, parts: Split, planned: bool) -> Prepared:
    """Everything up to the first step.

    Raises:
        InputError: wrong model, method or reward, or prompts that leave no room for an answer.
    """
    assert isinstance(config, AlignConfig)
    if method.attend is not None:
        raise InputError(f"{method.name} follows a fixed number of steps over rows, and trials have none. Take lora")
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    seed_everything(config.seed)
    network = load_network(config.model, "generation")
    if not network.is_decoder:
        raise InputError(f"'{config.model}' is an encoder-decoder; by trial learn decoders, such as GPT or Llama")
    held_out = replace(parts.validation, rows=parts.validation.rows[:MOST_HELD_OUT])
    prompts, lines = _encode(parts.train, network, config), _encode(held_out, network, config)
    put_under(network, method, config, dtype, partial(move, device=device))
    rate = config.learning_rate or SHARE_OF_RATE * default_learning_rate(method, network)
    value = open_value(config, network, method, device, dtype)
    rates = {**find_rates(network, method, config), **_rates_of(value, config, rate)}
    plan = replace(make_plan(config, rate, device, dtype), rates=rates)
    trial = Trial(
        network=network,
        config=config,
        plan=plan,
        prompts=prompts,
        held_out=lines,
        reward=open_rewards(config.reward, config.reward_weights, config, device),
        gold=open_rewards(config.gold_reward, (), config, device) if config.gold_reward else None,
        ptx=_read_ptx(config, network),
        value=value,
    )
    trials = Trials(trial)
    rows, held = _rows_of(prompts), _rows_of(lines)
    return Prepared(
        network,
        method,
        parts,
        rows,
        held,
        plan,
        _proof(rows, len(parts.train.rows)),
        None,
        course=trials.run,
        evaluate=trials.evaluate,
        finish=partial(_finish, value, config),
        beside=() if value is None else value.modules(),
    )


def _encode(examples: Examples, network: Network, config: AlignConfig) -> list[Prompt]:
    """Prompts as ids. One that leaves no room for an answer is refused, or left out with too_long "skip"."""
    room = network.max_positions - network.num_virtual - config.max_new_tokens
    found = []
    for index, row in enumerate(examples.rows):
        turns = turns_of(row, config)
        ids = prompt_ids(turns, network.tokenizer)
        if len(ids) <= room:
            found.append(Prompt(index, turns, ids))
        elif config.too_long != "skip":
            raise InputError(
                f"{row.origin}: the prompt has {len(ids):,} tokens, and with {config.max_new_tokens:,} of an answer "
                f"'{config.model}' takes {room:,}. Shorten it, or leave such prompts out with --too-long skip"
            )
    if not found:
        raise InputError("every prompt is too long to be answered")
    return found


def turns_of(row: Example, config: Judging) -> tuple[Message, ...]:
    """The prompt in a row: all before the last answer, or a text, cut and put into words as the configuration says."""
    if isinstance(row, Conversation):
        return row.messages[:-1]
    if isinstance(row, Ranking | Judgement):
        return row.prompt
    if isinstance(row, SpanQuestion):
        return (Message("user", f"{row.context}\n\n{row.question}"),)
    text = " ".join(row.words) if isinstance(row, TaggedWords) else _text_of(row)
    if config.opening_words is not None:
        text = " ".join(text.split()[: config.opening_words])
    return (Message("user", config.prompt_template.replace("{text}", text)),)


def _text_of(row: LabelledText | PlainText) -> str:
    return row.whole if isinstance(row, LabelledText) else row.text


def _rows_of(prompts: Sequence[Prompt]) -> TokenRows:
    """As the run's records and fingerprints take them."""
    rows = TokenRows()
    for prompt in prompts:
        rows.append(Ids(np.array(prompt.ids, dtype=np.int32), np.zeros(len(prompt.ids), dtype=bool)), prompt.row)
    return rows


def _proof(rows: TokenRows, num_examples: int) -> Proof:
    lost = num_examples - len(rows)
    return Proof(rows.signal, 0, (), 0, (), (), lost, 0.0, note="prompts, to be answered by the model")


def _read_ptx(config: AlignConfig, network: Network) -> TokenRows | tuple[()]:
    if config.ptx_data is None or not config.ptx_coef:
        return ()
    examples = load_examples(config.model_copy(update={"columns": {}}), config.ptx_data, "generation")
    return tokenize(examples, network.tokenizer, network.max_positions - network.num_virtual, config.too_long)


def _rates_of(value: Value | None, config: AlignConfig, rate: float) -> Mapping[str, Rate]:
    """How the value learns, by the names of its parameters; a network of its own learns as the method has it."""
    if value is None:
        return {}
    share, own = (config.value_learning_rate or rate) / rate, value.rates()
    each = {name: own.get(name, Rate()) for name, _ in value.trained()}
    return {name: one._replace(factor=share * one.factor) for name, one in each.items()}


def _finish(value: Value | None, config: AlignConfig, folder: Path) -> Mapping[str, Any]:
    if value is not None:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in value.trained()}, folder / VALUE)
    write_report(folder, config)
    return {"algorithm": config.algorithm, "rewards": list(config.reward)}
