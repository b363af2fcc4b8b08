"""The commands as Python functions, with the same names and keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith import planning
from tunesmith.aligning import align as align_stage
from tunesmith.config import PlanConfig, TrainingConfig, TuneConfig
from tunesmith.config_align import AlignConfig, RewardConfig
from tunesmith.config_compare import CompareConfig
from tunesmith.config_pretrain import PretrainConfig, TokenizerConfig
from tunesmith.data import sources
from tunesmith.data.parts import split_examples
from tunesmith.evaluation import compare as comparing
from tunesmith.evaluation import tasks
from tunesmith.evaluation.compare import Comparison
from tunesmith.evaluation.forgetting import Change, measure_forgetting
from tunesmith.outcomes import Score
from tunesmith.pretraining import pretrain as pretrain_stage
from tunesmith.rewarding import train_reward
from tunesmith.runs.adapters import Adapters
from tunesmith.runs.adapters import load_adapters as adapters_of
from tunesmith.runs.run import Run
from tunesmith.tokenizing import Made
from tunesmith.tokenizing import make_tokenizer as tokenizer_stage
from tunesmith.train.plan import Forecast
from tunesmith.tuning import tune as tune_stage


def tune(*, model: str, data: Any, method: str = "lora", quiet: bool = False, **settings: Any) -> Run:
    """Tunes a model by one method and saves the run.

    Args:
        model: a catalogue name, a folder, or a hub name.
        data: a file, a catalogue or hub name, rows (mappings), a DataFrame or a `datasets` object.
        method: see `tunesmith methods`.
        quiet: no progress bar and no announcements.
        settings: any key of `tunesmith tune`, for example num_train_epochs=1 or output="runs/mine".

    Raises:
        InputError: what was given cannot be used; says what, where, and how to mend it.
    """
    config = TuneConfig.read(given={"model": model, "data": _name(data), "method": method, **settings})
    return tune_stage(config, _parts(data, config), quiet)


def pretrain(*, data: str | Path, quiet: bool = False, **settings: Any) -> Run:
    """Trains a model on texts, from scratch (architecture="llama") or further (model=...), and saves the run.

    `run.manifest["pretraining"]["texts"]` has perplexity and bits a byte of the test parts.

    Args:
        data: text files, a folder, rows with a text, a catalogue or hub name.
        settings: any key of `tunesmith pretrain`, for example mix={"general.jsonl": 0.3}; for the rest see `tune`.
    """
    return pretrain_stage(PretrainConfig.read(given={"data": str(data), **settings}), quiet)


def tokenizer(*, data: str | Path, **settings: Any) -> Made:
    """Trains a tokenizer on texts, or gives a model (extend=...) tokens for their words; measures it on other texts.

    Args:
        settings: any key of `tunesmith tokenizer`, for example kind="unigram" or vocabulary=4096.
    """
    return tokenizer_stage(TokenizerConfig.read(given={"data": str(data), **settings}))


def reward(*, model: str, data: Any, quiet: bool = False, **settings: Any) -> Run:
    """Trains a reward model on rankings; `run.manifest["reward"]` says how far it agrees with those it has not seen.

    Args:
        data: prompt and answers, best first (ranks where some are tied), or prompt, chosen and rejected.
        settings: any key of `tunesmith reward`; for the rest see `tune`.
    """
    config = RewardConfig.read(given={"model": model, "data": _name(data), **settings})
    return train_reward(config, _parts(data, config), quiet)


def align(*, model: str, data: Any, algorithm: str = "dpo", quiet: bool = False, **settings: Any) -> Run:
    """Trains a model to write what is preferred: from choices (dpo and its kin), or by trial (ppo, grpo, rloo).

    Args:
        data: rankings, or pairs; prompts, when by trial.
        settings: any key of `tunesmith align`, for example reward="runs/reward"; for the rest see `tune`.
    """
    config = AlignConfig.read(given={"model": model, "data": _name(data), "algorithm": algorithm, **settings})
    return align_stage(config, _parts(data, config), quiet)


def compare(*, model: str, data: Any, **settings: Any) -> Comparison:
    """Compares methods and baselines on one split; see `tune` for the arguments.

    A notebook shows the result as a table; `to_pandas()` gives it as a frame, `report` is the page.
    """
    config = CompareConfig.read(given={"model": model, "data": _name(data), **settings})
    return comparing.compare(config, _parts(data, config))


def plan(*, model: str, data: Any, methods: Sequence[str] | str | None = None, **settings: Any) -> list[Forecast]:
    """What tuning would need by each method, before any of it runs: memory, time, arithmetic, disk.

    Args:
        model: as for `tune`; a folder with a configuration and a tokenizer, but no weights, will do.
        methods: names of methods; nearly all when not given.
        settings: any key of `tunesmith plan`, for example device="h100".

    `pandas.DataFrame([forecast.to_plain() for forecast in forecasts])` makes a frame of them.
    """
    chosen = {} if methods is None else {"methods": methods}
    config = PlanConfig.read(given={"model": model, "data": _name(data), **chosen, **settings})
    return planning.plan(config, _parts(data, config))


def load(run: str | Path) -> Run:
    """A finished run from its folder."""
    return Run.open(run)


def load_adapters(runs: Sequence[str | Path] | Mapping[str, str | Path]) -> Adapters:
    """Several runs of one base as one model, to be switched by name or set to work together:

        adapters = tunesmith.load_adapters(["runs/short", "runs/polite"])
        adapters.use("short", "polite")
        tunesmith.predict(adapters, ["May I build a shed?"])

    Args:
        runs: their folders, whose names they have; or names of your own with the folder of each.
    """
    return adapters_of(runs)


def predict(run: Run | Adapters | str | Path, texts: Sequence[Any], max_new_tokens: int = 256) -> list[dict[str, Any]]:
    """One mapping per text: label and probability, labels and probabilities, score, tags, or answer.

    A text is a string; a pair of strings for a run that was trained on pairs, question and passage for one that finds
    answers in passages; a list of words, or a string that is
    divided at its blanks, for token classification.
    """
    opened = Run.open(run) if isinstance(run, str | Path) else run
    return tasks.predict_texts(opened.network, texts, max_new_tokens)


def evaluate(model: Run | Adapters | str | Path, data: Any, **settings: Any) -> Score:
    """Scores a run, or a decoder as it is, on labelled rows."""
    network = tasks.open_network(str(model)) if isinstance(model, str | Path) else model.network
    return tasks.evaluate(network, data, **settings)


def forgetting(run: Run | str | Path, also_keep: Any = None) -> list[Change]:
    """What a run has forgotten of what its base model could do, by measure, each with its interval.

    Args:
        also_keep: a second data set, scored before and after.
    """
    return measure_forgetting(run if isinstance(run, Run) else Run.open(run), also_keep)


def _name(data: Any) -> str:
    """What stands in config.yaml for data that has no name."""
    return str(data) if isinstance(data, str | Path) else f"<{type(data).__name__}>"


def _parts(data: Any, config: TrainingConfig) -> Any:
    if isinstance(data, str | Path):
        return None
    return split_examples(sources.load(data, config.task, config.columns), config)
