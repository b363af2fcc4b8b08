"""The schemas of the stages that learn from human feedback: a reward model, and a model that people prefer.

Numbers are named as TRL names them, and ALIASES has what others call the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from tunesmith.config import Names, SourceConfig, Switch, TuneConfig, split_list

Offline = Literal["dpo", "robust-dpo", "ipo", "kto", "orpo", "simpo"]
Online = Literal["ppo", "grpo", "rloo", "online-dpo"]
Algorithm = Literal[Offline, Online]
OFFLINE: tuple[Offline, ...] = get_args(Offline)

# What `beta` is where it is not given. TRL's, and the papers'; PPO's is InstructGPT's order of size for short answers.
BETAS: Mapping[Algorithm, float] = {
    **dict.fromkeys(OFFLINE, 0.1),
    "simpo": 2.0,
    "ppo": 0.05,
    "grpo": 0.0,
    "rloo": 0.05,
    "online-dpo": 0.1,
}


class RewardConfig(TuneConfig):
    """A reward model: which of several answers people would prefer."""

    num_train_epochs: float = Field(
        1.0, gt=0, description="Passes over the prompts; more than one soon learns by heart."
    )
    per_device_train_batch_size: int = Field(
        8, gt=0, description="Prompts, with all their answers, in one forward pass."
    )
    ties: Literal["drop", "half"] = Field(
        "drop", description="Answers of equal rank: no pair, as InstructGPT has it, or half a win for each."
    )
    held_out_labelers: Names = Field(
        (),
        description="People whose rankings are not trained, by name, or how many of them, drawn by the seed; the "
        "report says how far the model agrees with them, too.",
    )
    ranking_loss: Literal["pairs", "plackett-luce"] = Field(
        "pairs",
        description="Mean over the pairs of a ranking (InstructGPT), or the likelihood of its whole order "
        "(Plackett-Luce), which of rankings that tell the best answer alone is a softmax.",
    )
    center_rewards_coefficient: float = Field(
        0.0,
        ge=0,
        description="Weight of (reward + reward)^2 of each pair, which keeps rewards about 0; TRL advises 0.01.",
    )
    margin: float = Field(
        0.0,
        ge=0,
        description="By how much the better answer's reward is to be ahead for each rank that lies between the two; "
        "strengths of preference are ranks with gaps: 1 and 5 for far better (Llama 2).",
    )

    @model_validator(mode="after")
    def _loss_has_its_options(self) -> Self:
        of_pairs = (self.ties == "half", self.center_rewards_coefficient, self.label_smoothing_factor, self.margin)
        if self.ranking_loss == "plackett-luce" and any(of_pairs):
            raise ValueError(
                "ranking_loss plackett-luce has no pairs; ties half, center_rewards_coefficient, margin and "
                "label_smoothing_factor are for pairs"
            )
        return self


class AlignConfig(TuneConfig):
    """A model that writes what people, or a reward, prefer."""

    algorithm: Algorithm = Field(
        "dpo",
        description="From pairs, rankings or judgements: dpo, robust-dpo, ipo, kto, orpo, simpo. By trial, with a "
        "reward: ppo, grpo, rloo, online-dpo.",
    )
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the rows or prompts.")
    per_device_train_batch_size: int = Field(8, gt=0, description="Pairs, or prompts with their answers, in one pass.")
    early_stopping_patience: int | None = Field(
        None, gt=0, description="Stop after so many evaluations without a better one; never when not given."
    )
    beta: float | None = Field(
        None, ge=0, description="How strongly the model is held to how it began, a nat of difference costing so much."
    )
    margin: float = Field(0.5, ge=0, description="simpo: by how much the better answer is to be ahead (gamma).")
    noise: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="dpo, robust-dpo: share of preferences taken to be the wrong way round."
    )
    sft_weight: float = Field(0.0, ge=0, description="dpo and its kin: weight of the better answer's own likelihood.")
    desirable_weight: float = Field(1.0, gt=0, description="kto: weight of good answers.")
    undesirable_weight: float = Field(1.0, gt=0, description="kto: weight of bad answers.")
    reward: Names = Field(
        (),
        description="By trial: runs of `tunesmith reward`, other runs or models that judge texts, or module:function. "
        "Several are added.",
    )
    reward_weights: Annotated[tuple[float, ...], BeforeValidator(split_list)] = Field(
        (), description="What each reward counts; 1 when not given."
    )
    reward_label: str | None = Field(
        None, description="A classifier's reward is the log-odds of this label; its last one when not given."
    )
    reward_reads: Literal["answer", "both"] = Field(
        "answer", description="What models for single texts judge: the answer, or prompt and answer as one text."
    )
    gold_reward: Names = Field((), description="Judges at each evaluation, and nothing is trained by it.")
    prompt_template: str = Field("{text}", description="By trial, of texts without turns: how a text becomes a prompt.")
    opening_words: int | None = Field(None, gt=0, description="By trial: take only so many words of a text.")
    prompts_per_step: int = Field(8, gt=0, description="By trial: prompts answered before each update.")
    num_generations: int = Field(4, gt=0, description="By trial: answers to each prompt.")
    max_new_tokens: int = Field(48, gt=0, description="By trial: longest answer in tokens.")
    temperature: float = Field(1.0, gt=0, description="By trial: of the draws, and of all probabilities.")
    num_ppo_epochs: int = Field(1, gt=0, description="By trial: passes over the answers of a step. PPO took 4, or 1.")
    num_mini_batches: int = Field(1, gt=0, description="By trial: updates in each of these passes.")
    cliprange: float = Field(0.2, gt=0, description="By trial: the policy's ratio is clipped at 1 - this and 1 + this.")
    cliprange_high: float | None = Field(
        None, gt=0, description="The same above 1 (DAPO: 0.28); cliprange when not given."
    )
    cliprange_dual: float | None = Field(
        None,
        gt=1,
        description="By trial: a ratio above this no longer counts against answers worse than usual (dual clip; 3 in "
        "the paper); inf: no limit.",
    )
    cliprange_reward: float | None = Field(
        None, gt=0, description="By trial: rewards are cut to minus this and plus this; inf: no limit."
    )
    cliprange_value: float | None = Field(
        0.2, gt=0, description="ppo: how far a value may move at once; inf: no limit."
    )
    value: Literal["head", "reward"] = Field(
        "head",
        description="ppo: what says how much an answer is worth so far: a layer on the policy's states, or a network "
        "of its own that begins as the reward model, by the same method (InstructGPT).",
    )
    value_learning_rate: float | None = Field(
        None, gt=0, description="ppo: of the value; the policy's own when not given."
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="By trial: judged and kept is a running mean of the policy's weights, which forgets by this factor "
        "at each update (InstructGPT: 0.992, of some thousand updates); the weights themselves when not given.",
    )
    vf_coef: float = Field(0.1, ge=0, description="ppo: weight of the value's loss.")
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="ppo: discount of a later token's reward.")
    lam: Annotated[float, Field(ge=0, le=1)] = Field(0.95, description="ppo: lambda of generalised advantages.")
    whiten_rewards: Switch = Field(False, description="ppo: rewards of a step divided by their deviation.")
    target_kl: float | None = Field(
        None, gt=0, description="ppo, rloo: beta is steered towards this divergence of an answer; fixed when not given."
    )
    kl_horizon: float = Field(10_000, gt=0, description="With target_kl: answers in which beta can grow by e fifths.")
    max_kl: float | None = Field(
        None, gt=0, description="By trial: stop when an answer's divergence exceeds this; the best evaluation is kept."
    )
    missing_eos_penalty: float | None = Field(
        None, ge=0, description="By trial: taken from the reward of answers that were cut off."
    )
    scale_rewards: Literal["group", "none"] = Field(
        "group", description="grpo: divide by the deviation of a prompt's rewards, or not (Dr. GRPO)."
    )
    loss_type: Literal["sequence", "token", "constant"] | None = Field(
        None,
        description="By trial: the mean over an answer's tokens and then over answers (GRPO), over all tokens (DAPO), "
        "or their sum by max_new_tokens (Dr. GRPO). Not given it is sequence for rloo and online-dpo, token for the "
        "others; online-dpo takes no other.",
    )
    ptx_data: str | None = Field(
        None, description="By trial: texts or conversations that must not be forgotten (PPO-ptx)."
    )
    ptx_coef: float = Field(
        0.0, ge=0, description="Weight of their mean loss; InstructGPT took 27.8 with its own scales."
    )

    @model_validator(mode="after")
    def _algorithm_is_served(self) -> Self:
        if self.is_online and not self.reward:
            raise ValueError(
                f"algorithm {self.algorithm} learns by trial and needs a reward: a run, a model, module:function"
            )
        if not self.is_online and self.reward:
            raise ValueError(f"algorithm {self.algorithm} learns from given answers and takes no reward")
        if self.is_online and self.optimizer_in_backward:
            raise ValueError(f"algorithm {self.algorithm} updates after all passes of a step, not in the backward pass")
        if self.reward_weights and len(self.reward_weights) != len(self.reward):
            raise ValueError(f"reward_weights gives {len(self.reward_weights)} numbers for {len(self.reward)} rewards")
        if self.algorithm == "online-dpo" and self.aggregation != "sequence":
            raise ValueError(f"loss_type {self.loss_type} weighs tokens; online-dpo has pairs, and takes none")
        if self.algorithm in ("grpo", "rloo", "online-dpo") and self.num_generations < 2:
            raise ValueError(
                f"{self.algorithm} sets the answers to a prompt against each other: num_generations 2 or more"
            )
        if self.ptx_coef and self.ptx_data is None:
            raise ValueError("ptx_coef weighs the loss on ptx_data, which is not given")
        return self

    @property
    def is_online(self) -> bool:
        """Whether answers are made while training."""
        return self.algorithm not in OFFLINE

    @property
    def aggregation(self) -> Literal["sequence", "token", "constant"]:
        """`loss_type`, or what the algorithm has for it."""
        return self.loss_type or ("sequence" if self.algorithm in ("rloo", "online-dpo") else "token")

    @property
    def strength(self) -> float:
        """`beta`, or what the algorithm has for it."""
        return BETAS[self.algorithm] if self.beta is None else self.beta


class JudgeConfig(SourceConfig):
    """Two models that write, set against each other."""

    model: str = Field(description="The one: a run, or a model by catalogue name, folder or hub name.")
    against: str = Field(description="The other one.")
    reward: Names = Field(description="What judges: as for `align`.")
    reward_label: str | None = Field(None, description="A classifier's label that is wanted; its last one else.")
    reward_reads: Literal["answer", "both"] = Field("answer", description="What models for single texts judge.")
    prompt_template: str = Field("{text}", description="Of texts without turns: how a text becomes a prompt.")
    opening_words: int | None = Field(None, gt=0, description="Take only so many words of a text.")
    max_prompts: int = Field(200, gt=1, description="At most so many prompts.")
    max_new_tokens: int = Field(48, gt=0, description="Longest answer in tokens.")
    temperature: float = Field(1.0, ge=0, description="Of the draws; 0 takes the likeliest token each time.")
    seed: int = Field(0, ge=0, description="Seed of the draws, and of which prompts are taken.")


# What says how prompts are made of rows, and how models for single texts judge.
Judging = AlignConfig | JudgeConfig
