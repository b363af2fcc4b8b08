"""What a process asks of the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from tunesmith.runtime import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [torch.ones(2**21) for _ in range(16)]  # 8 MB each
    del made
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
usual = faults()
keep_freed_memory()
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
