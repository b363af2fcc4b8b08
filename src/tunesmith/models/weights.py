"""Files of weights, judged by their headers before anything reads them; weights in memory, by their bytes.

A safetensors file is eight bytes with the length of its header, the header (JSON: type, shape and place
of every tensor), and the tensors. The format has no checksum, so damage inside a tensor shows only in
the fingerprint of what was loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tunesmith.errors import InputError
from tunesmith.storage import each_key_once

LARGEST_HEADER = 100_000_000  # bytes; the format's own limit
LARGEST_JSON = 50_000_000  # bytes; the longest vocabularies take some 20 MB
FETCH_AGAIN = "Fetch the file again from where it came"
LFS_POINTER = b"version https://git-lfs"
# How other files begin. Asked only when there is no header, whose length may begin with any byte.
BEGINNINGS = (
    (b"PK", "a zip archive, as torch.save makes them: a pickle, which can run code"),
    (b"\x80", "a pickle, which can run code"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"<", "a web page"),
)
PIECE = 1 << 20  # bytes
# By type: unsigned numbers of the same size, and the bits of the exponent.
EXPONENTS: dict[torch.dtype, tuple[Any, int]] = {
    torch.float16: (np.uint16, 0x7C00),
    torch.bfloat16: (np.uint16, 0x7F80),
    torch.float32: (np.uint32, 0x7F80_0000),
    torch.float64: (np.uint64, 0x7FF0_0000_0000_0000),
}
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16}
BITS |= {"U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64}


def check_safetensors(path: Path) -> None:
    """Refuses a file that is not whole safetensors, from its header and its size.

    Raises:
        InputError: a git-LFS pointer, another format, cut off or too long, or a header that is too long,
            no JSON, or whose tensors overlap, leave holes or do not have the size of their shape.
    """
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes). {FETCH_AGAIN}")
    refuse_pointer(path)
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if length > min(LARGEST_HEADER, size - 8):
            raise InputError(f"{path}: {_say_no_header(start, length, size)}")
        header = _parse(file.read(length), path, "the header", each_key_once)
    _check_places(header, size - 8 - length, path)


def _say_no_header(start: bytes, length: int, size: int) -> str:
    kind = next((kind for begin, kind in BEGINNINGS if start.startswith(begin) and length > LARGEST_HEADER), None)
    if kind:
        return f"not safetensors but {kind}. It is not read; take the model's safetensors"
    if len(start) == 8 and length > LARGEST_HEADER:
        return f"not safetensors: it begins with a header of {length:,} bytes, {LARGEST_HEADER:,} are the most"
    return f"cut off: it should begin with a header of {length:,} bytes and has {size:,} in all. {FETCH_AGAIN}"


def _check_places(header: dict[str, Any], size: int, path: Path) -> None:
    """Tensors lie end to end: none overlaps another, there is nothing between them and nothing after."""
    places = sorted((*_place(entry, name, path), name) for name, entry in header.items() if name != "__metadata__")
    end, before = 0, "the header"
    for begin, stop, name in places:
        if begin != end:
            fault = "overlaps" if begin < end else f"leaves a hole of {begin - end:,} bytes after"
            raise InputError(f"{path}: damaged: tensor {name} {fault} {before}. {FETCH_AGAIN}")
        end, before = stop, name
    if end != size:
        state = "cut off" if size < end else "too long"
        raise InputError(
            f"{path}: {state}: by its header the tensors take {end:,} bytes, the file holds {size:,}. {FETCH_AGAIN}"
        )


def _place(entry: Any, name: str, path: Path) -> tuple[int, int]:
    """First and last byte of a tensor."""
    try:
        (begin, stop), shape, kind = entry["data_offsets"], entry["shape"], entry["dtype"]
        fits = 0 <= begin <= stop and all(side >= 0 for side in shape)
        fits = fits and (kind not in BITS or prod(shape) * BITS[kind] == (stop - begin) * 8)
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path}: damaged: the header's entry for tensor {name} is no such. {FETCH_AGAIN}") from error
    if not fits:
        raise InputError(
            f"{path}: damaged: tensor {name} of shape {shape} and type {kind} cannot lie "
            f"from byte {begin:,} to {stop:,}. {FETCH_AGAIN}"
        )
    return begin, stop


def check_index(path: Path) -> None:
    """Refuses a *.safetensors.index.json that names missing shards, or files that are not shards beside it."""
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise InputError(f"{path}: no list of shards (weight_map) in it. {FETCH_AGAIN}")
    names = sorted(set(shards.values()))
    foreign = [name for name in names if not name.endswith(".safetensors") or Path(name).name != name or "\\" in name]
    if foreign:
        raise InputError(f"{path}: names {foreign[0]} as a shard. Only safetensors files of the same folder are read")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing and not path.with_name(path.name.removesuffix(".index.json")).is_file():
        listed = ", ".join(missing[:20])
        raise InputError(f"{path}: {len(missing)} of {len(names)} shards are missing: {listed}. Fetch them too")


def refuse_pointer(path: Path) -> None:
    """What `git clone` leaves in place of a large file when git-lfs is not installed."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(
                f"{path}: a git-LFS pointer, not the file itself ({path.stat().st_size} bytes). "
                "Run `git lfs pull` in its folder, or fetch the file from the hub"
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    if path.stat().st_size > LARGEST_JSON:
        raise InputError(f"{path}: {path.stat().st_size:,} bytes; such a file has {LARGEST_JSON:,} at most")
    refuse_pointer(path)
    return _parse(path.read_bytes(), path, "the file")


def _parse(
    raw: bytes, path: Path, what: str, make: Callable[[list[tuple[str, Any]]], dict[str, Any]] = dict
) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=make)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{path}: {what} is not valid JSON: {reason}. {FETCH_AGAIN}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: {what} should hold a JSON object, it holds a {type(value).__name__}. {FETCH_AGAIN}")
    return value


def fingerprint(model: nn.Module, without: Sequence[str] = (), given: str = "the model") -> str:
    """sha256 over name, type, shape and bytes of every pretrained weight, by name.

    It does not depend on how the weights were divided into files. Weights are read in threads, some 1 GB/s
    each on a CPU with SHA instructions.

    Args:
        without: names of modules whose weights were drawn at random and are no part of the model.
        given: what the user calls the model.

    Raises:
        InputError: a weight holds NaN or infinity; it is named.
    """
    state = [*model.named_parameters(), *model.named_buffers()]
    kept = model.state_dict().keys()  # of the buffers only those that are saved
    pretrained = sorted(
        ((name, tensor.detach()) for name, tensor in state if name in kept and name.rpartition(".")[0] not in without),
        key=lambda pair: pair[0],
    )
    total = hashlib.sha256()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        read = pool.map(_read, (tensor for _, tensor in pretrained))
        for (name, tensor), (digest, is_finite) in zip(pretrained, read, strict=True):
            if not is_finite:
                raise _broken(name, tensor, given)
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest}\n".encode())
    return total.hexdigest()


def refuse_broken(named: Iterable[tuple[str, torch.Tensor]], given: str) -> None:
    """Refuses floating weights with NaN or infinity: all that is computed from them would be NaN."""
    for name, tensor in named:
        if not _read(tensor.detach())[1]:
            raise _broken(name, tensor, given)


def _read(tensor: torch.Tensor) -> tuple[str, bool]:
    """sha256 of a tensor's bytes, and whether all its numbers are finite; in pieces that stay in the CPU's cache.

    Nothing is copied unless the tensor is not contiguous or not on the CPU. numpy and not torch, which
    would wait for all its threads at every piece.
    """
    raw = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    kind, exponent = EXPONENTS.get(tensor.dtype, (np.uint8, 0))
    digest, is_finite = hashlib.sha256(), True
    for start in range(0, len(raw), PIECE):
        piece = raw[start : start + PIECE]
        digest.update(piece.data)
        # NaN and infinity are the numbers whose exponent has every bit set.
        if exponent and (piece.view(kind) & kind(exponent)).max() == exponent:
            is_finite = False
    return digest.hexdigest(), is_finite


def _broken(name: str, tensor: torch.Tensor, given: str) -> InputError:
    what = "NaN" if torch.isnan(tensor).any() else "infinity"
    return InputError(
        f"{given}: the weight {name} holds {what}. The file was damaged, or saved by a run that failed. "
        f"{FETCH_AGAIN}, or take an earlier checkpoint"
    )
