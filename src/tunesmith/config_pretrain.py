"""Schemas of the stages that come before tuning: a tokenizer, and a model that has read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tunesmith.config import Fraction, Names, SourceConfig, TuneConfig, split_mapping

# What begins a model from scratch; without it one goes on from `model`.
SHAPE = ("layers", "width", "heads", "vocabulary", "tokenizer", "tokenizer_kind")
TokenizerKind = Literal["bpe", "unigram", "wordpiece"]


class PretrainConfig(TuneConfig):
    """A model that has read texts: from scratch, or further from where it is."""

    model: str = Field("", description="Model to go on from; none when it begins from scratch by `architecture`.")
    architecture: str | None = Field(
        None, description="From scratch: llama, qwen3, gpt2, bert, modernbert, t5, bart, or a config.json."
    )
    layers: int = Field(4, gt=0, description="From scratch: blocks.")
    width: int = Field(128, gt=0, description="From scratch: width of the hidden states.")
    heads: int = Field(4, gt=0, description="From scratch: attention heads.")
    vocabulary: int = Field(2048, gt=0, description="From scratch: tokens of the tokenizer that is trained first.")
    tokenizer: str | None = Field(
        None, description="From scratch: a folder or model whose tokenizer is taken, in place of one that is trained."
    )
    tokenizer_kind: TokenizerKind | None = Field(
        None, description="From scratch: bpe, unigram or wordpiece; bpe, and wordpiece for BERT, when not given."
    )
    method: str = Field("full", description="How the weights are adjusted; see `tunesmith methods`.")
    max_length: int | None = Field(
        None, gt=1, description="Tokens of a row, which is cut from the stream; 256, or the model's limit if lower."
    )
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the training texts.")
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = Field(
        "cosine", description="How the learning rate falls after the warm-up."
    )
    weight_decay: float = Field(0.1, ge=0, description="Decoupled weight decay on matrices.")
    early_stopping_patience: int | None = Field(
        None, gt=0, description="Stop after so many evaluations without a better one; never when not given."
    )
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="Train for about so long, whatever the passes: how many steps that makes is found by timing some "
        "first, and stays so when the run goes on.",
    )
    held_out: Annotated[Fraction, Field(gt=0, le=0.4)] = Field(
        0.05, description="Share of the texts for validation, and the same again for the test."
    )
    mix: Annotated[dict[str, Annotated[float, Field(gt=0, lt=1)]], BeforeValidator(split_mapping)] = Field(
        default_factory=dict,
        description="Other texts among the training rows, by their share of these, for example general.jsonl=0.3.",
    )
    also_measure: Names = Field(
        (), description="Texts that are not trained: what is forgotten of them is measured all along."
    )
    mask_share: Fraction = Field(0.15, description="Encoders: share of the tokens that are to be found again.")
    noise_share: Fraction = Field(0.3, description="Encoder-decoders: share of the tokens that are left out.")
    prompt: str = Field("", description="Decoders: what the model writes behind this is shown at each evaluation.")

    @model_validator(mode="after")
    def _begins_somewhere(self) -> Self:
        if not self.model and self.architecture is None:
            raise ValueError("give a model to go on from (model), or what to build from scratch (architecture)")
        return self


class TokenizerConfig(SourceConfig):
    """A tokenizer learned from texts, or a model's own with words of the texts added."""

    kind: TokenizerKind = Field("bpe", description="bpe (byte-level), unigram (bytes as a fallback) or wordpiece.")
    vocabulary: int = Field(8192, gt=0, description="Tokens in all, special ones included.")
    special: Names = Field((), description="Further special tokens, as those of a chat template.")
    chat_template: Path | None = Field(None, description="A file with a chat template (Jinja), saved with it.")
    beside: str | None = Field(None, description="A model whose tokenizer is measured on the same texts.")
    extend: str | None = Field(
        None, description="In place of a new tokenizer: this model, with words of the texts as tokens of their own."
    )
    num_words: int = Field(500, gt=0, description="extend: so many words at most.")
    held_out: Annotated[Fraction, Field(gt=0, le=0.4)] = Field(
        0.05, description="Share of the texts that nothing is learned from, and the tokenizers are measured on."
    )
    seed: int = Field(0, ge=0, description="Seed of the division of texts, where there are many.")
    output: Path | None = Field(None, description="Folder for the tokenizer, or the model; it must not exist.")
