"""Learning by trial, step by step: prompts are answered, the answers judged, the policy updated.

One network plays all parts: as it is it is the policy, with its trained parameters as they began the reference, and its
last states feed the value. Nothing is dropped out. Draws depend on the seed, the step and the answer's number alone, so
that a run that goes on from a checkpoint is the run.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tunesmith.config_align import AlignConfig
from tunesmith.data.pack import epoch_batches, pack
from tunesmith.models.embedding import clear_gradients
from tunesmith.models.generate import Decoding
from tunesmith.models.load import Network
from tunesmith.records import TokenizedExample
from tunesmith.rl.advantage import Controller
from tunesmith.rl.alarms import find_alarms
from tunesmith.rl.algorithms import TEACHERS, Judged, Lesson, losses_N
from tunesmith.rl.average import Average
from tunesmith.rl.losses import weights_N
from tunesmith.rl.measures import Update, measure, summarise
from tunesmith.rl.reward import Scorer
from tunesmith.rl.rollout import Prompt, Reference, Rollout, Said, Speaker, roll_out, texts_of
from tunesmith.rl.value import Value
from tunesmith.runtime import Trimmer, autocast
from tunesmith.signals import shielded
from tunesmith.terminal import say
from tunesmith.train.checkpoint import Start, State, find_checkpoint, load_optimizer
from tunesmith.train.course import Course, Watch
from tunesmith.train.loop import optimizer_for, set_learning_rate, trainable
from tunesmith.train.objective import judged_losses
from tunesmith.train.progress import Outcome
from tunesmith.train.step import NonFiniteError, Plan, Step

# As TensorFlow's Adam had it, in which the recipes were found; torch's own 1e-8 makes larger first steps.
ADAM_EPS = 1e-5
# Seeds of steps follow each other; those of two runs should not.
SEED_STRIDE = 1_000_003
NUM_SHOWN = 4
# In a training, where its plan does not say.
NUM_EVALUATIONS = 10


@dataclass(frozen=True)
class Trial:
    """All that learning by trial needs. `ptx` are rows that must not be forgotten."""

    network: Network
    config: AlignConfig
    plan: Plan
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]
    reward: Scorer
    gold: Scorer | None = None
    ptx: Sequence[TokenizedExample] = ()
    value: Value | None = None


def count_steps(trial: Trial) -> tuple[int, int]:
    """Steps in all, and in an epoch."""
    each = math.ceil(len(trial.prompts) / trial.config.prompts_per_step)
    steps = math.ceil(each * trial.plan.num_epochs)
    return min(steps, trial.plan.max_steps or steps), each


class Trials:
    """One training by trial; everything that must outlive an interruption is in `state`."""

    def __init__(self, trial: Trial) -> None:
        network, plan = trial.network, trial.plan
        policy = trainable(network)
        named = [*policy, *([] if trial.value is None else trial.value.trained())]
        self._all = nn.ModuleList([network.model, *([] if trial.value is None else trial.value.modules())])
        self._trial, self._plan, self._config = trial, plan, trial.config
        self._reference = Reference(policy)
        optimizer = optimizer_for(network, named, plan)
        for group in optimizer.param_groups:
            group["eps"] = ADAM_EPS
        self.state = State(named, optimizer, plan.device)
        self._average = None if trial.config.ema is None else Average(policy, optimizer, trial.config.ema)
        self._speaker = Speaker(network, trial.config.temperature, plan.dtype, trial.value)
        self._reference_speaker = Speaker(network, trial.config.temperature, plan.dtype)
        self._controller = Controller(trial.config.target_kl, trial.config.kl_horizon)
        self._num_steps, self._per_epoch = count_steps(trial)
        self._first: dict[str, float] = {}
        self._told: set[str] = set()
        self._trimmer = Trimmer()

    def run(self, watch: Watch, start: Start | None) -> Outcome:
        """As `fit`."""
        self._watch = watch
        length = (self._num_steps, max(1, self._num_steps // NUM_EVALUATIONS))
        self._course = Course(self._trial.network, self._plan, watch, self.state, length, with_dropout=False)
        outcome = self._course.run(self._advance, start)
        if self._average is not None:
            best = find_checkpoint(watch.checkpoints, outcome.best_step)
            if best is not None and outcome.best_step != self.state.step:
                load_optimizer(best, self.state)  # the mean is among its states
            self._average.settle()
        return outcome

    @property
    def _beta(self) -> float:
        """As it was steered so far; as it is configured before the first step."""
        return self.state.progress.numbers.get("beta", self._config.strength)

    def _advance(self) -> str:
        """One step: answers, their scores, an update. Until the update nothing is changed; that is not interrupted."""
        started = time.perf_counter()
        step, progress, config = self.state.step, self.state.progress, self._config
        rate = set_learning_rate(self.state.optimizer, self._plan, step, self._num_steps)
        batches = epoch_batches(len(self._trial.prompts), config.prompts_per_step, self._plan.seed, progress.epoch)
        prompts = [self._trial.prompts[place] for place in batches[progress.window]]
        rollout = self._roll_out(prompts, config.num_generations, step + 1)
        first = self._first_pass(rollout)
        judged = self._judge(rollout, self._trial.reward, first)
        lesson = TEACHERS[config.algorithm](judged, self._beta, config)  # type: ignore[index]
        with shielded():
            updates = self._update(rollout, judged, lesson, first)
            numbers = measure(rollout, judged, lesson, self._beta) | summarise(updates)
            batch = rollout.packed(self._trial.network.num_virtual)
            progress.train_loss = numbers["loss/policy_avg"]
            progress.outcome.count([batch], time.perf_counter() - started, len(self._trial.prompts))
            progress.advance(self._per_epoch)
            progress.numbers["beta"] = self._controller.adjust(self._beta, numbers["objective/kl"], len(judged.score_B))
            self._report(numbers, rate, time.perf_counter() - started)
        self._trimmer.trim_if_due()
        return f"score {numbers['objective/scores']:.2f}  kl {numbers['objective/kl']:.2f}"

    def _roll_out(self, prompts: Sequence[Prompt], num_answers: int, turn: int) -> Rollout:
        """Draws anew at each turn."""
        config = self._config
        seed = SEED_STRIDE * self._plan.seed + turn
        decoding = Decoding(config.max_new_tokens, config.temperature, seed=seed)
        return roll_out(self._trial.network, prompts, decoding, self._plan.dtype, num_answers)

    def _first_pass(self, rollout: Rollout) -> Said | None:
        """What the policy says, with gradients, where one pass and one update take all answers: it then serves both,
        and what was before the update need not be computed for itself."""
        if self._config.num_mini_batches > 1 or self._plan.batch_size < len(rollout.prompts):
            return None
        return self._speaker.say(rollout.packed(self._trial.network.num_virtual))

    def _judge(self, rollout: Rollout, scorer: Scorer, first: Said | None = None) -> Judged:
        """`first` is what the policy says, where that is known."""
        score_B = torch.from_numpy(scorer(rollout.turns, texts_of(rollout))).float()
        widest = self._config.cliprange_reward or math.inf
        clipped = float((score_B.abs() > widest).float().mean())
        score_B = score_B.clamp(-widest, widest)
        if self._config.missing_eos_penalty is not None:
            unfinished_B = torch.tensor([not answer.finished for answer in rollout.flat])
            score_B = score_B - self._config.missing_eos_penalty * unfinished_B
        old = self._speaker.say_all(rollout, self._plan.batch_size) if first is None else first.detached()
        with self._reference.speaking():
            ref = self._reference_speaker.say_all(rollout, self._plan.batch_size)
        return Judged(score_B, len(rollout.answers[0]), old, ref.logp_N, rollout.mask_BT, clipped)

    def _update(self, rollout: Rollout, judged: Judged, lesson: Lesson, first: Said | None) -> list[Update]:
        """Passes over the answers, each in so many updates, prompts in a new order each time."""
        done: list[Update] = []
        for epoch in range(self._config.num_ppo_epochs):
            order = list(range(len(rollout.prompts)))
            if self._config.num_mini_batches > 1:  # else the order is nothing but rounding
                random.Random(f"{self._plan.seed}/{self.state.step}/{epoch}").shuffle(order)
            for chosen in np.array_split(order, min(self._config.num_mini_batches, len(order))):
                known = None if done else first
                done.append(self._update_once(rollout, judged, lesson, chosen.tolist(), known))
        return done

    def _update_once(
        self, rollout: Rollout, judged: Judged, lesson: Lesson, chosen: Sequence[int], first: Said | None = None
    ) -> Update:
        """One optimizer step on some of the prompts. Passes over parts of them give the gradient of the whole; the
        first one may have been made."""
        config, plan, size = self._config, self._plan, self._plan.batch_size
        lengths = rollout.part(chosen).lengths
        each = weights_N(lengths, config.aggregation, config.max_new_tokens)
        weights = iter(each.split(_tokens(rollout, chosen)))
        update = Update()
        for start in range(0, len(chosen), size):
            part = chosen[start : start + size]
            weight_N = torch.cat([next(weights) for _ in part]).to(plan.device)
            places_N, own = _places(rollout, part), rollout.part(part)
            now = first or self._speaker.say(own.packed(self._trial.network.num_virtual))
            old, ref_N = judged.old.at(places_N, plan.device), judged.ref_N[places_N].to(plan.device)
            found = losses_N(now, old, ref_N, lesson.at(places_N, plan.device), own.lengths, config)
            loss = (weight_N * sum(found.values())).sum()
            loss.backward()
            update.note(found, now, old, weight_N, config)
        if self._trial.ptx:
            update.ptx = self._remember()
        parameters = [parameter for _, parameter in self.state.parameters]
        update.grad_norm = float(nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm))
        if not math.isfinite(update.loss) or not math.isfinite(update.grad_norm):
            rows = [rollout.prompts[place].row for place in chosen]
            more = f"prompts {rows}. Lower --learning-rate, or raise --beta. {self._watch.mend}"
            raise NonFiniteError(self.state.step + 1, Step(update.loss, update.grad_norm), rows, more)
        self.state.optimizer.step()
        clear_gradients(self._all, self.state.optimizer)
        return update

    def _remember(self) -> float:
        """Adds the gradient of ptx_coef times the mean loss of some rows; returns that loss (PPO-ptx)."""
        rows, plan = self._trial.ptx, self._plan
        draw = random.Random(f"{plan.seed}/ptx/{self.state.step}")
        chosen = draw.sample(range(len(rows)), min(plan.batch_size, len(rows)))
        network = self._trial.network
        batch = pack([rows[place] for place in chosen], network.num_virtual, share=True).to(plan.device)
        with autocast(plan.device, plan.dtype):
            found_N, _ = judged_losses(network, batch)
        loss = found_N.mean()
        (self._config.ptx_coef * loss).backward()
        return float(loss.detach())

    def _report(self, numbers: dict[str, float], rate: float, seconds: float) -> None:
        """Writes the step down, and says what looks wrong, once."""
        outcome, config = self.state.progress.outcome, self._config
        numbers = {"step": outcome.steps, **numbers, "lr": rate}
        numbers["episode"] = outcome.steps * config.prompts_per_step * config.num_generations
        if config.temperature != 1:  # the sampler's are at temperature 1
            del numbers["sampler_gap"]
        numbers["eps"] = round(config.prompts_per_step * config.num_generations / seconds, 2)
        self._watch.log.write(epoch=round(outcome.epochs, 4), loss=numbers["loss/policy_avg"], **numbers)
        self._first = self._first or numbers
        for alarm in find_alarms(self._first, numbers):
            if alarm.name not in self._told and not self._watch.quiet:
                say(f"step {outcome.steps}: {alarm.name}: {alarm.advice}", style="yellow")
            self._told.add(alarm.name)
        if config.max_kl is not None and numbers["objective/kl"] > config.max_kl:
            say(
                f"step {outcome.steps}: the divergence of an answer is {numbers['objective/kl']:.1f}, above max_kl; "
                "stopped"
            )
            self._course.is_stopped = True

    def evaluate(self) -> Mapping[str, float]:
        """One answer to each held-out prompt, drawn with the same numbers every time."""
        with nullcontext() if self._average is None else self._average.speaking():
            rollout = self._roll_out(self._trial.held_out, 1, 0)
            judged = self._judge(rollout, self._trial.reward)
        kl_B = judged.kl_BT.sum(1)
        score, kl = float(judged.score_B.mean()), float(kl_B.mean())
        found = {
            # What is kept is what is best by this.
            "validation_loss": self._config.strength * kl - score,
            "validation_reward": score,
            "validation_reward_std": float(judged.score_B.std(correction=0)),
            "validation_kl": kl,
            "validation_length": float(rollout.lengths.float().mean()),
            "validation_finished": float(np.mean([answer.finished for answer in rollout.flat])),
        }
        if self._trial.gold is not None:
            gold_B = self._trial.gold(rollout.turns, texts_of(rollout))
            found |= {"validation_gold": float(gold_B.mean()), "validation_gold_std": float(gold_B.std())}
        self._watch.log.write(step=self.state.step, samples=_samples(rollout, judged))
        return found


def _samples(rollout: Rollout, judged: Judged) -> list[dict[str, Any]]:
    """The first few held-out prompts with their answers: text, score, log pi - log ref of each token."""
    ratios = judged.old.logp_N - judged.ref_N
    parts = ratios.split(rollout.lengths.tolist())
    return [
        {
            "prompt": rollout.turns[place][-1].content,
            "answer": answer.text,
            "score": round(float(judged.score_B[place]), 4),
            "log_ratio": [round(x, 3) for x in parts[place].tolist()],
        }
        for place, answer in enumerate(rollout.flat[:NUM_SHOWN])
    ]


def _tokens(rollout: Rollout, chosen: Sequence[int]) -> list[int]:
    """Tokens of all answers to each prompt."""
    return [sum(len(answer.ids) for answer in rollout.answers[place]) for place in chosen]


def _places(rollout: Rollout, chosen: Sequence[int]) -> torch.Tensor:
    """Where the tokens of some prompts' answers stand among those of all."""
    sizes = torch.tensor(_tokens(rollout, range(len(rollout.prompts))))
    ends = sizes.cumsum(0)
    return torch.cat([torch.arange(int(ends[place] - sizes[place]), int(ends[place])) for place in chosen])
