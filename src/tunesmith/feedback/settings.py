"""The keys of the feedback commands."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from tunesmith.config import Config, Names, SourceConfig, Switch
from tunesmith.feedback.forms import MOST_CANDIDATES

DATABASE = Field("feedback.db", description="The feedback store: a file, or postgresql://USER@HOST/NAME.")
SNAPSHOT = Field(None, gt=0, description="What was said up to this event; all of it when not given.")


class SampleConfig(SourceConfig):
    """Answers to be ranked, made by models."""

    database: str = DATABASE
    models: Names = Field(description="Models and runs that answer, one or several: names, folders, hub names.")
    num_answers: int = Field(
        4,
        ge=2,
        le=MOST_CANDIDATES,
        description="Answers to each prompt, of all models together; equal ones count once.",
    )
    references: Switch = Field(False, description="Mix in the answers that the data has.")
    temperature: float = Field(1.0, ge=0, description="0 takes the likeliest token each time.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from the fewest tokens that hold this probability.")
    top_k: int = Field(0, ge=0, description="Draw from so many likeliest tokens; 0 for all.")
    max_new_tokens: int = Field(256, gt=0, description="Longest answer, in tokens.")
    max_prompts: int | None = Field(None, gt=0, description="Use at most so many prompts, drawn at random.")
    seed: int = Field(0, ge=0, description="Seed of the draws.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="Matrix products in bfloat16 or float32.")

    @model_validator(mode="after")
    def _answers_can_differ(self) -> Self:
        if not self.models:
            raise ValueError("models is empty. Name one that answers")
        if self.temperature == 0 and self.num_answers > len(self.models):
            raise ValueError("at temperature 0 a model has one answer only. Raise it, or give more models")
        return self


class ImportConfig(Config):
    """Answers made elsewhere."""

    data: str = Field(description="JSONL with prompt, answers and, if known, models and ranks.")
    database: str = DATABASE
    gold: Switch = Field(False, description="Take the ranks as known to be right: gold items, to test labelers with.")


class ServeConfig(Config):
    """The page in which people rank. What is given of the study is kept in the store."""

    database: str = DATABASE
    host: str = Field("127.0.0.1", description="Address to listen at; others than this machine's want --public-url.")
    port: int = Field(8421, ge=0, le=65535, description="Port to listen at; 0 takes a free one.")
    public_url: str | None = Field(
        None, description="Where people reach the page, when that is not this machine: https://label.example.org."
    )
    title: str | None = Field(None, description="What people are asked.")
    guidelines: Path | None = Field(None, description="A text file with what makes an answer good.")
    overlap: int | None = Field(None, ge=1, le=100, description="So many people rank each item.")
    lease_minutes: float | None = Field(None, gt=0, description="An item is lent for so long since its last change.")
    ratings: bool | None = Field(None, description="Also ask for 1 to 7 of each answer: true or false.")
    questions: Names | None = Field(
        None, description="Also ask yes or no of each answer, for example 'Is it true?,Is it polite?'."
    )


class ExportConfig(Config):
    """What people said, for training."""

    database: str = DATABASE
    form: Literal["rankings", "dpo", "reward", "kto", "csv"] = Field(
        "rankings", description="rankings; pairs for DPO or for reward models; judged answers for KTO; a table."
    )
    output: Path = Field(description="The file; with a split, the folder.")
    split: Literal["none", "prompt"] = Field(
        "none", description="prompt: train, validation and test, each prompt in one of them and always in the same."
    )
    held_out_labelers: Names = Field((), description="People whose rankings go into a file of their own.")
    ties: Literal["drop", "half"] = Field(
        "drop", description="Pairs that are tied: leave them out, or write them both ways round with weight 0.5."
    )
    simulated: Switch = Field(True, description="Take simulated labelers too; their rows say so.")
    until: int | None = SNAPSHOT


class ItemsConfig(Config):
    """Items with their ids, for a reward model to score."""

    database: str = DATABASE
    output: Path = Field(description="The file, JSONL.")


class ChooseConfig(Config):
    """What is asked next."""

    database: str = DATABASE
    by: Literal["random", "uncertainty", "disagreement"] = Field(
        "uncertainty", description="Where reward models are least sure, where they contradict each other, or at random."
    )
    scores: Path | None = Field(
        None, description='Rows {"item": ID, "scores": {ANSWER: [one score a model]}}; not for random.'
    )


class AgreementConfig(Config):
    """How far people agree."""

    database: str = DATABASE
    until: int | None = SNAPSHOT
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")


class SimulateConfig(Config):
    """Labelers that do not exist, with a preference that is known: for demonstrations and tests."""

    database: str = DATABASE
    prefer: str = Field(
        "longer", description="longer, shorter, model=NAME, or word=WORD (answers that have it are better)."
    )
    num_labelers: int = Field(1, gt=0, le=1000, description="How many of them.")
    noise: float = Field(0.1, ge=0, le=1, description="Share of items that they rank at random.")
    max_items: int | None = Field(None, gt=0, description="Each ranks at most so many items.")
    seed: int = Field(0, ge=0, description="Seed of the noise.")
