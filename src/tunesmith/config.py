"""One typed schema per stage, the same for YAML files, command-line flags and Python keywords.

The description of a field is its only documentation: help texts and YAML comments come from it.
Names are those of Hugging Face; ALIASES maps what other tools call the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tunesmith.errors import InputError, nearest
from tunesmith.records import Task

ALIASES: dict[str, str] = {
    "model_name_or_path": "model",
    "base_model": "model",
    "dataset": "data",
    "dataset_name": "data",
    "finetuning_type": "method",
    "output_dir": "output",
    "cutoff_len": "max_length",
    "sequence_len": "max_length",
    "max_seq_length": "max_length",
    "num_epochs": "num_train_epochs",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "gradient_accumulation": "gradient_accumulation_steps",
    "lora_rank": "lora_r",
    "lora_target": "target_modules",
    "lora_target_modules": "target_modules",
    "random_seed": "seed",
    "label_smoothing": "label_smoothing_factor",
    "activation_checkpointing": "gradient_checkpointing",
    "torch_compile": "compile",
    "optimizer_in_bwd": "optimizer_in_backward",
    "kl_coef": "beta",
    "max_completion_length": "max_new_tokens",
    "response_length": "max_new_tokens",
    "reward_model_path": "reward",
}

# What `memory` sets where it is not given: one column a position of the dial, one row a part.
MEMORY_DIALS: tuple[str, ...] = ("speed", "balanced", "low")
MEMORY_PARTS: dict[str, tuple[Any, ...]] = {
    "recompute": (False, True, True),
    "gradient_checkpointing": (False, False, True),
    "optim": ("adamw", "adamw", "adamw_8bit"),
}

# On the command line: `--key true` or `--key false`, since a dial may have set it.
SWITCH = "switch"
Switch = Annotated[bool, SWITCH]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def split_list(value: object) -> object:
    """Turns `a,b`, as typed on a command line, into the list [a, b]."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def split_mapping(value: Any) -> Any:
    """Turns `a=1,b=2`, as typed on a command line, into the mapping {a: 1, b: 2}."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    for key, sign, _ in pairs:
        if not sign:
            raise ValueError(f"expected name=value pairs separated by commas, found '{key}'")
    return {key.strip(): item.strip() for key, _, item in pairs}


def split_typed(value: Any) -> Any:
    """As `split_mapping`, with values read as YAML does: 4 is a number, true a truth value."""
    pairs = split_mapping(value)
    return {key: yaml.safe_load(item) for key, item in pairs.items()} if isinstance(value, str) else pairs


Names = Annotated[tuple[str, ...], BeforeValidator(split_list)]


class Config(BaseModel):
    """Unknown keys are errors that name the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @classmethod
    def read(cls, file: Path | None = None, given: Mapping[str, Any] | None = None) -> Self:
        """The schema filled from a YAML file and, on top of it, what was given otherwise.

        Raises:
            InputError: an unknown key, or a value out of range; names the file where there is one.
        """
        earlier = {} if file is None else _rename(_read_yaml(file))
        source = "" if file is None else f"{file}: "
        now = _rename(given or {})
        if "memory" in now:  # a dial that is turned moves its parts
            earlier = {key: value for key, value in earlier.items() if key not in MEMORY_PARTS}
        renamed = earlier | now
        for key in renamed:
            if key not in cls.model_fields:
                raise InputError(f"{source}unknown key '{key}': {nearest(key, cls.model_fields)}")
        try:
            return cls(**renamed)
        except ValidationError as error:
            raise InputError(source + _explain(error)) from error

    def to_yaml(self) -> str:
        """Every key with its value and, above it, what it means."""
        lines = []
        for name, field in type(self).model_fields.items():
            value = self.model_dump(mode="json")[name]
            lines += [f"# {field.description}", yaml.safe_dump({name: value}, allow_unicode=True).rstrip()]
        return "\n".join(lines) + "\n"


def _rename(values: Mapping[str, Any]) -> dict[str, Any]:
    return {ALIASES.get(key, key): value for key, value in values.items()}


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file}: no such configuration file")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{file}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{file}: expected 'key: value' lines, found a {type(values).__name__}")
    return values


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        given = "" if problem["type"] == "missing" else f", given {problem['input']!r}"
        problems.append(f"{where}: {problem['msg']}{given}" if where else problem["msg"])
    return "; ".join(problems)


class SourceConfig(Config):
    """Where rows come from, and what they are."""

    data: str = Field(description="Data: files, a folder, a pattern in quotes, a catalogue name, or a hub name.")
    task: Task | None = Field(None, description="Task; recognised from the columns when not given.")
    columns: Annotated[dict[str, str], BeforeValidator(split_mapping)] = Field(
        default_factory=dict,
        description="Which column is what, for example text=review,label=stars; group=... and time=... for the split.",
    )
    encoding: str | None = Field(None, description="Encoding of the data files, when they are not UTF-8.")
    bad_rows: Literal["refuse", "skip"] = Field(
        "refuse",
        description="Rows that cannot be used: refuse the file, or write them to NAME.rejects.jsonl and go on.",
    )
    too_long: Literal["refuse", "cut", "skip"] = Field(
        "refuse",
        description="Conversations over max_length: refuse, cut what stands before the last answer, or leave them out.",
    )
    source_prefix: str = Field(
        "", description="Encoder-decoders: text before each source, as T5's 'summarize: '; saved with the run."
    )
    doc_stride: int = Field(
        128, ge=0, description="extractive-qa: tokens that neighbouring windows of a passage share; saved with the run."
    )
    max_answer_length: int = Field(
        30, gt=0, description="extractive-qa: longest answer that is found, in tokens; saved with the run."
    )
    eval_data: str | None = Field(None, description="A separate test file; else a part of the data is held out.")
    max_length: int | None = Field(
        None,
        gt=1,
        description="Longest row in tokens (encoder-decoders: longest source and longest target); the model's limit "
        "when not given.",
    )


class CheckConfig(SourceConfig):
    """Faults of a data set, looked for before anything is trained."""

    model: str | None = Field(None, description="Also count tokens as this model's tokenizer does.")
    label_errors: Switch = Field(True, description="Look for labels that are probably wrong; trains small classifiers.")
    fix: bool = Field(False, description="Write NAME.clean without duplicates and leaked rows, and NAME.removed.jsonl.")
    output: Path | None = Field(None, description="Also write the report as an HTML page to this file.")


class TokensConfig(SourceConfig):
    """The very tokens that would be trained."""

    model: str = Field(description="Model: a catalogue name, a folder, or a hub name.")
    rows: int = Field(3, gt=0, description="How many rows are shown.")
    first: int = Field(1, gt=0, description="The row to begin with, counted from 1.")
    ids: bool = Field(False, description="Show each token's id too.")
    output: Path | None = Field(None, description="Also write an HTML page to this file.")


class DataConfig(SourceConfig):
    """What is learned from, and how it is divided."""

    model: str = Field(description="Model: a catalogue name, a folder, or a hub name.")
    weights: Annotated[dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(split_mapping)] = Field(
        default_factory=dict,
        description="How often training rows of a file are seen, for example faq.jsonl=3,chat.jsonl=0.5; once else.",
    )
    max_train_samples: int | None = Field(None, gt=0, description="Use at most so many training rows.")
    max_validation_samples: int | None = Field(None, gt=0, description="Use at most so many validation rows.")
    max_test_samples: int | None = Field(None, gt=0, description="Use at most so many test rows.")
    check: Switch = Field(True, description="Look for faults of the data first: duplicates, leaks, damage.")
    seed: int = Field(0, ge=0, description="Seed of the split, the order of rows, new weights and dropout.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="Matrix products in bfloat16 or float32; auto takes bfloat16 where it is faster."
    )
    output: Path | None = Field(None, description="Folder for the result; runs/... when not given.")


class TrainingConfig(DataConfig):
    """How to train. Shared by `tune` and `compare`."""

    num_train_epochs: float = Field(3.0, gt=0, description="Passes over the training rows.")
    max_steps: int | None = Field(None, gt=0, description="Stop after so many optimizer steps at the latest.")
    per_device_train_batch_size: int = Field(16, gt=0, description="Rows packed into one forward pass.")
    gradient_accumulation_steps: int = Field(1, gt=0, description="Passes per optimizer step.")
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate falls after the warm-up."
    )
    warmup_ratio: Fraction = Field(0.06, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay on matrices.")
    l2_sp: float = Field(
        0.0, ge=0, description="Decay of pretrained weights towards how they began, so that less is forgotten (L2-SP)."
    )
    ewc: float = Field(
        0.0, ge=0, description="The same by how much a weight matters for what is kept; on average as l2_sp (EWC)."
    )
    kl_to_base: float = Field(
        0.0, ge=0, description="Weight of KL(base || tuned) on what is to be kept, in nats a token, added to the loss."
    )
    replay: float = Field(
        0.0, ge=0, le=10, description="Rows of keep_data among the training rows, as a share of the number of these."
    )
    keep_data: str | None = Field(
        None,
        description="Rows of the run's task to be kept; without, ewc and kl_to_base take the model's own words.",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    eval_steps: int | None = Field(None, gt=0, description="Evaluate every so many steps; else each epoch.")
    early_stopping_patience: int | None = Field(
        2, gt=0, description="Stop after so many evaluations without a better validation loss."
    )
    save_steps: int | None = Field(None, gt=0, description="Save a checkpoint every so many steps, too.")
    save_minutes: float = Field(
        10.0, gt=0, description="Save a checkpoint at least so often; each new best evaluation is saved anyway."
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="When a loss or gradient is NaN or infinite: stop before the update, or skip the step."
    )
    label_smoothing_factor: Fraction = Field(
        0.0, description="Share of each target's probability that is spread over all others; not for regression."
    )
    z_loss: float = Field(
        0.0,
        ge=0,
        description="Weight of log(sum(exp(logits)))^2, added to the loss; PaLM took 1e-4. For tasks with a softmax.",
    )
    memory: Literal["speed", "balanced", "low"] = Field(
        "balanced",
        description="low: less memory for more time, speed: more memory for less time; sets recompute, "
        "gradient_checkpointing and optim where not given.",
    )
    report_to: Names = Field((), description="Trackers that get the numbers too: tensorboard, trackio, wandb, mlflow.")
    recompute: Switch = Field(
        True, description="Attention weights, norms and gates are made again in the backward pass instead of kept."
    )
    gradient_checkpointing: Switch = Field(
        False, description="Blocks keep their inputs alone and run again in the backward pass."
    )
    compile: bool = Field(
        False,
        description="Compile what layers compute between their products; needs g++ or clang++ on a CPU.",
    )
    optim: Literal["adamw", "adamw_8bit", "galore", "muon"] = Field(
        "adamw",
        description="Optimizer; adamw_8bit keeps its states in eight bits, two bytes a weight instead of eight, galore "
        "only those of a gradient's main directions; muon makes the changes of matrices orthogonal.",
    )
    optimizer_in_backward: Switch = Field(
        False,
        description="Update each weight as soon as its gradient is known and let the gradient go, which saves memory; "
        "max_grad_norm is then of each tensor by itself, not of all together.",
    )
    galore_rank: int = Field(128, gt=0, description="galore: how many directions of a matrix.")
    weights_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Type of trained weights and their gradients; bfloat16 goes with adamw_8bit."
    )
    quantization: Literal["int8", "nf4"] | None = Field(
        None, description="lora, dora: keep the frozen matrices in eight or four bits; none when not given."
    )
    loftq: Switch = Field(False, description="With quantization, lora: begin with what the frozen matrices lose by it.")
    num_last_layers: int = Field(2, gt=0, description="last-layers: how many layers are trained.")
    num_first_layers: int = Field(2, gt=0, description="first-layers: how many layers are trained.")
    trained_parameters: Names | None = Field(
        None,
        description="chosen: patterns for the names of the parameters that are trained, for example layers.0.*,*norm*.",
    )
    bottleneck_size: int = Field(64, gt=0, description="bottleneck, houlsby, parallel: width of each adapter.")
    num_virtual_tokens: int = Field(20, gt=0, description="prompt, p-tuning: virtual tokens before each row.")
    lora_r: int = Field(16, gt=0, description="lora and its kin: rank.")
    lora_alpha: float = Field(32, gt=0, description="lora and its kin: the update is scaled by alpha / r.")
    lora_dropout: Fraction = Field(0.0, description="lora and its kin: dropout before the low-rank product.")
    target_modules: Names | None = Field(
        None, description="Adapters in linear layers: the names of these layers; all of the body when not given."
    )
    method_options: Annotated[dict[str, Any], BeforeValidator(split_typed)] = Field(
        default_factory=dict,
        description="Further keys of a method's PEFT configuration, for example loha.r=4,vera.d_initial=0.2.",
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Each block learns so much slower than the one above it; 1 for all alike."
    )
    gradual_unfreezing: float = Field(
        0.0, ge=0, description="Each block begins to learn so many epochs after the one above it; 0 for all at once."
    )

    @model_validator(mode="before")
    @classmethod
    def _set_by_memory(cls, values: dict[str, Any]) -> dict[str, Any]:
        dial = values.get("memory")
        column = MEMORY_DIALS.index(dial if dial in MEMORY_DIALS else "balanced")
        return {key: settings[column] for key, settings in MEMORY_PARTS.items()} | values

    @model_validator(mode="after")
    def _one_pass_updates(self) -> Self:
        if self.optimizer_in_backward and self.further_passes:
            raise ValueError(
                "optimizer_in_backward updates in the one backward pass of a step, and "
                f"{self.further_passes[0]} adds another"
            )
        return self

    @property
    def further_passes(self) -> list[str]:
        """Keys that give a step more than one backward pass."""
        more = {"gradient_accumulation_steps": self.gradient_accumulation_steps > 1, "kl_to_base": self.kl_to_base > 0}
        return [key for key, is_set in more.items() if is_set]


class TuneConfig(TrainingConfig):
    """One run: a model, data and a method."""

    method: str = Field("lora", description="How the weights are adjusted; see `tunesmith methods`.")
    learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate; each method has a default of its own."
    )
    overwrite: bool = Field(False, description="Replace the run in the output folder.")
    force: bool = Field(False, description="Start even when the plan says that memory will not suffice.")
    resume: bool = Field(False, description="Go on with an interrupted run in the output folder, if there is one.")
    allow_change: Names = Field(
        (), description="Inputs that may differ when a run goes on, for example data,learning_rate,torch."
    )
    extend: Path | None = Field(
        None, description="Begin where this finished run has ended, with a schedule of its own; into a new folder."
    )


class PlanConfig(TrainingConfig):
    """What trainings would need, by method. `device` may name hardware that is not here."""

    device: str = Field("auto", description="auto, cpu, cuda, mps, or a chip by name: h100, h100x8, a100, l4, t4...")
    methods: Names = Field(
        ("full", "last-layers", "bitfit", "norms", "bottleneck", "prompt", "lora", "dora", "head-only"),
        description="Methods to plan.",
    )
    learning_rate: float | None = Field(None, gt=0, description="Takes no part in a plan.")
