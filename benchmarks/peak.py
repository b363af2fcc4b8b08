"""Which share of this machine's own matrix rate a LoRA step reaches: useful FLOPs of the step, by torch's counter, over
its time, over the best rate of a large product.

    python benchmarks/peak.py [--repeats 3]

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
from pathlib import Path

import sft
import torch
from torch.utils.flop_counter import FlopCounterMode

SIZE = 2048
SECONDS = 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    from tunesmith.runtime import choose_precision

    dtype = choose_precision("auto", torch.device("cpu"))
    shares = []
    for number in range(options.repeats):
        best = find_rate(dtype)
        flops, seconds = measure_step(dtype)
        shares.append(flops / seconds / best)
        print(
            f"round {number + 1}: product of {SIZE} x {SIZE} {best / 1e9:,.0f} GFLOP/s, step {flops / 1e9:,.0f} GFLOP "
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
