"""Answers from a model that writes: prompts in, text out, whole or token by token; several answers at a prompt's price.

Each prompt goes through the network once, whatever the number of its answers (`decode.py`). Prompts of like
length are answered together, in batches bounded by the memory of their keys and values; a row that has ended
leaves its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil
import torch

from tunesmith.data.ids import prompt_ids, stop_token_ids
from tunesmith.errors import InputError
from tunesmith.models.cache import fill_holes
from tunesmith.models.choose import Decoding, choose, draw_numbers
from tunesmith.models.decode import Decoder, can_decode
from tunesmith.models.foreign import generate_by_transformers
from tunesmith.models.load import Network
from tunesmith.models.seq2seq import halves_of
from tunesmith.records import Message
from tunesmith.terminal import Bar

__all__ = ["Answer", "Decoding", "generate", "sample", "stream"]

# More rows than this gain little in the matrix products of a step, and cost memory for logits.
ROWS_PER_BATCH = 128
# Of keys and values of a batch, unless less is free.
CACHE_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a prompt.

    ids       the tokens made; where `finished`, the last is a stop token
    text      the same without special tokens
    finished  it ended by itself; else it was cut, at `max_new_tokens` or at the longest row the model takes
    logprobs  of each token, log softmax(logits)[token] in nats (float32): the policy's own, at temperature 1 and
              before any cut by top_k or top_p, so equal to what a pass over prompt and answer gives. With
              temperature 1 and no cut it is the log-probability of the draw too.
    """

    ids: tuple[int, ...]
    text: str
    finished: bool
    logprobs: tuple[float, ...]


@dataclass(slots=True)
class _Row:
    """An answer in the making: the `answer`-th to the `prompt`-th prompt."""

    prompt: int
    answer: int
    limit: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def generate(
    network: Network,
    prompts: Sequence[Sequence[Message]],
    decoding: Decoding,
    dtype: torch.dtype,
    quiet: bool = False,
) -> list[str]:
    """One answer per conversation. Shows a bar unless `quiet`.

    Raises:
        InputError: a prompt that the model's template or longest row does not take.
    """
    encoded = [prompt_ids(messages, network.tokenizer) for messages in prompts]
    return [answers[0].text for answers in sample(network, encoded, decoding, dtype, quiet=quiet)]


def sample(
    network: Network,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    dtype: torch.dtype,
    num_answers: int = 1,
    *,
    quiet: bool = True,
) -> list[list[Answer]]:
    """`num_answers` answers to each prompt of ids, in order; the model must be in evaluation mode.

    An answer depends on its prompt, on the two numbers that say which it is, and on `decoding`; not on what else
    is in the batch, except where rounding (other shapes, other sums) decides between two tokens.

    Raises:
        InputError: a prompt as long as the model's longest row, or longer.
    """
    rows = [
        _Row(prompt, answer, _room(network, len(ids), decoding))
        for prompt, ids in enumerate(prompts)
        for answer in range(num_answers)
    ]
    stops = frozenset(stop_token_ids(network.tokenizer))
    with Bar("answers", len(rows), quiet) as bar:
        for batch in _plan(network, prompts, rows, dtype):
            for num_ended in _answer(network, prompts, batch, decoding, dtype):
                if num_ended:
                    bar.advance(steps=num_ended)
    made = [_finish(network, row, stops) for row in rows]
    return [made[start : start + num_answers] for start in range(0, len(made), num_answers)]


def stream(network: Network, messages: Sequence[Message], decoding: Decoding, dtype: torch.dtype) -> Iterator[str]:
    """The answer piece by piece, as it is made; the pieces concatenated are the answer.

    The caller's own thread does the work, so Ctrl-C takes effect within one operation. What cannot be decoded
    here (`can_decode`) comes in one piece.
    """
    ids = prompt_ids(messages, network.tokenizer)
    row = _Row(0, 0, _room(network, len(ids), decoding))
    said = ""
    for _ in _answer(network, [ids], [row], decoding, dtype):
        text = _decode(network, row)
        # A character may need several tokens; until it has them it reads as a replacement sign.
        if len(text) > len(said) and text.startswith(said) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(said) :]
            said = text
    rest = _decode(network, row)[len(said) :]
    if rest:
        yield rest


def _room(network: Network, length: int, decoding: Decoding) -> int:
    """Tokens that an answer may have."""
    if network.model.config.is_encoder_decoder:
        if length > network.max_positions:
            raise InputError(
                f"the source has {length:,} tokens, '{network.source}' reads {network.max_positions:,}. Shorten it"
            )
        return min(network.max_positions, decoding.max_new_tokens)
    left = network.max_positions - network.num_virtual - length
    if left <= 0:
        raise InputError(
            f"the prompt has {length:,} tokens, '{network.source}' takes {network.max_positions:,} in all. Shorten it"
        )
    return min(left, decoding.max_new_tokens)


def _plan(
    network: Network, prompts: Sequence[Sequence[int]], rows: list[_Row], dtype: torch.dtype
) -> Iterator[list[_Row]]:
    """Rows in batches, longest prompts first, bounded by rows and by the memory of keys and values."""
    must_be_alike = not (can_decode(network.model) or network.model.config.is_encoder_decoder)
    room = _cache_bytes(network.model.device) // _bytes_per_token(network, dtype)
    batch: list[_Row] = []
    used = 0
    for row in sorted(rows, key=lambda row: -len(prompts[row.prompt])):
        longest = network.num_virtual + len(prompts[batch[0].prompt if batch else row.prompt])
        length = network.num_virtual + len(prompts[row.prompt])
        size = row.limit + (longest if not batch or row.prompt != batch[-1].prompt else 0)
        is_full = len(batch) == ROWS_PER_BATCH or used + size > room or (must_be_alike and length != longest)
        if batch and is_full:
            yield batch
            batch, used, size = [], 0, row.limit + length
        batch.append(row)
        used += size
    if batch:
        yield batch


def _bytes_per_token(network: Network, dtype: torch.dtype) -> int:
    config = halves_of(network.model.config)[-1]
    num_heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    num_keys = getattr(config, "num_key_value_heads", None) or num_heads
    return int(2 * config.num_hidden_layers * num_keys * width * dtype.itemsize)


def _cache_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return min(CACHE_BYTES, psutil.virtual_memory().available // 4)


def _answer(
    network: Network, prompts: Sequence[Sequence[int]], rows: list[_Row], decoding: Decoding, dtype: torch.dtype
) -> Iterator[int]:
    """Makes the rows' answers together; now and then, how many of them have ended since."""
    choice = _Choice(network, rows, decoding)
    if not can_decode(network.model):
        each = [prompts[row.prompt] for row in rows]
        generate_by_transformers(network, each, choice.take, sorted(choice.stops), choice.most_new, dtype)
        yield len(rows)
        return
    chosen = list(dict.fromkeys(row.prompt for row in rows))
    owners = [chosen.index(row.prompt) for row in rows]
    decoder = Decoder(network, [prompts[prompt] for prompt in chosen], owners, choice.most_new, dtype)
    logits_RV = decoder.begin()
    while True:
        tokens_R = choice.take(logits_RV)
        stays = [not choice.has_ended(row) for row in choice.rows]
        yield stays.count(False)
        if not any(stays):
            return
        if not all(stays):
            order = fill_holes(stays)
            choice.keep_rows(order)
            decoder.keep_rows(order)
            tokens_R = tokens_R[order]
        logits_RV = decoder.step(tokens_R)


class _Choice:
    """Rows of a batch, and the tokens they get."""

    def __init__(self, network: Network, rows: list[_Row], decoding: Decoding) -> None:
        self.rows, self._decoding = rows, decoding
        self.stops = frozenset(stop_token_ids(network.tokenizer))
        self.most_new = max(row.limit for row in rows)
        numbers = np.stack([draw_numbers(decoding.seed, row.prompt, row.answer, self.most_new) for row in rows])
        self._numbers_RT = torch.from_numpy(numbers).to(network.model.device)
        self._num_made = 0

    def take(self, logits_RV: torch.Tensor) -> torch.Tensor:
        """Chooses a token for each row (R,), and notes it for those that have not ended."""
        tokens_R, logprobs_R = choose(logits_RV, self._numbers_RT[:, self._num_made], self._decoding)
        self._num_made += 1
        for row, token, logprob in zip(self.rows, tokens_R.tolist(), logprobs_R.tolist(), strict=True):
            if not self.has_ended(row):
                row.ids.append(token)
                row.logprobs.append(logprob)
        return tokens_R

    def has_ended(self, row: _Row) -> bool:
        return len(row.ids) == row.limit or bool(row.ids and row.ids[-1] in self.stops)

    def keep_rows(self, order: list[int]) -> None:
        """Row i becomes what row order[i] was; the others leave."""
        self.rows, self._numbers_RT = [self.rows[index] for index in order], self._numbers_RT[order]


def _finish(network: Network, row: _Row, stops: frozenset[int]) -> Answer:
    return Answer(tuple(row.ids), _decode(network, row), row.ids[-1] in stops, tuple(row.logprobs))


def _decode(network: Network, row: _Row) -> str:
    return str(network.tokenizer.decode(row.ids, skip_special_tokens=True))
