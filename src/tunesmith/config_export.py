"""The schema of the stage that makes runs into models; what it is made of is in `config.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tunesmith.config import Config, split_list


class ExportConfig(Config):
    """Runs made into a model that other programs load."""

    runs: Annotated[tuple[Path, ...], BeforeValidator(split_list)] = Field(description="Run folders.")
    output: Path = Field(description="Folder for the model; it must not exist.")
    to: Literal["merged", "adapter"] = Field("merged", description="A whole transformers model, or the adapter alone.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Type of the merged weights; auto is that of the base model."
    )
    keep: float = Field(
        1.0, ge=0, le=2, description="Share of the tuning's change that is kept; less forgets less (WiSE-FT)."
    )
    combine: Literal["linear", "ties", "dare"] = Field("linear", description="How several runs are put together.")
    shares: Annotated[tuple[float, ...], BeforeValidator(split_list)] = Field(
        (), description="Weight of each run's change; alike when not given."
    )
    density: float = Field(0.5, gt=0, le=1, description="ties, dare: share of each change's entries that is kept.")
    seed: int = Field(0, ge=0, description="dare: seed of what is dropped.")

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.shares and len(self.shares) != len(self.runs):
            raise ValueError(f"shares gives {len(self.shares)} numbers for {len(self.runs)} runs")
        return self
