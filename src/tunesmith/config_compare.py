"""Keys of the comparison, beside those of a training."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from tunesmith.config import Names, TrainingConfig, split_mapping

UNITS = {"s": 1, "m": 60, "h": 3600}


def read_duration(value: Any) -> Any:
    """Seconds of a duration as people write it: 90s, 20m, 1.5h."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", str(value).strip())
    if found is None:
        raise ValueError("write a duration with its unit: 90s, 20m or 1h")
    return float(found[1]) * UNITS[found[2]]


Duration = Annotated[
    float,
    Field(gt=0),
    BeforeValidator(read_duration),
    PlainSerializer(lambda seconds: f"{seconds:g}s", when_used="json"),
]


class CompareConfig(TrainingConfig):
    """Several methods and baselines on one split."""

    methods: Names = Field(
        ("full", "last-layers", "bitfit", "bottleneck", "lora", "head-only"),
        description="Methods to compare.",
    )
    baselines: Names | None = Field(None, description="Baselines to beat; all that fit the task when not given.")
    learning_rates: Annotated[dict[str, float], BeforeValidator(split_mapping)] = Field(
        default_factory=dict, description="Other peak learning rates, for example full=1e-5,lora=1e-4."
    )
    budget: Duration | None = Field(
        None,
        description="Search each method's learning rate on validation rows for so long in all, 90s, 20m or 1h; what "
        "the chosen one has trained counts on. No search when not given.",
    )
    seeds: int = Field(1, gt=0, description="Train each method with so many seeds, from seed on: how far they differ.")
    max_new_tokens: int = Field(128, gt=0, description="Longest generated answer, in tokens.")
    max_generated: int = Field(32, ge=0, description="Generation: so many test rows are answered for ROUGE-L.")
    documents: str | None = Field(None, description="Folder of .txt and .md files that rag finds answers in.")
    with_rag: bool = Field(False, description="Generation: each tuned model answers once more, behind found passages.")
    forgetting: bool = Field(False, description="Measure also what each method makes worse of what the base could do.")
    also_keep: str | None = Field(None, description="forgetting: a second data set of yours, scored before and after.")

    @model_validator(mode="after")
    def _also_keep_is_used(self) -> Self:
        if self.also_keep is not None and not self.forgetting:
            raise ValueError("also_keep names what should not be forgotten; ask for it with forgetting")
        return self

    @model_validator(mode="after")
    def _budget_is_used(self) -> Self:
        if self.budget is not None and set(self.methods) <= set(self.learning_rates):
            raise ValueError("budget is for learning rates that are searched, and learning_rates gives all of them")
        return self

    @model_validator(mode="after")
    def _learning_rates_are_used(self) -> Self:
        unused = sorted(set(self.learning_rates) - set(self.methods))
        if unused:
            raise ValueError(f"learning_rates names {unused[0]}, which is not among the methods")
        return self
