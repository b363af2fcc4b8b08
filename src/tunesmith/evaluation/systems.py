"""The systems of a comparison, run one at a time in a process of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.config import TuneConfig
from tunesmith.config_compare import CompareConfig
from tunesmith.data.quality.findings import whole_text
from tunesmith.data.tokenize import tokenize
from tunesmith.data.view import describe_target
from tunesmith.data.windows import use_keys
from tunesmith.evaluation.baselines import find_baseline
from tunesmith.evaluation.forgetting import measure_forgetting
from tunesmith.evaluation.metrics import score
from tunesmith.evaluation.predictions import Predictions
from tunesmith.evaluation.prompted import Resources, found_passages, reading
from tunesmith.evaluation.prompting import Prompting
from tunesmith.evaluation.readings import READINGS
from tunesmith.evaluation.search import Search
from tunesmith.evaluation.tasks import ask_rows, draw_answers, predict_asked, predict_rows
from tunesmith.methods.table import find_method
from tunesmith.models.generate import Answer, Decoding
from tunesmith.models.load import Network, count_parameters, load_network, rest
from tunesmith.outcomes import System
from tunesmith.records import Conversation, Examples, LabelledText, Origin, SpanQuestion, Split, TaggedWords, Task
from tunesmith.runs.folder import FROZEN
from tunesmith.runs.run import Run
from tunesmith.runtime import choose_device, choose_precision, peak_memory, seed_everything
from tunesmith.storage import to_plain
from tunesmith.train.validate import embed
from tunesmith.tuning import tune

SAMPLES_SHOWN = 8
# Of a tuned model that answers behind passages.
WITH_RAG = "+rag"
RUN = "run"


def run_method(
    name: str, folder: Path, config: CompareConfig, parts: Split, search: Search | None = None
) -> tuple[System, Predictions]:
    """Tunes by one method, at the rate that a search has chosen where there was one, and judges on the test part."""
    started = time.monotonic()
    rate = config.learning_rates.get(name) if search is None else search.chosen
    run = tune(tune_config(config, name, folder / RUN, rate), parts, brief=True, states=states_of(folder))
    device, dtype = _where(config)
    predictions = predict_rows(run.network, parts.test, dtype, config.max_generated, config.max_new_tokens)
    system = System(
        name=name,
        kind="method",
        family=find_method(name).family,
        metrics=score(predictions, config.seed).metrics,
        trainable_parameters=run.manifest["trainable_parameters"],
        total_parameters=run.manifest["total_parameters"],
        peak_memory=max(peak_memory(device), run.manifest["peak_memory"]),
        train_seconds=run.outcome["train_seconds"],
        total_seconds=time.monotonic() - started + (0 if search is None else search.spent),
        tokens_per_second=run.outcome["tokens_per_second"],
        learning_rate=run.manifest["learning_rate"],
        curve=tuple(run.outcome["curve"]),
        samples=_samples(parts, predictions),
        folder=str(run.folder),
        stored_bytes=sum(file.stat().st_size for file in run.folder.glob("*.safetensors")),
        forgotten=_forgotten(run, config),
        search={} if search is None else search.to_mapping(),
        **_use(predictions),
    )
    return system, predictions


def states_of(folder: Path) -> Path:
    """In the comparison's own folder: methods that freeze the same share them."""
    return folder.parents[1] / FROZEN


def _use(predictions: Predictions) -> dict[str, Any]:
    """What an answer costs, each time somebody asks, and how the system was chosen."""
    read, seconds = predictions.prompt_tokens, predictions.seconds
    if not read or seconds is None:
        return {"note": predictions.note}
    return {"prompt_tokens": sum(read) / len(read), "answer_seconds": seconds / len(read), "note": predictions.note}


def run_reader(tuned: System, config: CompareConfig, parts: Split) -> tuple[System, Predictions]:
    """A tuned model, answering behind passages that it was not tuned with."""
    started = time.monotonic()
    run = Run.open(tuned.folder)
    device, dtype = _where(config)

    limits = config.max_generated, config.max_new_tokens
    prompting = reading(found_passages(parts, _documents(config)))
    predictions = predict_asked(run.network, parts.test, dtype, *limits, prompting)
    system = replace(
        tuned,
        name=tuned.name + WITH_RAG,
        metrics=score(predictions, config.seed).metrics,
        peak_memory=max(tuned.peak_memory, peak_memory(device)),
        total_seconds=tuned.total_seconds + time.monotonic() - started,
        samples=_samples(parts, predictions),
        curve=(),
        search={},
        **_use(predictions),
    )
    return system, predictions


def _forgotten(run: Run, config: CompareConfig) -> tuple[Mapping[str, Any], ...]:
    """Last, so that neither time nor memory of the base model counts as the method's."""
    if not config.forgetting:
        return ()
    return tuple(to_plain(change) for change in measure_forgetting(run, config.also_keep))


def run_baseline(name: str, folder: Path, config: CompareConfig, parts: Split) -> tuple[System, Predictions]:
    """Answers the test part without tuning."""
    started = time.monotonic()
    baseline = find_baseline(name)
    device, _ = _where(config)
    seed_everything(config.seed)
    model = _Model(config, parts)
    resources = Resources(model.embed, model.ask, config.seed, _documents(config), model.draw)
    predictions = baseline.predict(parts, resources)
    system = System(
        name=name,
        kind="baseline",
        family=baseline.family,
        metrics=score(predictions, config.seed).metrics,
        total_parameters=model.num_parameters,
        peak_memory=peak_memory(device),
        total_seconds=time.monotonic() - started,
        samples=_samples(parts, predictions),
        **_use(predictions),
    )
    return system, predictions


def tune_config(config: CompareConfig, method: str, folder: Path, learning_rate: float | None) -> TuneConfig:
    shared = {name: getattr(config, name) for name in TuneConfig.model_fields if name in CompareConfig.model_fields}
    own = {"method": method, "output": folder, "learning_rate": learning_rate}
    # What was interrupted goes on if it was asked the same thing, else it is replaced.
    return TuneConfig(**shared | own, resume=True, overwrite=True)


def _documents(config: CompareConfig) -> Path | None:
    return None if config.documents is None else Path(config.documents).expanduser()


def _where(config: CompareConfig) -> tuple[torch.device, torch.dtype]:
    device = choose_device(config.device)
    return device, choose_precision(config.precision, device)


class _Model:
    """The untuned model, loaded when a baseline asks for it."""

    def __init__(self, config: CompareConfig, parts: Split) -> None:
        self._config, self._parts = config, parts
        self._device, self._dtype = _where(config)
        self.num_parameters = 0
        self._loaded: Network | None = None

    def embed(self, texts: list[Any]):  # type: ignore[no-untyped-def]
        network = self._load(self._parts.train.task)
        given = [READINGS["regression"].row(text, (), Origin("<text>", at)) for at, text in enumerate(texts, 1)]
        asked = Examples("regression", given, (), "", "")
        return embed(network, tokenize(asked, network.tokenizer, network.max_positions), self._dtype)

    def ask(self, examples: Examples, prompting: Prompting, with_answers: bool = True) -> Predictions:
        limits = (self._config.max_generated if with_answers else 0), self._config.max_new_tokens
        return predict_asked(self._load("generation"), examples, self._dtype, *limits, prompting)

    def draw(
        self, examples: Examples, prompting: Prompting, num_answers: int, temperature: float
    ) -> tuple[list[list[Answer]], list[int]]:
        config, network = self._config, self._load("generation")
        answered = replace(examples, rows=examples.rows[: config.max_generated])
        asked = ask_rows(network, answered, config.max_new_tokens, prompting)
        decoding = Decoding(config.max_new_tokens, temperature, seed=config.seed)
        return draw_answers(network, asked, self._dtype, decoding, num_answers)

    def _load(self, task: Task) -> Network:
        if self._loaded is not None and self._loaded.task == task:
            return self._loaded
        network = load_network(self._config.model, task, self._parts.train.class_names)
        use_keys(network.tokenizer, task, self._config)
        rest(network, self._dtype, self._device)
        self.num_parameters = count_parameters(network)[1]
        self._loaded = network
        return network


def _samples(parts: Split, predictions: Predictions) -> tuple[dict[str, str], ...]:
    """The first test rows as a person would read them."""
    shown = []
    for row, output in list(zip(parts.test.rows, predictions.outputs, strict=True))[:SAMPLES_SHOWN]:
        if isinstance(row, LabelledText | TaggedWords | SpanQuestion):
            said = READINGS[parts.test.task].show(output, parts.test.class_names)
            shown.append({"input": whole_text(row), "expected": describe_target(row), "output": said})
        elif isinstance(row, Conversation) and output is not None:
            asked = row.messages[-2].content
            shown.append({"input": asked, "expected": row.messages[-1].content, "output": str(output)})
    return tuple(shown)
