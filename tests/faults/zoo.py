"""Malicious and damaged model folders, made on the spot from a tiny clean one.

Each beast is a function that spoils a folder. What would run writes the canary file.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.parity.tiny import make_model, make_tokenizer

from tunesmith.errors import InputError

WEIGHTS = "model.safetensors"


class Payload:
    """Unpickling it writes the canary file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (code_for(self.canary),)


def code_for(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').write('ran')"


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return str(caught.value)


def save_clean(folder: Path, seed: int = 0, **more: Any) -> Path:
    """A small Llama with its tokenizer, which loads."""
    model = make_model("llama", "generation", seed=seed)
    model.save_pretrained(folder, **more)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, **more: Any) -> Path:
    """A LoRA adapter as plain PEFT saves it, with weights that change something."""
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = get_peft_model(make_model("llama", "generation"), config)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    edit(folder / "adapter_config.json", base_model_name_or_path=str(base), **more)
    return folder


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def plant(folder: Path, canary: Path, name: str = "evil") -> None:
    """Python files that write the canary when they are imported."""
    for module in (f"modeling_{name}", f"configuration_{name}", f"tokenization_{name}", name):
        (folder / f"{module}.py").write_text(code_for(canary) + "\nclass Evil: pass\n")
    generate = folder / "custom_generate" / "generate.py"
    generate.parent.mkdir()
    generate.write_text(code_for(canary))


def zipped_pickle(canary: Path) -> bytes:
    """As torch.save lays it out."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(canary)))
    return packed.getvalue()


# Headers of safetensors


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def _overlap(header: dict[str, Any]) -> None:
    first, second = _two(header)
    header[second]["data_offsets"] = header[first]["data_offsets"]


def _hole(header: dict[str, Any]) -> None:
    first, _ = _two(header)
    del header[first]


def _out_of_range(header: dict[str, Any]) -> None:
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    begin, stop = header[last]["data_offsets"]
    header[last]["data_offsets"] = [begin, stop + 8]
    header[last]["dtype"] = "F4"  # of a size we do not know


def _wrong_shape(header: dict[str, Any]) -> None:
    header[_two(header)[0]]["shape"] = [10**12]


def _two(header: dict[str, Any]) -> list[str]:
    """Names of two tensors of the same size, the first two in the file that are neighbours."""
    names = sorted((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    for first, second in pairwise(names):
        if header[first]["shape"] == header[second]["shape"]:
            return [first, second]
    raise AssertionError


def spoil_tensor(folder: Path, value: float) -> str:
    """One number in the middle of the weights."""
    weights = load_file(folder / WEIGHTS)
    name = sorted(weights)[len(weights) // 2]
    weights[name].view(-1)[3] = value
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return name


def flip_bit(path: Path, tensor: str, bit: int = 6) -> None:
    """In a tensor's first number (float32): bit 6 of its last byte is the exponent's highest, 1.0 becomes infinity."""
    raw = bytearray(path.read_bytes())
    length = struct.unpack("<Q", raw[:8])[0]
    begin = json.loads(raw[8 : 8 + length])[tensor]["data_offsets"][0]
    raw[8 + length + begin + 3] ^= 1 << bit
    path.write_bytes(raw)


# The beasts: what spoils the folder, the words of the refusal, and what is asked to read it

Spoil = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Beast:
    spoil: Spoil
    words: tuple[str, ...]
    reader: str = "model"


def _pickled_only(name: str) -> Spoil:
    def spoil(folder: Path, canary: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))

    return spoil


def _weights(make: Callable[[Path], bytes]) -> Spoil:
    return lambda folder, canary: (folder / WEIGHTS).write_bytes(make(canary))


def _config(name: str, **changes: Any) -> Spoil:
    def spoil(folder: Path, canary: Path) -> None:
        plant(folder, canary)
        edit(folder / name, **changes)

    return spoil


def _header(change: Callable[[dict[str, Any]], None]) -> Spoil:
    return lambda folder, _: rewrite_header(folder / WEIGHTS, change)


def _bytes(change: Callable[[bytes], bytes]) -> Spoil:
    return lambda folder, _: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def _bomb(_: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(50_000_000))
    return packed.getvalue()


def _index(**shards: str) -> Spoil:
    def spoil(folder: Path, canary: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(canary)))
        edit(folder / f"{WEIGHTS}.index.json", metadata={}, weight_map=shards)

    return spoil


def _lose_shard(folder: Path, _: Path) -> None:
    shutil.rmtree(folder)
    save_clean(folder, max_shard_size="20KB")
    next(iter(sorted(folder.glob("model-00002-*")))).unlink()


def _nest(**changes: Any) -> dict[str, Any]:
    return {"text_config": {"model_type": "llama", "inner": [{"deep": changes}]}}


def _older_config(folder: Path, canary: Path) -> None:
    """A config.json may send its reader to another file."""
    _config("config.4.0.0.json", auto_map=CODE)(folder, canary)
    edit(folder / "config.json", configuration_files=["config.4.0.0.json"])


def _huge_header(folder: Path, _: Path) -> None:
    """As long as it says, and with a hole in the file, so that it takes no space."""
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000) + b"{")
        file.truncate(200_000_100)


def _leave_state(folder: Path, canary: Path) -> None:
    """What a trainer leaves beside the weights, without the weights."""
    (folder / WEIGHTS).unlink()
    for name in ("rng_state.pth", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"
CODE = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
CALLABLE = ("config.json", "auto_map", "names Python code")

BEASTS: dict[str, Beast] = {
    # pickles
    "pickled weights": Beast(_pickled_only("pytorch_model.bin"), ("pytorch_model.bin", "no model.safetensors beside")),
    "pickled shards": Beast(
        _pickled_only("pytorch_model-00001-of-00001.bin"), ("00001.bin", "no model.safetensors beside")
    ),
    "a checkpoint of lightning": Beast(_pickled_only("last.ckpt"), ("last.ckpt", "can run code")),
    "keras": Beast(_pickled_only("model.h5"), ("model.h5", "no model.safetensors beside")),
    "a pickle called safetensors": Beast(
        _weights(lambda canary: pickle.dumps(Payload(canary))), (WEIGHTS, "not safetensors but a pickle")
    ),
    "torch.save called safetensors": Beast(_weights(zipped_pickle), (WEIGHTS, "not safetensors but a zip archive")),
    "a zip bomb": Beast(_weights(_bomb), (WEIGHTS, "not safetensors but a zip archive")),
    "an index of pickles": Beast(
        _index(a="pytorch_model.bin"), ("model.safetensors.index.json", "names pytorch_model.bin as a shard")
    ),
    "an index of other folders": Beast(
        _index(a="../x.safetensors"), ("model.safetensors.index.json", "names ../x.safetensors")
    ),
    "weights by another name": Beast(
        _config("config.json", transformers_weights="adapter_model.bin"), ("config.json", "transformers_weights")
    ),
    # code
    "code": Beast(_config("config.json", auto_map=CODE), CALLABLE),
    "code of an unknown architecture": Beast(_config("config.json", auto_map=CODE, model_type="evil"), CALLABLE),
    "code in a part": Beast(
        _config("config.json", **_nest(auto_map=CODE)),
        ("config.json", "text_config.inner.deep.auto_map", "Python code"),
    ),
    "trust asked for in a part": Beast(
        _config("config.json", **_nest(trust_remote_code=True)), ("config.json", "trust_remote_code", "asks for code")
    ),
    "code of the tokenizer": Beast(
        _config("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]}),
        ("tokenizer_config.json", "auto_map", "names Python code"),
        "tokenizer",
    ),
    "code for generating": Beast(
        _config("generation_config.json", custom_generate="."), ("generation_config.json", "custom_generate")
    ),
    "code of the processor": Beast(
        _config("processor_config.json", auto_map={"AutoProcessor": "evil.Evil"}), ("processor_config.json", "auto_map")
    ),
    "code in an older configuration": Beast(_older_config, ("config.4.0.0.json", "auto_map", "names Python code")),
    "an attention kernel": Beast(
        _config("config.json", attn_implementation="evil/kernel"), ("config.json", "attention kernel")
    ),
    "an attention kernel by its inner name": Beast(
        _config("config.json", _attn_implementation_internal="evil/kernel@v1:run"), ("config.json", "attention kernel")
    ),
    "an attention kernel of a part": Beast(
        _config("config.json", **_nest(_attn_implementation={"": "eager", "vision": "paged|evil/kernel"})),
        ("config.json", "text_config.inner.deep._attn_implementation", "attention kernel"),
    ),
    "a kernel for experts": Beast(
        _config("config.json", experts_implementation="deepgemm"), ("config.json", "kernel for experts")
    ),
    "kernels": Beast(_config("config.json", use_kernels=True), ("config.json", "use_kernels", "fetched from the hub")),
    "quantised weights": Beast(
        _config("config.json", quantization_config={"quant_method": "fp8"}), ("config.json", "quantised weights")
    ),
    "an unknown architecture": Beast(
        _config("config.json", model_type="lama"), ("config.json", "unknown architecture 'lama'", "llama")
    ),
    "an architecture that fetches its parts": Beast(
        _config("config.json", model_type="dpt", backbone="evil/backbone"),
        ("config.json", "unknown architecture 'dpt'"),
    ),
    "tokenizers within": Beast(
        _config("tokenizer_config.json", tokenizer_class="RagTokenizer"),
        ("tokenizer_config.json", "further tokenizers"),
    ),
    # damage
    "a git-LFS pointer": Beast(_weights(lambda _: POINTER), (WEIGHTS, "a git-LFS pointer", "git lfs pull")),
    "a git-LFS pointer as tokenizer": Beast(
        lambda folder, _: (folder / "tokenizer.json").write_bytes(POINTER),
        ("tokenizer.json", "a git-LFS pointer"),
        "tokenizer",
    ),
    "an empty file": Beast(_weights(lambda _: b""), (WEIGHTS, "empty (0 bytes)")),
    "five bytes": Beast(_weights(lambda _: b"12345"), (WEIGHTS, "cut off")),
    "no end": Beast(_bytes(lambda raw: raw[:-100]), (WEIGHTS, "cut off", "the tensors take", "the file holds")),
    "half a header": Beast(_bytes(lambda raw: raw[:100]), (WEIGHTS, "cut off", "and has 100 in all")),
    "too long": Beast(_bytes(lambda raw: raw + b"x"), (WEIGHTS, "too long", "the file holds")),
    "a huge header": Beast(_huge_header, (WEIGHTS, "a header of 200,000,000 bytes", "100,000,000")),
    "no JSON": Beast(_bytes(lambda raw: raw[:8] + b"[" + raw[9:]), (WEIGHTS, "the header is not valid JSON")),
    "a tensor twice": Beast(
        _weights(lambda _: struct.pack("<Q", 15) + b'{"a":{},"a":{}}'), (WEIGHTS, "the key 'a' stands twice")
    ),
    "overlapping tensors": Beast(_header(_overlap), (WEIGHTS, "overlaps")),
    "a hole": Beast(_header(_hole), (WEIGHTS, "leaves a hole of")),
    "beyond the end": Beast(_header(_out_of_range), (WEIGHTS, "cut off", "the tensors take")),
    "an impossible shape": Beast(_header(_wrong_shape), (WEIGHTS, "of shape [1000000000000]", "cannot lie")),
    "a missing shard": Beast(_lose_shard, ("model.safetensors.index.json", "shards are missing: model-00002-of-")),
    "a trainer's state only": Beast(_leave_state, ("no weights in", WEIGHTS)),
    "no weights": Beast(lambda folder, _: (folder / WEIGHTS).unlink(), ("no weights in", WEIGHTS)),
    "NaN": Beast(lambda folder, _: spoil_tensor(folder, np.nan), ("the weight model.layers.", "holds NaN")),
    "a flipped bit": Beast(
        lambda folder, _: flip_bit(folder / WEIGHTS, "model.norm.weight"), ("model.norm.weight holds infinity",)
    ),
    "half a configuration": Beast(
        lambda folder, _: (folder / "config.json").write_text('{"model_type": "lla'),
        ("config.json", "not valid JSON"),
    ),
    "a list as configuration": Beast(
        lambda folder, _: (folder / "config.json").write_text("[]"), ("config.json", "holds a list")
    ),
    "a configuration nested deeply": Beast(
        lambda folder, _: (folder / "config.json").write_text('{"a":' * 50_000 + "1" + "}" * 50_000),
        ("config.json", "nested too deeply"),
    ),
    "a configuration of other sizes": Beast(
        lambda folder, _: edit(folder / "config.json", hidden_size=64), ("the weights lack", "here (")
    ),
    "a configuration of nonsense": Beast(
        lambda folder, _: edit(folder / "config.json", num_hidden_layers="many"), ("cannot load model",)
    ),
}
