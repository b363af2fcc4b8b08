"""The whole loop of learning from feedback, with a program in the place of people.

    python examples/rlhf.py FOLDER [--prompts 400] [--noise 0.25] [--epochs 3] [--steps 30]

A hidden scorer, a classifier of film reviews, plays the labeler: it ranks four continuations of each opening, and turns
a share of its judgements round at random. From its rankings alone a reward model is learned; PPO maximises that model;
and the hidden scorer, which PPO never sees, says at each evaluation what it is worth (Gao et al. 2022, arXiv
2210.10760). In the end the tuned model and the one it began as answer openings that neither has seen, and the hidden
scorer chooses. The reward model is tested on answers to these openings too, which the labeler ranks as it does the
others. All draws have fixed seeds. A stage whose folder or file is there already is not done again.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import tunesmith
from tunesmith.config_align import AlignConfig
from tunesmith.data import sources
from tunesmith.data.ids import prompt_ids
from tunesmith.evaluation.rankings import mean_by_prompt, pairs_of, wins
from tunesmith.evaluation.tasks import open_network
from tunesmith.models.generate import Decoding, generate, sample
from tunesmith.models.load import Network
from tunesmith.records import LabelledText, Message
from tunesmith.rl.reward import Scorer, open_rewards
from tunesmith.runs.folder import MANIFEST
from tunesmith.runs.run import Run
from tunesmith.runtime import choose_precision

MODEL, LABELER, DATA = "smollm2-135m-instruct", "minilm-l6", "vader-movies"
TEMPLATE = "Write one sentence of a film review. Begin with: {text}"
WORDS, TOKENS, ANSWERS = 5, 16, 4
SETTINGS = AlignConfig(model=MODEL, data="", algorithm="ppo", reward=("labeler",), reward_label="positive")


def openings(num: int, seed: int = 0) -> list[str]:
    """Prompts from the beginnings of reviews, each once."""
    texts = [row.text.split() for row in sources.load(DATA).rows if isinstance(row, LabelledText)]
    starts = list(dict.fromkeys(" ".join(words[:WORDS]) for words in texts if len(words) > WORDS))
    random.Random(seed).shuffle(starts)
    return [TEMPLATE.replace("{text}", start) for start in starts[:num]]


def as_turns(prompts: Sequence[str]) -> list[tuple[Message, ...]]:
    return [(Message("user", prompt),) for prompt in prompts]


def with_noise(scores_PK: np.ndarray, noise: float) -> np.ndarray:
    """The scores as a labeler sees them: with normal errors of such a size that the share `noise` of all pairs is
    ranked the other way round (Thurstone 1927)."""
    errors_PK = np.random.default_rng(1).normal(size=scores_PK.shape)
    low, high = 0.0, 100.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if share_turned(scores_PK, scores_PK + middle * errors_PK) < noise else (low, middle)
    return scores_PK + low * errors_PK


def share_turned(one_PK: np.ndarray, other_PK: np.ndarray) -> float:
    """Of all pairs of answers to a prompt, how many the two put in another order."""
    above = [np.triu(x_PK[:, :, None] > x_PK[:, None, :], 1) for x_PK in (one_PK, other_PK)]
    num_pairs = len(one_PK) * ANSWERS * (ANSWERS - 1) / 2
    return float((above[0] != above[1]).sum() / num_pairs)


def write_rankings(file: Path, prompts: Sequence[str], network: Network, gold: Scorer, noise: float) -> None:
    """What the labeler says of the model's own answers, and beside it, for nobody to learn from, the hidden scores."""
    ids = [prompt_ids(turns, network.tokenizer) for turns in as_turns(prompts)]
    made = sample(network, ids, Decoding(TOKENS, temperature=1.0), dtype_of(network), ANSWERS, quiet=False)
    said = [[answer.text for answer in answers] for answers in made]
    # Nobody can rank an answer that is empty.
    prompts, texts = zip(
        *(pair for pair in zip(prompts, said, strict=True) if all(map(str.strip, pair[1]))), strict=True
    )
    every = as_turns([prompt for prompt in prompts for _ in range(ANSWERS)])
    scores = gold(every, [text for answers in texts for text in answers]).reshape(-1, ANSWERS)
    rows = zip(prompts, texts, to_ranks(with_noise(scores, noise)), scores.tolist(), strict=True)
    lines = [dict(zip(("prompt", "answers", "ranks", "hidden"), row, strict=True)) for row in rows]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def to_ranks(scores_PK: np.ndarray) -> list[list[int]]:
    """1 is the best answer to a prompt."""
    ranks: list[list[int]] = ((-scores_PK).argsort(1).argsort(1) + 1).tolist()
    return ranks


def dtype_of(network: Network) -> torch.dtype:
    return choose_precision("auto", network.model.device)


def learn_reward(folder: Path, given: argparse.Namespace) -> None:
    """The reward model; prints how often it is right of pairs to prompts that it has not seen: by the labeler, who is
    sometimes wrong and cannot be foreseen more often than it is right, and by the hidden scores themselves."""
    if not is_done(folder / "reward"):
        tunesmith.reward(
            model=LABELER,  # untuned; of the decoder one pass over 320 rankings made nothing (docs/align.md)
            method="full",
            data=str(folder / "rankings.jsonl"),
            per_device_train_batch_size=4,
            num_train_epochs=given.epochs,
            output=folder / "reward",
            resume=True,
            quiet=True,
        )
    rows = [json.loads(line) for line in (folder / "unseen.jsonl").read_text(encoding="utf-8").splitlines()]
    reward = open_rewards([str(folder / "reward")], (), SETTINGS, torch.device("cpu"))
    turns = as_turns([row["prompt"] for row in rows for _ in range(ANSWERS)])
    said = reward(turns, [text for row in rows for text in row["answers"]]).reshape(-1, ANSWERS)
    hidden = np.array([row["hidden"] for row in rows])
    lengths = [[len(text) for text in row["answers"]] for row in rows]
    ranks = [row["ranks"] for row in rows]
    print(f"of {len(rows)} rankings of openings that were not trained:")
    print(f"the labeler turns round {share_turned(-np.array(ranks), hidden):.1%} of the hidden scorer's pairs")
    for judge, scores in (("reward model", said), ("longer", np.array(lengths)), ("hidden scorer", hidden)):
        by_labeler = pairs_of(scores.tolist(), ranks, lengths)
        by_hidden = pairs_of(scores.tolist(), to_ranks(hidden), lengths)
        for name, pairs in (("the labeler", by_labeler), ("the hidden scorer", by_hidden)):
            share = mean_by_prompt(wins(pairs.gap_P), pairs.prompt_P)
            print(f"  {judge:<14} agrees with {name:<18} {share.value:.1%} ({share.low:.1%} to {share.high:.1%})")


def is_done(run: Path) -> bool:
    return (run / MANIFEST).is_file()


def align(folder: Path, given: argparse.Namespace) -> Run:
    """The model under PPO on what the reward model says; prints how both scorers saw it go."""
    done = Run.open(folder / "ppo") if is_done(folder / "ppo") else None
    run = done or (
        tunesmith.align(
            model=MODEL,
            data=str(folder / "rankings.jsonl"),
            algorithm="ppo",
            reward=str(folder / "reward"),
            gold_reward=str(folder / "labeler"),
            reward_label="positive",
            learning_rate=given.rate,
            max_new_tokens=TOKENS,
            max_steps=given.steps,
            eval_steps=max(1, given.steps // given.evaluations),
            num_train_epochs=100,
            max_kl=20,
            output=folder / "ppo",
            resume=True,
        )
    )
    for point in run.outcome["curve"]:
        root = max(0.0, point["validation_kl"]) ** 0.5
        print(f"step {point['step']:>4}  sqrt(KL) {root:.2f}  reward {point['validation_reward']:+.2f}", end="")
        print(f"  hidden scorer {point['validation_gold']:+.2f}")
    return run


def compare(prompts: Sequence[str], tuned: Network, before: Network, gold: Scorer) -> None:
    """How often the hidden scorer prefers what the tuned model writes, level answers counting half."""
    turns, decoding = as_turns(prompts), Decoding(TOKENS, temperature=1.0)
    scores = [
        gold(turns, generate(network, turns, decoding, dtype_of(network), quiet=True)) for network in (tuned, before)
    ]
    won = np.where(scores[0] == scores[1], 0.5, scores[0] > scores[1])
    error = 1.96 * won.std() / len(won) ** 0.5
    print(f"the hidden scorer prefers the tuned model in {won.mean():.1%} +- {error:.1%} of {len(won)} openings")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--noise", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=3, help="of the reward model")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--evaluations", type=int, default=6, help="on the way")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of PPO")
    parser.add_argument("--judged", type=int, default=200, help="openings for the comparison")
    given = parser.parse_args()
    folder: Path = given.folder

    if not is_done(folder / "labeler"):
        tunesmith.tune(
            model=LABELER,
            data=DATA,
            method="full",
            num_train_epochs=1,
            output=folder / "labeler",
            resume=True,
            quiet=True,
        )
    network = open_network(MODEL)
    gold = open_rewards([str(folder / "labeler")], (), SETTINGS, network.model.device)
    prompts = openings(given.prompts + given.judged)
    for name, some in (("rankings", prompts[: given.prompts]), ("unseen", prompts[given.prompts :])):
        if not (folder / f"{name}.jsonl").is_file():
            write_rankings(folder / f"{name}.jsonl", some, network, gold, given.noise)
    learn_reward(folder, given)
    run = align(folder, given)
    compare(prompts[given.prompts :], run.network, network, gold)


if __name__ == "__main__":
    main()
