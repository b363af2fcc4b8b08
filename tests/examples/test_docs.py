"""Commands in the docs, executed in the order in which they stand: what is printed there is what they print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tunesmith import cli

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(text file=\S+|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints; `cat` and a redirection are all that is known of a shell."""
    words, _, target = command.partition(" > ")
    arguments = shlex.split(words)
    if arguments[0] == "cat":
        return Path(arguments[1]).read_text(encoding="utf-8")
    assert arguments[0] == "tunesmith"
    cli.run(arguments[1:])
    said = capsys.readouterr()
    if target:
        Path(target).write_text(said.out, encoding="utf-8")
        return said.err
    return said.out + said.err


def executed(document: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The document with the outputs that its commands have now."""

    def execute(block: re.Match[str]) -> str:
        kind, body = block[1], block[2]
        if kind.startswith("text"):
            Path(kind.partition("=")[2]).write_text(body, encoding="utf-8")
            return block[0]
        command = body.partition("\n")[0]
        output = run(command.removeprefix("$ "), capsys)
        shown = "".join(f"{line.rstrip()}\n" for line in output.splitlines())
        return f"```console\n{command}\n{shown}```"

    return BLOCK.sub(execute, document)


@pytest.mark.parametrize("name", [pytest.param("data.md", marks=pytest.mark.fetch), "feedback.md"])
def test_commands_print_what_the_docs_show(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    document = (DOCS / name).read_text(encoding="utf-8")
    found = executed(document, capsys)
    (tmp_path / "as-executed.md").write_text(found, encoding="utf-8")
    assert found == document
    assert len(BLOCK.findall(document)) >= 4


def test_the_table_of_methods_is_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, rest = (DOCS / "methods.md").read_text(encoding="utf-8").partition("<!-- table -->\n")
    assert cli.run(["methods", "--markdown"]) == 0
    assert rest.partition("<!-- end of table -->")[0] == capsys.readouterr().out
