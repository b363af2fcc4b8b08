"""Answers drawn from the policy, and what policy, reference and value say of their tokens.

A prompt stands in the pack once, before all of its answers, in every pass. Shape letters: N tokens of all answers end
to end, B answers, T tokens of the longest, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from tunesmith.data.pack import pack
from tunesmith.errors import InputError
from tunesmith.models.generate import Answer, Decoding, sample
from tunesmith.models.heads import find_language_head
from tunesmith.models.load import Network
from tunesmith.models.packed import packed_hidden
from tunesmith.records import Message, PackedBatch, TokenizedExample
from tunesmith.rl.value import Value
from tunesmith.runtime import autocast
from tunesmith.train.checkpoint import Named
from tunesmith.train.objective import losses_from_hidden_N

ENTROPY_ROWS = 256


@dataclass(frozen=True, slots=True)
class Prompt:
    """`row` is its index among the prompts."""

    row: int
    turns: tuple[Message, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rollout:
    """Answers to prompts, as many to each."""

    prompts: Sequence[Prompt]
    answers: Sequence[Sequence[Answer]]

    @property
    def flat(self) -> list[Answer]:
        """(B,) in order of the prompts."""
        return [answer for answers in self.answers for answer in answers]

    @property
    def turns(self) -> list[tuple[Message, ...]]:
        """The prompt of each answer."""
        return [prompt.turns for prompt, answers in zip(self.prompts, self.answers, strict=True) for _ in answers]

    @property
    def lengths(self) -> torch.Tensor:
        """(B,) tokens of each answer, its stop token among them."""
        return torch.tensor([len(answer.ids) for answer in self.flat])

    @property
    def mask_BT(self) -> torch.Tensor:
        """True at an answer's tokens."""
        lengths = self.lengths
        return torch.arange(int(lengths.max())) < lengths[:, None]

    def part(self, chosen: Sequence[int]) -> Rollout:
        """Of some of the prompts."""
        return Rollout([self.prompts[place] for place in chosen], [self.answers[place] for place in chosen])

    def packed(self, num_virtual: int) -> PackedBatch:
        return pack([_row(*one) for one in zip(self.prompts, self.answers, strict=True)], num_virtual, share=True)


def _row(prompt: Prompt, answers: Sequence[Answer]) -> TokenizedExample:
    ids, borders = list(prompt.ids), []
    for answer in answers:
        borders.append(len(ids))
        ids += answer.ids
    trained = tuple(place >= len(prompt.ids) for place in range(len(ids)))
    return TokenizedExample(tuple(ids), trained, None, 0, prompt.row, answers=tuple(borders))


def roll_out(
    network: Network, prompts: Sequence[Prompt], decoding: Decoding, dtype: torch.dtype, num_answers: int
) -> Rollout:
    """Draws answers; the model must be in evaluation mode."""
    return Rollout(prompts, sample(network, [prompt.ids for prompt in prompts], decoding, dtype, num_answers))


@dataclass(frozen=True, slots=True)
class Said:
    """Of the tokens of a rollout: log-probability, value (None without a head) and, where asked for, the entropy of
    what could have stood in each token's place, in nats."""

    logp_N: torch.Tensor
    value_N: torch.Tensor | None = None
    entropy_N: torch.Tensor | None = None

    def detached(self) -> Said:
        """Without gradients, in main memory."""
        return Said(self.logp_N.detach().cpu(), None if self.value_N is None else self.value_N.detach().cpu())

    def at(self, places_N: torch.Tensor, device: torch.device) -> Said:
        """Of some of the tokens."""
        value_N = None if self.value_N is None else self.value_N[places_N].to(device)
        return Said(self.logp_N[places_N].to(device), value_N)


class Speaker:
    """A network that says how likely answers are, at one temperature for draws, reference and update alike."""

    def __init__(self, network: Network, temperature: float, dtype: torch.dtype, value: Value | None = None) -> None:
        """
        Raises:
            InputError: the model's logits are no plain product, or capped and at a temperature other than 1.
        """
        head = find_language_head(network.model)
        if head is None or (temperature != 1 and head.softcap):
            more = "" if head is None else f" at a temperature of {temperature:g}; take 1"
            raise InputError(f"'{network.source}' makes its logits in a way that cannot be learned by trial here{more}")
        self._network, self._temperature, self._dtype, self._value = network, temperature, dtype, value

    def say(self, batch: PackedBatch, with_entropy: bool = False) -> Said:
        """What it says of a packed rollout, with gradients where they are on."""
        batch = batch.to(self._network.model.device)
        assert batch.answers is not None
        with autocast(batch.input_ids.device, self._dtype):
            hidden_ND = packed_hidden(self._network, batch)[batch.predict_from]
            # (h / T) W = (h W) / T
            logp_N = -losses_from_hidden_N(self._network, hidden_ND / self._temperature, batch.answers.tokens)
        value_N = None if self._value is None else self._value.values_N(batch, hidden_ND)
        entropy_N = self._entropy_N(hidden_ND.detach() / self._temperature) if with_entropy else None
        return Said(logp_N, value_N, entropy_N)

    @torch.no_grad()
    def _entropy_N(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        head = find_language_head(self._network.model)
        assert head is not None
        found = []
        for part in hidden_ND.split(ENTROPY_ROWS):
            with autocast(part.device, self._dtype):
                logits_NV = part.to(head.weight.dtype) @ head.weight.T
            if head.softcap:
                logits_NV = head.softcap * torch.tanh(logits_NV / head.softcap)
            logp_NV = logits_NV.float().log_softmax(-1)
            found.append(-(logp_NV.exp() * logp_NV).sum(-1))
        return torch.cat(found)

    @torch.no_grad()
    def say_all(self, rollout: Rollout, num_prompts: int, with_entropy: bool = False) -> Said:
        """The same without gradients, `num_prompts` at a time, of the whole rollout."""
        places = range(len(rollout.prompts))
        said = [
            self.say(rollout.part(places[start : start + num_prompts]).packed(self._network.num_virtual), with_entropy)
            for start in range(0, len(places), num_prompts)
        ]
        values = [one.value_N for one in said if one.value_N is not None]
        entropies = [one.entropy_N for one in said if one.entropy_N is not None]
        return Said(
            torch.cat([one.logp_N for one in said]).cpu(),
            torch.cat(values).cpu() if values else None,
            torch.cat(entropies).cpu() if entropies else None,
        )


class Reference:
    """The policy as it began. Frozen weights are the policy's own, and of those that are trained it has a copy: of
    adapters that is little, of full tuning a second model."""

    def __init__(self, parameters: Named) -> None:
        self._parameters = parameters
        self._start = [parameter.detach().clone() for _, parameter in parameters]

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Inside it the network is the reference."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for place, (_, parameter) in enumerate(self._parameters):
            now = parameter.data
            parameter.data, self._start[place] = self._start[place], now


def to_padded(x_N: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Tokens of all answers end to end, into rows: (B, T), 0 behind each."""
    return torch.zeros(mask_BT.shape, dtype=x_N.dtype).masked_scatter(mask_BT, x_N)


def sums_B(x_N: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    return to_padded(x_N, mask_BT).sum(1)


def texts_of(rollout: Rollout) -> list[str]:
    return [answer.text for answer in rollout.flat]


def share_distinct(rollout: Rollout) -> float:
    """Of all answers, how many different ones there are."""
    return float(np.mean([len({answer.ids for answer in answers}) / len(answers) for answers in rollout.answers]))
