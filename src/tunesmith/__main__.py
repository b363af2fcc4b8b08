"""How the command begins: with the C library's lists of small blocks off and huge pages on, which can be told only to a
new process.

PyTorch asks glibc for tensors that begin at a multiple of 64 bytes. For each glibc cuts a larger block and puts the
ends, 32 to 96 bytes, on lists from which they never grow together with their neighbours again: what a tensor leaves is
then too small for the next one of its size. Without these lists a LoRA run holds a sixth less memory, in the same time.

Fresh memory comes in pages of 4 kB unless a program asks for huge ones, 2 MB each. With these full tuning, whose
gradients are fresh at every step, takes a twelfth less time, and no more memory (`docs/log.md` has both).
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

TUNABLES = "GLIBC_TUNABLES"
SETTINGS = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:glibc.malloc.hugetlb=1"


def main() -> None:
    """The console script."""
    if not is_settled():
        begin_again()
    from tunesmith.cli import main as run  # it takes a second to import

    run()


def is_settled() -> bool:
    """Whether nothing is to be set: this process began so, or the user or another C library has a say."""
    given = os.environ.get(TUNABLES)
    if given == SETTINGS:
        del os.environ[TUNABLES]  # of no use to the programs that this one starts
    return given is not None or not (sys.platform == "linux" and sys.executable and is_glibc())


def is_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError):
        return False


def begin_again() -> None:
    """The same command in this process's place; comes back only where that is not allowed."""
    with suppress(OSError):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {TUNABLES: SETTINGS})  # noqa: S606 (our own command)


if __name__ == "__main__":
    main()
