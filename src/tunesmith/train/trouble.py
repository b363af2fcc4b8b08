"""What breaks a step: too little memory, and numbers that are none. How to tell, and what to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tunesmith.data.pack import pack
from tunesmith.errors import InputError
from tunesmith.models.load import Network
from tunesmith.records import TokenizedExample
from tunesmith.runtime import autocast
from tunesmith.storage import write_json
from tunesmith.train.objective import judged_losses
from tunesmith.train.step import NonFiniteError, Plan

REPORT = "nonfinite.json"


def is_out_of_memory(error: BaseException) -> bool:
    """Of an accelerator, or of the CPU, where torch has no error of its own for it."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)
    )


def out_of_memory(step: int, plan: Plan, rows: Sequence[TokenizedExample]) -> InputError:
    """To raise when half a batch does not fit either. The flags it names train the same in a quarter; with
    updates in the backward pass there are no parts, and none that train the same."""
    longest = max(len(row.input_ids) for row in rows)
    size = max(1, plan.batch_size // 4)
    times = plan.accumulation * plan.batch_size // size
    split, advice = (
        ("", f"In less: --per-device-train-batch-size {size}, which are smaller steps.")
        if plan.optimizer_in_backward
        else (
            ", split in two as well",
            f"The same training in less: --per-device-train-batch-size {size} --gradient-accumulation-steps {times}.",
        )
    )
    return InputError(
        f"step {step}: out of memory, with batches of {plan.batch_size} rows{split}; the longest row has {longest:,} "
        f"tokens. {advice} Or --memory low, a smaller --max-length, or a method that trains less (lora, bitfit)"
    )


def find_nonfinite_rows(network: Network, rows: Sequence[TokenizedExample], plan: Plan) -> list[int]:
    """Which rows have a loss that is NaN or infinite, each alone and without dropout."""
    network.model.eval()
    found = []
    with torch.no_grad(), autocast(plan.device, plan.dtype):
        for row in rows:
            losses_N, _ = judged_losses(network, pack([row], network.num_virtual).to(plan.device), plan.terms)
            if not torch.isfinite(losses_N).all():
                found.append(row.row)
    network.model.train()
    return found


def report_nonfinite(
    error: NonFiniteError, guilty: Sequence[int], name_row: Callable[[int], str], folder: Path, mend: str
) -> NonFiniteError:
    """Writes `nonfinite.json` beside the run's other files; returns the error to raise, rows by file and line."""
    rows = [{"row": row, "origin": name_row(row), "loss_is_finite": row not in guilty} for row in error.rows]
    numbers = {"loss": str(error.taken.loss), "grad_norm": str(error.taken.grad_norm)}
    write_json(folder / REPORT, {"step": error.step, **numbers, "rows": rows})
    what = "Rows whose loss is not finite" if guilty else "Rows of this step, each with a finite loss"
    shown = ", ".join(name_row(row) for row in (guilty or error.rows)[:20])
    more = (
        f"{what}: {shown}. The state before the step is saved, and {folder / REPORT} describes the step. Lower "
        f"--learning-rate, mend these rows, or pass such steps over with --on-nonfinite skip. {mend}"
    )
    return NonFiniteError(error.step, error.taken, error.rows, more.rstrip())
