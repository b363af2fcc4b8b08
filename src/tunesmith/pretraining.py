"""Stage: texts -> a model that has read them, from scratch or further from where it is.

A decoder learns each next word, an encoder masked words, an encoder-decoder to mend what was left out. The run is one
of `tune` on the task "text": the same loop, packing, methods, checkpoints and plan, on rows that are cut from a stream.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from tunesmith.assets import cache_root
from tunesmith.config import TrainingConfig, TuneConfig
from tunesmith.config_pretrain import SHAPE, PretrainConfig
from tunesmith.data.corpus import divide, read_texts
from tunesmith.data.corrupt import Marks, Masked, Noised
from tunesmith.data.ids import encode_texts
from tunesmith.data.sides import find_sides
from tunesmith.data.stream import Overlapping, Renewed, Some, Stream, Tokens, end_id, lay_out, mix
from tunesmith.data.vocabulary import train_tokenizer
from tunesmith.errors import InputError
from tunesmith.methods.method import Method
from tunesmith.models.generate import Decoding, sample
from tunesmith.models.heads import is_encoder
from tunesmith.models.load import Network, count_parameters, load_config, load_tokenizer, resolve_model
from tunesmith.models.scratch import ENCODERS, Size, make_config, write_model
from tunesmith.records import Examples, PlainText, Split
from tunesmith.runs.run import Run
from tunesmith.storage import appearing, write_json
from tunesmith.terminal import describe_seconds, say
from tunesmith.train.checkpoint import Start
from tunesmith.train.course import Watch
from tunesmith.train.loop import fit, steps_per_epoch, time_step
from tunesmith.train.plan import Forecast
from tunesmith.train.progress import Outcome
from tunesmith.train.step import Plan
from tunesmith.train.validate import validate
from tunesmith.tuning import Prepared, find_max_length, prepare, tune

LENGTH = 256  # of a row, where nobody says otherwise
BEFORE = "before.json"
LENGTH_FOUND = "length.json"
# Of the time given; steps are not all alike.
SHARE_OF_TIME = 0.97
# Tokens a parameter that spend a given arithmetic best (Hoffmann et al. 2022, arXiv 2203.15556, table 3).
TOKENS_PER_PARAMETER = 20
SHOWN_TOKENS = 48
T5_MASK = "<extra_id_0>"
# Keys of `tune` for rows with a task, which texts have not.
UNUSED = ("weights", "kl_to_base", "ewc", "replay", "keep_data", "source_prefix", "task")


def pretrain(config: PretrainConfig, quiet: bool = False) -> Run:
    """Trains and saves a run, or goes on with one that was interrupted.

    Raises:
        InputError: no texts, or as `tune`.
    """
    used = [key for key in UNUSED if getattr(config, key)]
    if used:
        raise InputError(f"{used[0]} is for `tune`; pretrain reads texts, and mixes others among them with --mix")
    _refuse_namesakes([config.data, *config.mix, *config.also_measure])
    parts = divide(read_texts(config.data, config), config)
    plain = config.model_copy(update={"columns": {}, "eval_data": None})
    others = {name: divide(read_texts(name, plain), plain) for name in (*config.mix, *config.also_measure)}
    if config.architecture is not None:
        config = config.model_copy(update={"model": str(begin_model(config, parts.train))})
    return tune(config, _with(parts, others), quiet, how=partial(_prepare, others))


def _refuse_namesakes(texts: Sequence[str]) -> None:
    """What is measured is told by the names of files."""
    seen: dict[str, str] = {}
    for name in texts:
        other = seen.setdefault(Path(name).stem, name)
        if other != name or texts.count(name) > 1:
            raise InputError(
                f"'{other}' and '{name}' have one name, so nobody could tell their numbers apart. Rename one"
            )


def _with(parts: Split, others: Mapping[str, Split]) -> Split:
    """The texts, with a fingerprint that knows what is mixed among them."""
    if not others:
        return parts
    known = " ".join([parts.train.fingerprint, *(other.train.fingerprint for other in others.values())])
    train = replace(parts.train, fingerprint=hashlib.sha256(known.encode()).hexdigest())
    return replace(parts, train=train)


# From scratch


def begin_model(config: PretrainConfig, texts: Examples) -> Path:
    """The folder, in the cache, of a model that knows nothing; made once for the same texts, sizes and seed."""
    keys = {key: getattr(config, key) for key in ("architecture", *SHAPE, "seed", "max_length")}
    if config.architecture is not None and config.architecture.endswith(".json"):
        keys["json"] = Path(config.architecture).expanduser().read_text(encoding="utf-8")
    digest = hashlib.sha256(json.dumps([keys, texts.fingerprint]).encode()).hexdigest()[:16]
    name = Path(str(config.architecture)).stem
    folder = cache_root() / "begun" / f"{name}-{config.layers}x{config.width}-{digest}"
    if not folder.is_dir():
        tokenizer = _find_tokenizer(config, texts)
        size = Size(config.layers, config.width, config.heads, max(config.max_length or LENGTH, LENGTH))
        made = make_config(str(config.architecture), size, tokenizer)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with appearing(folder) as partial_folder:
            write_model(partial_folder, made, tokenizer, config.seed)
    return folder


def _find_tokenizer(config: PretrainConfig, texts: Examples) -> Any:
    if config.tokenizer is not None:
        return load_tokenizer(resolve_model(config.tokenizer), config.tokenizer, "classification")
    kind = config.tokenizer_kind or ("wordpiece" if config.architecture in ENCODERS else "bpe")
    say(f"tokenizer  {kind}, {config.vocabulary:,} tokens, learned from the training texts")
    return train_tokenizer((row.text for row in texts.rows if isinstance(row, PlainText)), kind, config.vocabulary)


# Rows


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read: rows are made by `train_rows` and `judged_rows` of a stream. `parts` has the streams of the
    texts by name, "" for those that are trained, each as train, validation, test."""

    train_rows: Callable[[Tokens], Renewed]
    judged_rows: Callable[[Tokens], Renewed]
    parts: Mapping[str, tuple[Tokens, Tokens, Tokens]]
    has_bytes: bool

    def name(self, part: str) -> str:
        return part and Path(part).stem


def _read(config: PretrainConfig, parts: Split, others: Mapping[str, Split]) -> Reading:
    source = resolve_model(config.model)
    tokenizer = load_tokenizer(source, config.model, "text")
    length = min(LENGTH, find_max_length(config)) if config.max_length is None else find_max_length(config)
    streams = {
        name: (lay_out(one.train, tokenizer), lay_out(one.validation, tokenizer), lay_out(one.test, tokenizer))
        for name, one in {"": parts, **others}.items()
    }
    model_config = load_config(source, config.model)
    if not is_encoder(model_config) and not model_config.is_encoder_decoder:
        return Reading(
            lambda tokens: Stream(tokens, length, config.seed),
            lambda tokens: Overlapping(tokens, length),
            streams,
            True,
        )
    marks = find_marks(tokenizer, config.model)
    room = length - 1 - (marks.first is not None)

    kind, share = (Noised, config.noise_share) if model_config.is_encoder_decoder else (Masked, config.mask_share)

    def damaged(tokens: Tokens) -> Renewed:
        return kind(Stream(tokens, room, config.seed), share, marks, config.seed)

    return Reading(damaged, damaged, streams, False)


def find_marks(tokenizer: Any, name: str) -> Marks:
    """The ids that masking needs.

    Raises:
        InputError: the tokenizer has no mask.
    """
    mask = tokenizer.mask_token_id
    if mask is None and T5_MASK in tokenizer.get_vocab():
        mask = tokenizer.convert_tokens_to_ids(T5_MASK)
    if mask is None:
        raise InputError(f"'{name}': its tokenizer has no mask_token, so no word can be masked. Set one")
    ((ids, _),) = encode_texts([""], tokenizer, 8)  # what stands around a text
    first = ids[0] if len(ids) > 1 else None
    last = ids[-1] if ids else end_id(tokenizer)
    sides = find_sides(tokenizer)
    start = None if sides is None else sides.start
    return Marks(mask, first, last, frozenset(tokenizer.all_special_ids), len(tokenizer), start)


# The training


def _prepare(others: Mapping[str, Split], config: TuneConfig, method: Method, parts: Split, planned: bool) -> Prepared:
    assert isinstance(config, PretrainConfig)
    reading = _read(config, parts, others)

    def read(_: TrainingConfig, __: Split) -> tuple[Renewed, Renewed, object]:
        mixed = [(reading.train_rows(reading.parts[name][0]), share) for name, share in config.mix.items()]
        train = mix(reading.train_rows(reading.parts[""][0]), mixed)
        validation = Some.of(reading.train_rows(reading.parts[""][1]), config.max_validation_samples)
        return Some.of(train, config.max_train_samples), validation, reading.parts[""][0]

    prepared = prepare(config, method, parts, planned, read)
    forecast = prepared.forecast
    if forecast is not None and config.max_minutes is not None:
        forecast = replace(forecast, seconds=60 * config.max_minutes)
    prepared = replace(prepared, signal=_scaling(prepared, reading), forecast=forecast)
    measure_all = partial(_measure_tests, prepared, reading, config)
    return replace(
        prepared,
        course=partial(_course, prepared, reading, config, measure_all),
        finish=partial(_finish, reading, measure_all),
    )


def _scaling(prepared: Prepared, reading: Reading) -> str:
    """What is read, how much of it there is for a model of this size, and how long reading takes here."""
    return f"{reading.parts[''][0]}; {advice(prepared.forecast, prepared.network, reading.parts[''][0])}"


def advice(forecast: Forecast | None, network: Network, tokens: Tokens) -> str:
    """How many tokens a parameter there are, beside what spends arithmetic best, in words."""
    _, num_parameters = count_parameters(network)
    best = TOKENS_PER_PARAMETER * num_parameters
    text = (
        f"{len(tokens.ids) / num_parameters:.2g} tokens a parameter in a pass; about {TOKENS_PER_PARAMETER} spend a "
        f"given arithmetic best, {best:,.0f} tokens or {best / len(tokens.ids):.1f} passes"
    )
    steps = sum(forecast.parts.get(name, 0.0) for name in ("window", "update")) if forecast is not None else 0.0
    if forecast is not None and steps:
        text += f", {describe_seconds(best * steps / forecast.num_tokens)} of steps on this machine"
    return text


def _course(
    prepared: Prepared,
    reading: Reading,
    config: PretrainConfig,
    measure_all: Callable[[], Mapping[str, Any]],
    watch: Watch,
    start: Start | None,
) -> Outcome:
    before = watch.checkpoints.parent / BEFORE
    if start is None and config.architecture is None:
        prepared.network.model.eval()
        write_json(before, measure_all())
    seen = partial(_evaluate, prepared, reading, config, watch)
    rows: Any = prepared.train
    plan = prepared.plan
    if config.max_minutes is not None:
        plan = _within(config.max_minutes, prepared, watch.checkpoints.parent / LENGTH_FOUND, goes_on=start is not None)
    return fit(prepared.network, rows, plan, replace(watch, evaluate=seen), start)


def _within(minutes: float, prepared: Prepared, found: Path, goes_on: bool) -> Plan:
    """The plan with as many steps as fit into the time, evaluations included; as found before where the run goes on."""
    plan, rows = prepared.plan, cast(Any, prepared.train)
    if not (goes_on and found.is_file()):
        step = time_step(prepared.network, rows, plan)
        started = time.perf_counter()
        prepared.network.model.eval()
        validate(prepared.network, cast(Any, prepared.validation), plan.dtype)
        evaluation = time.perf_counter() - started
        every = plan.eval_steps or steps_per_epoch(len(rows), plan)
        steps = SHARE_OF_TIME * (60 * minutes - 2 * evaluation) / (step + evaluation / every)
        write_json(found, {"max_steps": max(1, int(steps)), "seconds_per_step": step})
    max_steps = json.loads(found.read_text(encoding="utf-8"))["max_steps"]
    say(f"length   {max_steps:,} steps, for {minutes:g} minutes")
    return replace(plan, max_steps=max_steps, num_epochs=max_steps / steps_per_epoch(len(rows), plan) + 1)


def _evaluate(prepared: Prepared, reading: Reading, config: PretrainConfig, watch: Watch) -> Mapping[str, float]:
    rows: Any = prepared.validation
    tokens = reading.parts[""][1]
    found = _measure(prepared.network, rows, tokens if reading.has_bytes else None, prepared.plan.dtype)
    scores = {f"validation_{key}": value for key, value in found.items()}
    for name, (_, validation, _) in reading.parts.items():
        if name:
            other = Some.of(reading.train_rows(validation), config.max_validation_samples)
            found = _measure(prepared.network, other, validation if reading.has_bytes else None, prepared.plan.dtype)
            scores |= {f"{reading.name(name)}_{key}": value for key, value in found.items()}
    if config.prompt and prepared.network.is_decoder:
        text = write_on(prepared.network, config.prompt, prepared.plan.dtype)
        watch.log.write(sample=config.prompt + text)
        if not watch.quiet:
            say(f"sample  {config.prompt}{text}")
    return scores


def _measure(network: Network, rows: Renewed, tokens: Tokens | None, dtype: torch.dtype) -> dict[str, float]:
    """Loss in nats a judged token, perplexity, and, with `tokens`, bits a byte of these texts."""
    loss = validate(network, rows, dtype).mean_loss
    found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    if tokens is not None:
        found["bits_per_byte"] = loss / math.log(2) * (len(tokens.ids) - 1) / tokens.num_bytes
    return found


def write_on(network: Network, prompt: str, dtype: torch.dtype) -> str:
    """What a decoder writes behind a text, drawn always by the same numbers."""
    end = end_id(network.tokenizer)
    ids = [end, *network.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    ((answer,),) = sample(network, [ids], Decoding(SHOWN_TOKENS, temperature=0.8, top_p=0.95), dtype)
    return answer.text


def _measure_tests(prepared: Prepared, reading: Reading, config: PretrainConfig) -> dict[str, dict[str, float]]:
    """Of the test part of all texts, by name."""
    found = {}
    for name, (_, _, test) in reading.parts.items():
        rows = Some.of(reading.judged_rows(test), config.max_test_samples)
        tokens = test if reading.has_bytes else None
        found[reading.name(name) or Path(config.data).stem] = _measure(
            prepared.network, rows, tokens, prepared.plan.dtype
        )
    return found


def _finish(reading: Reading, measure_all: Callable[[], Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
    """What the manifest has of the test parts: after the training, and before it where there was a model."""
    before, after = folder / BEFORE, measure_all()
    known = json.loads(before.read_text(encoding="utf-8")) if before.is_file() else {}
    before.unlink(missing_ok=True)
    (folder / LENGTH_FOUND).unlink(missing_ok=True)
    texts = {name: {"before": known.get(name), "after": found} for name, found in after.items()}
    train = reading.parts[""][0]
    return {"pretraining": {"texts": texts, "train_bytes": train.num_bytes, "train_tokens": len(train.ids) - 1}}
