"""The examples, executed as a reader would: every cell, every line, and what they claim."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tests.parity.tiny import make_model, make_tokenizer

from tunesmith import cli

EXAMPLES = Path(__file__).parents[2] / "examples"
SOURCE = EXAMPLES.parent / "src"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the notebook asks for its folder
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path


@pytest.mark.fetch
@pytest.mark.soak
@pytest.mark.filterwarnings("default")  # jupyter's own
def test_the_notebook_runs_from_top_to_bottom(place: Path) -> None:
    notebook = nbformat.read(EXAMPLES / "fine_tuning.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(place)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    text = "\n".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/html", "")) for output in outputs
    )
    assert "[Yes][,][ up][ to][ ][1][5]" in text, "trained tokens are shown in brackets"
    assert "[<|im_end|>]" in text
    found = re.search(r"held-out loss ([\d.]+) before, ([\d.]+) after 10 steps", text)
    assert found is not None
    assert float(found[2]) < 0.95 * float(found[1])
    for system in ("majority", "tf-idf", "linear-probe", "full", "lora", "head-only"):
        assert f"<td>{system}</td>" in text
    assert re.search(r"base:\s+\S", text)
    assert re.search(r"tuned:\s+\S", text)


@pytest.mark.fetch
@pytest.mark.soak
def test_the_script_runs(place: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "python_api.py"), str(place / "results")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"^positive 0\.\d\d\nnegative 0\.\d\d$", done.stdout, re.MULTILINE)
    assert re.search(r"majority +0\.\d", done.stdout)
    assert (place / "results" / "comparison" / "report.html").is_file()
    assert done.stdout.splitlines()[-1].strip()


@pytest.mark.soak
def test_the_pictures_of_the_ranking_page_can_be_taken(place: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if shutil.which("chromium") is None:
        pytest.skip("no browser: on Debian, apt-get install chromium")
    command = [sys.executable, str(EXAMPLES / "feedback_screenshots.py"), "--output", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in place.glob("*.png")} == {"feedback-owner.png", "feedback-rank.png"}


def test_the_loop_of_feedback_runs_from_prompts_to_the_judge(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script's own commands, taken down and then run one after the other here, on tiny models and fewer prompts."""
    for name, kind, task in (("writer", "llama", "generation"), ("reader", "bert", "ranking")):
        make_model(kind, task).save_pretrained(place / name)
        make_tokenizer().save_pretrained(place / name)
    shim, log, folder = place / "bin" / "tunesmith", place / "commands", place / "loop"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done >>{log}\necho >>{log}\n')
    shim.chmod(0o755)
    settings = {"MODEL": str(place / "writer"), "READER": str(place / "reader"), "STEPS": "1", "WORD": "w7"}
    environment = {**os.environ, **settings, "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["sh", str(EXAMPLES / "rlhf.sh"), str(folder)], check=True, env=environment, timeout=60)
    prompts = {name: (folder / f"{name}.jsonl").read_text().splitlines() for name in ("prompts", "held-out")}
    assert (len(prompts["prompts"]), len(prompts["held-out"])) == (160, 40)
    assert not set(prompts["prompts"]) & set(prompts["held-out"])
    for name, lines in prompts.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines[:40]) + "\n")

    commands = [part.splitlines() for part in log.read_text().removesuffix("\n\n").split("\n\n")]
    names = [" ".join(command[: 1 + (command[0] == "feedback")]) for command in commands]
    assert names == ["feedback sample", "feedback simulate", "feedback export", "reward", "align", "judge"]
    said = []
    for command in commands:
        fewer = ["30" if before == "--max-items" else word for before, word in pairwise(["", *command])]
        assert cli.run(fewer) == 0, capsys.readouterr().err
        said.append(capsys.readouterr().out)
    assert "people that it did not learn from (1)" in said[3]
    assert f"curves  {folder / 'ppo' / 'report.html'}" in said[4]
    assert (folder / "ppo" / "report.html").is_file()
    assert "preferred" in said[5]
