"""Pre-training from scratch beside compressors and nanoGPT's recipe, on the King James text.

    python benchmarks/pretraining.py texts FOLDER            kjv.txt and foldoc.jsonl, from Debian's packages
    python benchmarks/pretraining.py compressors TEXT        bits a byte of the held-out part
    python benchmarks/pretraining.py nanogpt TEXT --cpu-seconds 1200     ten minutes of two cores

The held-out part is the one that `tunesmith pretrain` tests on. nanoGPT's recipe is written here from what its
repository (github.com/karpathy/nanoGPT, MIT) publishes in train.py, model.py, config/train_shakespeare_char.py and, for
a CPU, its README: characters, learned positions, LayerNorm, GELU, tied embeddings, AdamW 1e-3 with betas 0.9 and 0.99,
decay 0.1 on matrices, clipping at 1, 100 steps of warm-up, a cosine to a tenth, no dropout on a CPU.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import math
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from tunesmith.config_pretrain import PretrainConfig
from tunesmith.data.corpus import divide, read_texts

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip -9": lambda text: gzip.compress(text, 9),
    "bzip2 -9": lambda text: bz2.compress(text, 9),
    "xz -9e": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
}


def make_texts(folder: Path) -> None:
    """The texts of the packages bible-kjv-text, bible-kjv and dict-foldoc, which apt fetches."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        subprocess.run(["apt-get", "download", "bible-kjv-text", "bible-kjv", "dict-foldoc"], cwd=work, check=True)
        for package in work.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, work / "root"], check=True)
        root = work / "root" / "usr"
        bible = [root / "bin" / "bible", "-p", root / "lib", "-l", "4000", "Gen1:1-Rev22:21"]
        text = subprocess.run(bible, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
        (folder / "kjv.txt").write_bytes(text.lstrip(b"\n"))
        articles = read_dictionary(root / "share" / "dictd")
    with (folder / "foldoc.jsonl").open("w", encoding="utf-8") as file:
        for article in articles:
            file.write(json.dumps({"text": article}, ensure_ascii=False) + "\n")


def read_dictionary(folder: Path) -> list[str]:
    """The articles of a dictionary in dictd's format: an index of offsets in base 64, and a gzip file of texts."""
    digits = {
        digit: value for value, digit in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
    }

    def number(text: str) -> int:
        value = 0
        for digit in text:
            value = 64 * value + digits[digit]
        return value

    whole = gzip.decompress((folder / "foldoc.dict.dz").read_bytes())
    places = set()
    for line in (folder / "foldoc.index").read_text(encoding="utf-8").splitlines():
        word, start, size = line.split("\t")[:3]
        if not word.startswith("00-database"):
            places.add((number(start), number(size)))
    texts = [whole[start : start + size].decode("utf-8") for start, size in sorted(places)]
    return [re.sub(r"\n   ", "\n", text).strip() + "\n" for text in texts]


def divided(path: Path) -> tuple[str, str]:
    """What is trained or watched, and what is held out, as `tunesmith pretrain` divides a text."""
    config = PretrainConfig(data=str(path), architecture="llama")
    parts = divide(read_texts(str(path), config), config)
    train, validation, test = (
        "".join(row.text for row in part.rows) for part in (parts.train, parts.validation, parts.test)
    )
    return train + validation, test


def compress(path: Path) -> None:
    """Of the held-out part alone, and what it adds to all that comes before."""
    before, test = (text.encode() for text in divided(path))
    print(f"held out: {len(test):,} of {len(before) + len(test):,} bytes")
    for name, run in COMPRESSORS.items():
        alone, added = len(run(test)), len(run(before + test)) - len(run(before))
        print(f"{name:9} {8 * alone / len(test):.3f} bits a byte alone, {8 * added / len(test):.3f} behind the rest")


@dataclass(frozen=True)
class Recipe:
    """nanoGPT's for a CPU, but for `cpu_seconds`, of all threads together, which stand in place of steps: they are the
    same whoever else is at work."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    block: int = 64
    batch: int = 12
    rate: float = 1e-3
    least_rate: float = 1e-4
    warmup: int = 100
    decay: float = 0.1
    clip: float = 1.0
    cpu_seconds: float = 1200.0


class Block(nn.Module):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width, self.heads = recipe.width, recipe.heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        size, length, width = x_BTD.shape
        parts = self.qkv(self.norm1(x_BTD)).split(width, dim=2)
        q, k, v = (part.view(size, length, self.heads, -1).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(seen.transpose(1, 2).reshape(size, length, width))
        return x_BTD + self.down(F.gelu(self.up(self.norm2(x_BTD))))


class NanoGPT(nn.Module):
    def __init__(self, recipe: Recipe, vocabulary: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, recipe.width), nn.Embedding(recipe.block, recipe.width)
        self.blocks = nn.ModuleList(Block(recipe) for _ in range(recipe.layers))
        self.norm = nn.LayerNorm(recipe.width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                is_last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * recipe.layers) if is_last else 0.02)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = self.words(ids_BT) + self.places(torch.arange(ids_BT.shape[1]))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return F.linear(self.norm(x_BTD), self.words.weight)


def train_nanogpt(path: Path, recipe: Recipe) -> None:
    """Trains for its time, and prints the bits a byte of the held-out part."""
    torch.manual_seed(1337)
    before, test = divided(path)
    train = before[: -len(test)]  # what `tunesmith pretrain` trains on; the rest of it is its validation part
    alphabet = {character: index for index, character in enumerate(sorted(set(before + test)))}
    ids_N = torch.tensor([alphabet[character] for character in train])
    model = NanoGPT(recipe, len(alphabet))
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.99), fused=True)
    started, step = time.process_time(), 0
    while (done := (time.process_time() - started) / recipe.cpu_seconds) < 1:
        falling = recipe.least_rate + 0.5 * (1 + math.cos(math.pi * done)) * (recipe.rate - recipe.least_rate)
        for group in optimizer.param_groups:
            group["lr"] = min(falling, recipe.rate * (step + 1) / recipe.warmup)
        starts_B = torch.randint(len(ids_N) - recipe.block, (recipe.batch,))
        rows = torch.stack([ids_N[start : start + recipe.block + 1] for start in starts_B])
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 500 == 0:
            print(f"step {step:,}  loss {loss.item():.3f}  {time.process_time() - started:.0f} CPU seconds", flush=True)
    test_N = torch.tensor([alphabet[character] for character in test])
    bits = measure(model.eval(), test_N, recipe.block) / len(test.encode())
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_read = step * recipe.batch * recipe.block
    print(
        f"{num_parameters:,} parameters, {step:,} steps, {num_read:,} characters ({num_read / len(train):.2f} passes)"
    )
    print(f"{bits:.4f} bits a byte after {recipe.cpu_seconds:.0f} CPU seconds")


@torch.inference_mode()
def measure(model: nn.Module, ids_N: torch.Tensor, block: int) -> float:
    """Bits of a text, nearly every character with half a block before it, as `tunesmith pretrain` measures it."""
    total, half, judged = 0.0, block // 2, 1
    for start in range(0, len(ids_N) - 1, half):
        row = ids_N[start : start + block + 1]
        losses = F.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="none")
        total += losses[judged - start - 1 :].sum().item()
        judged = start + len(row)
        if judged == len(ids_N):
            break
    return total / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("texts", "compressors", "nanogpt"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--cpu-seconds", type=float, default=Recipe.cpu_seconds)
    parser.add_argument("--block", type=int, default=Recipe.block)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--width", type=int, default=Recipe.width)
    given = parser.parse_args()
    if given.what == "texts":
        make_texts(given.path)
    elif given.what == "compressors":
        compress(given.path)
    else:
        sizes = {"block": given.block, "batch": given.batch, "width": given.width}
        train_nanogpt(given.path, Recipe(**sizes, cpu_seconds=given.cpu_seconds))


if __name__ == "__main__":
    main()
