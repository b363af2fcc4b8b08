"""How the command begins: once more, with settings of glibc's, and not where somebody else has a say."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tunesmith import __main__ as start

PROGRAM = """
import os, sys
from tunesmith import __main__ as start
if not start.is_settled():
    start.begin_again()
began = open("/proc/self/environ", "rb").read()  # glibc cuts what it has read at its colons
print(os.getpid(), b"GLIBC_TUNABLES=glibc.malloc.tcache_count=0" in began, os.environ.get(start.TUNABLES), sys.argv[1:])
"""
needs_glibc = pytest.mark.skipif(not (sys.platform == "linux" and start.is_glibc()), reason="needs glibc")


def begin(**more: str) -> tuple[int, str]:
    """The process's number, and what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != start.TUNABLES} | more
    command = [sys.executable, "-c", PROGRAM, "two words", "--flag"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate(timeout=60)
    return process.pid, out


@needs_glibc
def test_the_same_process_begins_again_with_the_same_words() -> None:
    pid, out = begin()
    assert out == f"{pid} True None ['two words', '--flag']\n", "and programs it starts are not told"


@needs_glibc
def test_what_the_user_says_stands() -> None:
    pid, out = begin(**{start.TUNABLES: "glibc.malloc.mxfast=0"})
    assert out == f"{pid} False glibc.malloc.mxfast=0 ['two words', '--flag']\n"


@pytest.mark.parametrize("what", ["platform", "executable", "libc"])
def test_elsewhere_it_just_begins(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(start.TUNABLES, raising=False)
    if what == "platform":
        monkeypatch.setattr(sys, "platform", "darwin")
    elif what == "executable":
        monkeypatch.setattr(sys, "executable", "")
    else:
        monkeypatch.setattr(start, "is_glibc", lambda: False)
    assert start.is_settled()


def test_where_a_new_beginning_is_not_allowed_this_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(program: str, words: list[str], environment: dict[str, str]) -> None:
        asked.append((program, words[1:], environment[start.TUNABLES]))
        raise PermissionError

    monkeypatch.setattr(os, "execve", refuse)
    start.begin_again()
    assert asked == [(sys.executable, sys.orig_argv[1:], start.SETTINGS)]
