"""The frozen prefix of a network: blocks below everything that is trained, computed once for each row.

Nothing in these blocks changes, so neither does what they say of a row. `cached_prefix` runs them over all
rows beforehand, without dropout, and keeps the states that leave the last of them, in memory or in a file that other
trainings with the same frozen blocks and rows find; inside it a packed pass over known rows begins above the prefix.
Training a head alone, or the last blocks, then costs what these cost.

Rows are known by their ids, so train and validation rows share one store, and equal rows share one entry.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from tunesmith.data.pack import pack, token_batches
from tunesmith.models.layers import final_norms, find_layers
from tunesmith.models.load import Network
from tunesmith.models.packed import packed_hidden
from tunesmith.models.states import StateFile, find_states, has_room, writing
from tunesmith.records import PackedBatch, TokenizedExample
from tunesmith.runtime import autocast
from tunesmith.storage import explained
from tunesmith.terminal import Bar, describe_bytes, say

# Of a store in memory: beyond it would cost more memory than it is worth time.
LARGEST_STORE = 2**30


def count_frozen(network: Network) -> int:
    """How many blocks lie below all that is trained; 0 when something below the blocks is trained. 0 of an
    encoder-decoder, whose blocks are no one stack."""
    if network.model.config.is_encoder_decoder:
        return 0
    layers = list(find_layers(network.model))
    if network.num_virtual:
        return 0
    inside = {parameter: index for index, layer in enumerate(layers) for parameter in layer.parameters()}
    heads = [child for name, child in network.body.named_children() if name in network.head_modules]
    ignored = {parameter for module in (*heads, *final_norms(network.model)) for parameter in module.parameters()}
    trained = [p for p in network.body.parameters() if p.requires_grad and p not in ignored]
    return min([inside.get(parameter, 0) for parameter in trained], default=len(layers))


def count_bytes(network: Network, rows: Sequence[TokenizedExample]) -> int:
    """Size of the store in bytes when states leave the blocks in float32; half of it in bfloat16."""
    return 4 * int(network.model.config.hidden_size) * count_tokens(rows)


def count_tokens(rows: Sequence[TokenizedExample]) -> int:
    """Tokens of all rows, equal ones counted once."""
    return sum(len(ids) for ids, _ in {_key(row) for row in rows})


def _key(row: TokenizedExample) -> tuple[tuple[int, ...], int]:
    """What the states of a row depend on."""
    return row.input_ids, row.second_at


@contextmanager
def cached_prefix(
    network: Network,
    rows: Sequence[TokenizedExample],
    dtype: torch.dtype,
    quiet: bool = False,
    folder: Path | None = None,
) -> Iterator[None]:
    """Inside it, passes over these rows begin above the frozen blocks; without any, nothing happens.

    Worth it for rows that are seen more than once. The store is in memory, at most LARGEST_STORE bytes, or else in a
    folder of its own within `folder`, at most half of the free disk. On an accelerator memory comes first.
    """
    num_frozen = count_frozen(network)
    num_bytes = count_bytes(network, rows) if num_frozen else 0
    in_memory = num_bytes <= LARGEST_STORE and (folder is None or network.model.device.type != "cpu")
    if not num_frozen or not (in_memory or (folder is not None and has_room(folder, num_bytes))):
        yield
        return
    prefix = Prefix(network, num_frozen)
    try:
        if in_memory or folder is None:
            prefix.fill(rows, dtype, quiet)
        else:
            prefix.fill_from(folder, rows, dtype, quiet)
        network.prefix = prefix
        yield
    finally:
        network.prefix = None
        prefix.detach()


class _Left(Exception):  # noqa: N818 (nothing went wrong)
    """The store is being filled and the last frozen block has answered, with the states (T, D) that it carries: what
    stands above need not run."""

    def __init__(self, states_TD: torch.Tensor) -> None:
        self.states_TD = states_TD


class Prefix:
    """The store, and the frozen blocks that answer from it.

    `states` (T, D) is set while a pass over known rows runs: the last frozen block answers with it, the
    others hand on what they get.
    """

    def __init__(self, network: Network, num_frozen: int) -> None:
        self._network = network
        self._layers = list(find_layers(network.model))[:num_frozen]
        self._store: dict[bytes, torch.Tensor] = {}
        self._file: StateFile | None = None
        self._states: torch.Tensor | None = None
        self._is_filling = False
        self._rest: tuple[object, ...] | None = None
        for layer in self._layers:
            vars(layer)["forward"] = MethodType(self._forward, layer)

    def detach(self) -> None:
        """Gives the blocks their own forward back."""
        for layer in self._layers:
            del vars(layer)["forward"]
        self._store.clear()
        if self._file is not None:
            self._file.close()

    @property
    def states(self) -> list[torch.Tensor]:
        """What is in the store, (T, D) for each row."""
        return list(self._store.values())

    @property
    def bytes_per_token(self) -> int:
        """Of the states in the store; 0 while it is empty."""
        states = next(iter(self._store.values()), None)
        return 0 if states is None else states.shape[-1] * states.element_size()

    def fill(self, rows: Sequence[TokenizedExample], dtype: torch.dtype, quiet: bool) -> None:
        """Keeps the states of all rows in memory."""
        self._run(rows, dtype, quiet, self._store.__setitem__)

    def fill_from(self, folder: Path, rows: Sequence[TokenizedExample], dtype: torch.dtype, quiet: bool) -> None:
        """Takes them from a file in the folder, which is made when it is not there."""
        place = folder / self._name_of(rows, dtype)
        self._file = find_states(place)
        if not quiet:
            size = describe_bytes(count_bytes(self._network, rows))
            how = (
                f"run once for each row; their states take at most {size} in"
                if self._file is None
                else "states found in"
            )
            say(f"frozen   {len(self._layers)} blocks {how} {folder}")
        if self._file is None:
            shutil.rmtree(place, ignore_errors=True)
            with explained("The states of frozen blocks", folder), writing(place) as writer:
                self._run(rows, dtype, quiet, writer.put)
            self._file = find_states(place)
            assert self._file is not None

    def _name_of(self, rows: Sequence[TokenizedExample], dtype: torch.dtype) -> str:
        """Says everything that the states depend on, to the bit on one machine."""
        digest = hashlib.blake2b(digest_size=16)
        machine = (torch.__version__, dtype, torch.get_num_threads(), len(self._layers), self._network.num_virtual)
        digest.update(repr(machine).encode())
        digest.update(repr([_key(row) for row in rows]).encode())
        for name, tensor in self._below():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _below(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights and buffers of the frozen blocks and what feeds them."""
        body, above = self._network.body, list(find_layers(self._network.model))[len(self._layers) :]
        others = {id(tensor) for layer in above for tensor in (*layer.parameters(), *layer.buffers())}
        for name, tensor in (*body.named_parameters(), *body.named_buffers()):
            if not tensor.requires_grad and id(tensor) not in others:
                yield name, tensor

    @torch.inference_mode()
    def _run(
        self,
        rows: Sequence[TokenizedExample],
        dtype: torch.dtype,
        quiet: bool,
        keep: Callable[[bytes, torch.Tensor], object],
    ) -> None:
        """Runs the blocks over all rows, in batches that depend on nothing but the rows."""
        network = self._network
        network.model.eval()
        distinct = list({_key(row): row for row in rows}.values())
        batches = token_batches(distinct)
        num_bytes = 0
        with Bar(f"{len(self._layers)} frozen blocks, once", len(batches), quiet) as bar:
            for chosen in batches:
                batch = pack([distinct[index] for index in chosen], share=network.is_decoder).to(network.model.device)
                parts = self._states_of(batch, dtype).split(batch.lengths)
                for key, chain in zip(_keys(batch), batch.chains, strict=True):
                    states = torch.cat([parts[segment] for segment in chain])
                    keep(key, states)
                    num_bytes += states.nbytes
                bar.advance(describe_bytes(num_bytes))

    def _states_of(self, batch: PackedBatch, dtype: torch.dtype) -> torch.Tensor:
        """What the last frozen block says, (T, D)."""
        self._is_filling = True
        try:
            with autocast(self._network.model.device, dtype):
                packed_hidden(self._network, batch)
        except _Left as left:
            return left.states_TD
        finally:
            self._is_filling = False
        raise AssertionError("the frozen blocks were not run")

    def _find(self, key: bytes) -> torch.Tensor | None:
        if self._file is None:
            return self._store.get(key)
        states = self._file.get(key)
        return None if states is None else states.to(self._network.model.device)

    @contextmanager
    def serving(self, batch: PackedBatch) -> Iterator[None]:
        """A pass over `batch`: from the store when it holds all of its rows."""
        found = [self._find(key) for key in _keys(batch)]
        known = [states for states in found if states is not None]
        self._states = _lay_out(batch, known) if len(known) == len(found) else None
        try:
            yield
        finally:
            self._states = None

    def _forward(self, layer: nn.Module, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> object:
        is_last = layer is self._layers[-1]
        if self._states is not None:
            out = self._states[None] if is_last else hidden
            return out if self._rest is None else (out, *self._rest)
        output: Any = type(layer).forward(layer, hidden, *args, **kwargs)
        # Blocks return the hidden states, alone or first in a tuple.
        self._rest = output[1:] if isinstance(output, tuple) else None
        if is_last and self._is_filling:
            raise _Left((output[0] if isinstance(output, tuple) else output)[0])
        return output


def _keys(batch: PackedBatch) -> list[bytes]:
    """The ids of each row, and the types of its tokens where there are two, in the order of `batch.rows`."""
    ids = [part.numpy().tobytes() for part in batch.input_ids.cpu().split(batch.lengths)]
    if batch.token_types is not None:
        types = batch.token_types.cpu().split(batch.lengths)
        ids = [part + (kinds.numpy().tobytes() if kinds.any() else b"") for part, kinds in zip(ids, types, strict=True)]
    return [b"".join(ids[segment] for segment in chain) for chain in batch.chains]


def _lay_out(batch: PackedBatch, states: Sequence[torch.Tensor]) -> torch.Tensor:
    """The states (T, D) of a batch from those of its rows; a shared beginning has those of its first row."""
    parts: dict[int, torch.Tensor] = {}
    for chain, row_TD in zip(batch.chains, states, strict=True):
        for segment, part in zip(chain, row_TD.split([batch.lengths[one] for one in chain]), strict=True):
            parts.setdefault(segment, part)
    return torch.cat([parts[segment] for segment in range(len(batch.lengths))])
