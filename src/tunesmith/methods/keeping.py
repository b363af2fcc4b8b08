"""What a network under a method is to keep of what it knew, gathered before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import torch

from tunesmith.config import TrainingConfig
from tunesmith.data.ids import prompt_ids
from tunesmith.data.parts import load_keep_data
from tunesmith.data.sides import find_sides
from tunesmith.data.tokenize import tokenize
from tunesmith.errors import InputError
from tunesmith.methods.informed import squared_gradients
from tunesmith.methods.method import Method
from tunesmith.models.generate import Decoding, sample
from tunesmith.models.load import Network
from tunesmith.records import Message, TokenizedExample
from tunesmith.train.kept import NOTHING_KEPT, Kept, ask
from tunesmith.train.loop import trainable

PROMPTS = "general_prompts.txt"
WORDS = 64  # of an answer at most, in tokens


def remember(network: Network, method: Method, config: TrainingConfig, dtype: torch.dtype) -> Kept:
    """What the network says before its first step, and which of its weights that hangs on, where this is asked for.

    Raises:
        InputError: the task, the method or the data has nothing that could be kept so.
    """
    if not (config.kl_to_base or config.ewc):
        if config.keep_data is not None and not config.replay:
            raise InputError("keep_data says what is to be kept; say how with --replay, --kl-to-base or --ewc")
        return NOTHING_KEPT
    _refuse_unfit(network, method, config)
    rows = _rows_to_keep(network, config, dtype)
    said = ask(network, rows, dtype) if config.kl_to_base else ()
    fisher = _fisher(network, rows, dtype) if config.ewc else {}
    return Kept(rows, config.kl_to_base, said, config.ewc, fisher)


def _refuse_unfit(network: Network, method: Method, config: TrainingConfig) -> None:
    if config.kl_to_base and network.task != "generation":
        raise InputError(
            f"kl_to_base keeps what a model writes, and this run is for {network.task}. --replay and, for full and "
            "selective methods, --ewc and --l2-sp hold on to other things"
        )
    if config.kl_to_base and not method.starts_equal:
        raise InputError(
            f"kl_to_base holds a model to what it says before the first step, and {method.name} changes that "
            "beforehand. Take --replay, or another method"
        )
    if config.ewc and network.wrapper is not network.model:
        raise InputError(
            f"ewc holds pretrained weights near to where they began, and {method.name} trains none of them; take "
            "--kl-to-base or --replay"
        )
    if config.keep_data is None and network.task != "generation":
        raise InputError(f"ewc needs --keep-data with rows for {network.task}: such a model has no words of its own")


def _rows_to_keep(network: Network, config: TrainingConfig, dtype: torch.dtype) -> Sequence[TokenizedExample]:
    if config.keep_data is None:
        return own_words(network, dtype, seed=config.seed)
    examples = load_keep_data(config, network.task, network.class_names)
    return list(tokenize(examples, network.tokenizer, network.max_positions - network.num_virtual, config.too_long))


def own_words(
    network: Network, dtype: torch.dtype, prompts: Sequence[str] = (), seed: int = 0, length: int = WORDS
) -> list[TokenizedExample]:
    """A model's own answers to general questions, drawn at temperature 1, as rows whose answers are trained.

    Args:
        prompts: other questions than ours.
    """
    network.model.eval()
    asked = [prompt_ids((Message("user", text),), network.tokenizer) for text in prompts or general_prompts()]
    answers = sample(network, asked, Decoding(length, temperature=1.0, seed=seed), dtype)
    sides = find_sides(network.tokenizer)
    start = None if sides is None else sides.start
    rows: list[TokenizedExample] = []
    for prompt, (answer,) in zip(asked, answers, strict=True):
        trained = (False,) * len(prompt) + (True,) * len(answer.ids)
        rows.append(TokenizedExample((*prompt, *answer.ids), trained, None, 0, len(rows), start=start))
    return rows


def general_prompts() -> list[str]:
    return (files("tunesmith.methods") / PROMPTS).read_text(encoding="utf-8").splitlines()


def _fisher(network: Network, rows: Sequence[TokenizedExample], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Fisher's information of each pretrained weight that is trained, divided by its mean over all of them."""
    named = [(name, parameter) for name, parameter in trainable(network) if not network.is_new(name)]
    squares = squared_gradients(network, [parameter for _, parameter in named], rows, dtype)
    mean = sum(float(square.sum()) for square in squares) / max(1, sum(square.numel() for square in squares))
    if not mean:
        raise InputError("ewc: no trained weight matters for what is to be kept: nothing would be held. Leave it out")
    return {name: square / mean for (name, _), square in zip(named, squares, strict=True)}
