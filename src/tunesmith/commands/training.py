"""Commands that train, and what goes before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.commands.console import AsJson, ConfigFile, given, out, print_json, print_lines, print_run
from tunesmith.config import PlanConfig, TuneConfig
from tunesmith.config_align import AlignConfig, RewardConfig
from tunesmith.config_export import ExportConfig
from tunesmith.config_pretrain import PretrainConfig, TokenizerConfig
from tunesmith.flags import flags_of
from tunesmith.tables import fits_table, plan_table

WORDS_SHOWN = 12


@flags_of(TuneConfig)
def tune(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Tune a model on data by one method, and save the run."""
    from tunesmith.runs.place import read_config
    from tunesmith.tuning import tune as run_stage

    print_run(run_stage(read_config(config, given(settings), TuneConfig)), as_json)


@flags_of(PretrainConfig)
def pretrain(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Train a model to go on with texts, or to mend them: from scratch, or further from where it is."""
    from tunesmith.pretraining import pretrain as run_stage
    from tunesmith.runs.place import read_config

    print_run(run_stage(read_config(config, given(settings), PretrainConfig)), as_json)


@flags_of(TokenizerConfig)
def tokenizer(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Train a tokenizer on texts, or give a model tokens for their words; and measure it on other texts."""
    from tunesmith.tokenizing import make_tokenizer

    made = make_tokenizer(TokenizerConfig.read(config, given(settings)))
    if as_json:
        return print_json(made)
    out.print(fits_table(made.fits))
    words = [f"words   {len(made.words):,} added: {', '.join(made.words[:WORDS_SHOWN])}"] if made.words else []
    print_lines([*words, f"saved   {made.folder}"])


@flags_of(RewardConfig)
def reward(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Train a reward model on rankings, and say how far it agrees with them on other prompts."""
    from tunesmith.rewarding import train_reward
    from tunesmith.runs.place import read_config

    print_run(train_reward(read_config(config, given(settings), RewardConfig)), as_json)


@flags_of(AlignConfig)
def align(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Train a model to write what people prefer: from their choices, or by trial with a reward."""
    from tunesmith.aligning import align as run_stage
    from tunesmith.runs.place import read_config

    print_run(run_stage(read_config(config, given(settings), AlignConfig)), as_json)


@flags_of(PlanConfig)
def plan(*, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Predict memory, time, arithmetic and disk of a tuning, by method, before it runs."""
    from tunesmith.planning import plan as run_stage

    forecasts = run_stage(PlanConfig.read(config, given(settings)))
    if as_json:
        return print_json([forecast.to_plain() for forecast in forecasts])
    out.print(plan_table(forecasts))
    for forecast in forecasts:
        if forecast.advice:
            out.print(f"{forecast.method}: {forecast.advice}", markup=False, soft_wrap=True)
    out.print(forecasts[0].basis, markup=False, soft_wrap=True)


@flags_of(ExportConfig)
def export(*runs: Path, config: ConfigFile = None, as_json: AsJson = False, **settings: Any) -> None:
    """Make a run into a model that other programs load: merged into its base, in part, or with other runs."""
    from tunesmith.export import export as run_stage

    where = {"runs": runs} if runs else {}
    found = run_stage(ExportConfig.read(config, {**where, **given(settings)}))
    if as_json:
        return print_json(found)
    gap = [] if found.gap is None else [f"logits differ from the run's by at most {found.gap:.1e} of the largest"]
    print_lines([f"{found.form} model  {found.folder}", *gap])
