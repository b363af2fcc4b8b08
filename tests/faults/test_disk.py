"""A disk that refuses: every file operation of a save fails once, and the checkpoint before it still loads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def faulty_io(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("faults are put between Python and libc on Linux, with a C compiler")
    library = tmp_path_factory.mktemp("faulty") / "faulty_io.so"
    subprocess.run(
        [compiler, "-O1", "-Wall", "-shared", "-fPIC", "-o", library, HERE / "faulty_io.c", "-ldl"], check=True
    )
    return library


def test_every_file_operation_of_a_save_may_fail(faulty_io: Path, tmp_path: Path) -> None:
    command = [sys.executable, HERE / "faulty_saves.py", faulty_io, tmp_path]
    environment = {**os.environ, "LD_PRELOAD": str(faulty_io), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 5
    for fault in found:
        assert fault["operations"] > 20, fault
        assert fault["wrong"] == [], fault["fault"]
