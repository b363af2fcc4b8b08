"""The keys of `tunesmith inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tunesmith.config import Config, split_mapping

ALONE = "none"


class InspectConfig(Config):
    """What is looked at, and what is shown of it."""

    model: str = Field(description="A run folder, or a model by catalogue name, folder or hub name.")
    text: str = Field(description="What is read; of an encoder-decoder the source.")
    beside: str | None = Field(
        None,
        description="A second model, read with the same text; of a run its own base when not given, none for none.",
    )
    answer: str = Field("", description="Words that go on after the text, whose probability is then seen.")
    chat: bool = Field(False, description="The text is a question, put as the model's chat template puts it.")
    place: int | None = Field(
        None, description="Predict after this token, counted from 0; encoders: this token. The last when not given."
    )
    count: int = Field(10, ge=1, le=100, description="Show so many words.")
    temperature: float = Field(1.0, ge=0, description="0 takes the likeliest word.")
    top_k: int = Field(0, ge=0, description="Draw from so many likeliest words; 0 for all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from the fewest words that hold this probability.")
    changes: bool = Field(False, description="Show where tuning changed the weights; takes longer than the rest.")
    texts: str | None = Field(
        None, description="A file or a catalogue name: its texts as points in two dimensions, coloured by label."
    )
    columns: Annotated[dict[str, str], BeforeValidator(split_mapping)] = Field(
        default_factory=dict, description="Which column of these is what, for example text=review,label=stars."
    )
    map: Literal["pca", "tsne"] = Field("pca", description="How texts come to two dimensions.")
    page: Path | None = Field(None, description="Write a page with all of it to this file.")
