"""What a process asks of the system."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tunesmith.runtime import MOST_KERNELS, choose_precision

FAULTS = """
import resource, torch
from tunesmith.runtime import prepare_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [torch.ones(2**21) for _ in range(16)]  # 8 MB each
    del made
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
usual = faults()
prepare_memory()
faults()
print(usual, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc")
def test_freed_memory_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    usual, kept = map(int, done.stdout.split())
    if usual < 1000:
        pytest.skip("this system's allocator keeps freed memory anyway")
    assert kept < usual / 10


KERNELS = """
import sys, torch
from tunesmith.runtime import current_memory, prepare_memory

if sys.argv[1] == "prepared":
    prepare_memory()
weight = torch.ones(256, 256, dtype=torch.bfloat16)
torch.nn.functional.linear(weight, weight)
before = current_memory(torch.device("cpu"))
for size in range(257, 757):
    torch.nn.functional.linear(torch.ones(size, 256, dtype=torch.bfloat16), weight)
print(current_memory(torch.device("cpu")) - before)
"""


def test_kernels_for_sizes_that_do_not_come_again_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    if choose_precision("auto", torch.device("cpu")) != torch.bfloat16:
        pytest.skip("this chip does not multiply in bfloat16, and what it keeps to pretend so is no kernels alone")
    for name in MOST_KERNELS:
        monkeypatch.delenv(name, raising=False)
    grown = {}
    for way in ("usual", "prepared"):
        done = subprocess.run([sys.executable, "-c", KERNELS, way], capture_output=True, text=True, check=True)
        grown[way] = int(done.stdout)
    if grown["usual"] < 50e6:
        pytest.skip("no kernels are made for bfloat16 on this chip")
    assert grown["prepared"] < grown["usual"] / 2
