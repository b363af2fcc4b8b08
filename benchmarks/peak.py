"""Which share of this machine's own matrix rate a LoRA step reaches: useful FLOPs of the step, by torch's counter, over
its time, over the best rate of a large product.

    python benchmarks/peak.py [--repeats 3]

Beside it stands the rate of the frozen layers' own products, forward and backward, one after the other, nothing else:
what is left between that and the large product is their shape, between it and the step everything else.

Useful FLOPs are those of matrix products and attention in the step as tunesmith computes it: a beginning that rows
share counts once. Rows, model and settings are those of sft.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import sft
import torch
from torch.utils.flop_counter import FlopCounterMode

SIZE = 2048
SECONDS = 3.0
TOKENS, REPEATS = 1232, 50  # a third of what sft.py times in three steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    from tunesmith.runtime import choose_precision

    dtype = choose_precision("auto", torch.device("cpu"))
    shares = []
    for number in range(options.repeats):
        best = find_rate(dtype)
        own = find_rate_of_layers(dtype)
        flops, seconds = measure_step(dtype)
        shares.append(flops / seconds / best)
        print(
            f"round {number + 1}: product of {SIZE} x {SIZE} {best / 1e9:,.0f} GFLOP/s, the layers' own "
            f"{own / 1e9:,.0f}, step {flops / 1e9:,.0f} GFLOP "
            f"in {seconds:.2f} s = {flops / seconds / 1e9:,.0f} GFLOP/s, {shares[-1]:.1%}"
        )
    print(f"{dtype}, {torch.get_num_threads()} threads: median {statistics.median(shares):.1%}")
    return 0


def find_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a large product: the fastest of as many as fit into SECONDS."""
    a, b = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))
    taken, start = [], time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        began = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - began)
    return float(2 * SIZE**3 / min(taken))


def find_rate_of_layers(dtype: torch.dtype) -> float:
    """FLOP/s of the products of all frozen layers of the step, without and with its gradient to the input: each shape
    timed by itself, the fastest of REPEATS, and counted as often as it occurs."""
    from tunesmith.models.load import load_network

    model = load_network(sft.MODEL, "generation").model.model  # type: ignore[union-attr]
    shapes = Counter(tuple(module.weight.shape) for module in model.modules() if isinstance(module, torch.nn.Linear))
    flops = seconds = 0.0
    for (size_out, size_in), count in shapes.items():
        x_TI, w_OI, g_TO = (
            torch.randn(shape).to(dtype) for shape in ((TOKENS, size_in), (size_out, size_in), (TOKENS, size_out))
        )
        for left, right in ((x_TI, w_OI.T), (g_TO, w_OI)):
            seconds += count * min(_seconds_of(left, right) for _ in range(REPEATS))
            flops += count * 2 * TOKENS * size_in * size_out
    return flops / seconds


def _seconds_of(left: torch.Tensor, right: torch.Tensor) -> float:
    began = time.perf_counter()
    left @ right
    return time.perf_counter() - began


def measure_step(dtype: torch.dtype) -> tuple[float, float]:
    """FLOPs and seconds of a step after the first WARM, in the mean."""
    name = str(dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sft.prepare("lora", work)
        result = sft.run_tunesmith("lora", name, "balanced", work)
        aten = torch.ops.aten
        # torch leaves out products that are added in place.
        counter = FlopCounterMode(
            display=False, custom_mapping={aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
        )
        with counter, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sft.run_tunesmith("lora", name, "balanced", work)
        num_tokens = sum(len(row["ids"]) for row in json.loads((work / "rows.json").read_text()))
    steps = sft.STEPS - sft.WARM
    return counter.get_total_flops() * result.tokens / num_tokens / steps, result.seconds / steps


if __name__ == "__main__":
    sys.exit(main())
