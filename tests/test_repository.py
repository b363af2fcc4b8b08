"""The repository as a whole: the README's tree, the requirements, and no names of hosts or machines.

As in test_architecture: each rule takes what it judges as an argument and is shown a violation.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_architecture import PACKAGE, ROOT, Sources, imported_names, read_sources

DISTRIBUTIONS = {"rouge_score": "rouge-score", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Where the name to import is not the name to install."""
NEEDED_BY_TRANSFORMERS = {"jinja2", "gguf"}
"""Optional there, needed for what we do with it: chat templates, GGUF files."""
TAKEN_BY_UVICORN = {"httptools", "uvloop"}
"""Where they are installed; they make it faster."""


# The tree in the README


def printed_tree(readme: str) -> set[str]:
    """Paths under src/tunesmith from the README's indented tree; folders end in "/"."""
    block = re.search(r"```text\nsrc/tunesmith/\n(.*?)```", readme, re.DOTALL)
    assert block, "the README has no tree"
    paths, folders = set(), [""]
    for line in block[1].splitlines():
        name, _, purpose = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        path = folders[depth - 1] + name
        folders[depth:] = [path]
        assert purpose, f"the README does not say what {path} is for"
        assert path not in paths, f"the README names {path} twice"
        paths.add(path)
    return paths


def real_tree(package: Path) -> set[str]:
    """Files and folders under a package. A folder's __init__.py goes without saying."""
    paths = set()
    for path in package.rglob("*"):
        name = path.relative_to(package).as_posix()
        if "__pycache__" in path.parts or name.endswith("/__init__.py"):
            continue
        paths.add(f"{name}/" if path.is_dir() else name)
    return {path for path in paths if not path.endswith("/") or any((package / path).rglob("*.*"))}


def tree_differences(readme: str, package: Path) -> list[str]:
    printed, real = printed_tree(readme), real_tree(package)
    missing = [f"not in the README: {path}" for path in sorted(real - printed)]
    return missing + [f"only in the README: {path}" for path in sorted(printed - real)]


def test_readme_prints_the_real_tree() -> None:
    assert tree_differences((ROOT / "README.md").read_text(encoding="utf-8"), PACKAGE) == []


def test_a_wrong_tree_is_caught_both_ways(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("cli.py", "data/__init__.py", "data/pack.py", "data/page.j2"):
        (tmp_path / name).touch()
    tree = "```text\nsrc/tunesmith/\n  {}\n  data/  folder\n    pack.py  rows\n    page.j2  page\n```"
    assert tree_differences(tree.format("cli.py  commands"), tmp_path) == []
    assert tree_differences(tree.format("api.py  calls"), tmp_path) == [
        "not in the README: cli.py",
        "only in the README: api.py",
    ]


# Requirements


def project() -> dict[str, list[str]]:
    """The requirements of the package ("") and of its extras."""
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"": metadata["dependencies"], **metadata["optional-dependencies"]}


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in (line.partition("#")[0].strip() for line in lines) if line]


def pin_problems(constraints: list[str], requirements: list[str]) -> list[str]:
    """Each constraint pins one version of a requirement, and the requirement allows it."""
    wanted = {canonicalize_name(r.name): r for r in map(Requirement, requirements)}
    found = []
    for line in constraints:
        pin = Requirement(line)
        match = re.fullmatch(r"==([\w.]+)", str(pin.specifier))
        requirement = wanted.get(canonicalize_name(pin.name))
        if not match:
            found.append(f"{line}: not one version")
        elif requirement is None:
            found.append(f"{line}: pyproject.toml does not ask for it")
        elif not requirement.specifier.contains(match[1]):
            found.append(f"{line}: pyproject.toml asks for {requirement}")
    return found


def test_pins_agree_with_the_requirements() -> None:
    assert any(pin.startswith("torch==") for pin in pins())
    assert pin_problems(pins(), [line for lines in project().values() for line in lines]) == []


@pytest.mark.parametrize("pin", ["torch==2.9.0", "torch>=2.10", "troch==2.13.0"])
def test_a_wrong_pin_is_caught(pin: str) -> None:
    assert pin_problems([pin], ["torch>=2.10"])


def requirement_problems(sources: Sources, requirements: list[str]) -> list[str]:
    """What the package imports is what it asks for."""
    names = {name.split(".")[0] for module, source in sources.items() for name, _ in imported_names(module, source)}
    third_party = names - set(sys.stdlib_module_names) - {"tunesmith"}
    imported = {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in third_party}
    asked = {canonicalize_name(Requirement(line).name) for line in requirements}
    undeclared = [f"imported, not in pyproject.toml: {name}" for name in sorted(imported - asked)]
    unused = asked - imported - NEEDED_BY_TRANSFORMERS - TAKEN_BY_UVICORN
    return undeclared + [f"in pyproject.toml, never imported: {name}" for name in sorted(unused)]


def test_requirements_are_what_is_imported() -> None:
    assert requirement_problems(read_sources(), project()[""]) == []


def test_a_wrong_requirement_is_caught() -> None:
    found = requirement_problems({"tunesmith.a": "import os, yaml"}, ["rich"])
    assert found == ["imported, not in pyproject.toml: pyyaml", "in pyproject.toml, never imported: rich"]


# Names of hosts and machines

# Written in pieces, so that this file does not hold what it looks for.
REGISTRIES = "|".join(rf"\b{name}\.{end}\b" for name, end in [("pypi", "org"), ("pythonhosted", "org")])
INDEXES = rf"\b(?:download\.)?pytorch\.{'org'}/whl"
FOLDERS = r"(?<![\w.~:/-])/(?:home|opt|root|Users|work|workspace|mnt)/\w"
FOREIGN = re.compile(f"{REGISTRIES}|{INDEXES}|{FOLDERS}")


def foreign_names(files: Mapping[str, str]) -> list[str]:
    """Registries and folders of some machine: what works here only."""
    return [
        f"{name}:{number} {match[0]}"
        for name, text in files.items()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := FOREIGN.search(line))
    ]


def tracked_files() -> dict[str, str]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8", errors="replace")
        for path in paths
        if path.is_file()
    }


def test_no_host_and_no_machine_is_named() -> None:
    assert foreign_names(tracked_files()) == []


@pytest.mark.parametrize(
    "text",
    [
        "https://" + "pypi" + ".org/simple",
        "files." + "pythonhosted" + ".org",
        "https://download." + "pytorch" + ".org/whl/cpu",
        "cd /" + "home/someone",
        'Path("/' + 'opt/wheels")',
    ],
)
def test_a_planted_name_is_caught(text: str) -> None:
    assert foreign_names({"a.md": f"first\n{text}"})[0].startswith("a.md:2")


@pytest.mark.parametrize("text", ["at work/home we", "runs/work/x", "https://x.example/home/page", "torch.org"])
def test_an_innocent_name_is_let_be(text: str) -> None:
    assert foreign_names({"a.md": text}) == []


# Benchmarks and examples


def names_that_are_not_there(source: str) -> list[str]:
    """What a script imports from tunesmith and would not find: most scripts are not run by any test."""
    wanted = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tunesmith"
        for alias in node.names
    ]
    return [f"{module}.{name}" for module, name in wanted if not _is_there(str(module), name)]


def _is_there(module: str, name: str) -> bool:
    found = importlib.import_module(module)
    is_package = hasattr(found, "__path__")
    return hasattr(found, name) or (is_package and importlib.util.find_spec(f"{module}.{name}") is not None)


@pytest.mark.parametrize(
    "script",
    sorted(path for part in ("benchmarks", "examples") for path in (ROOT / part).glob("*.py")),
    ids=lambda path: path.name,
)
def test_scripts_import_what_is_there(script: Path) -> None:
    assert names_that_are_not_there(script.read_text(encoding="utf-8")) == []


def test_an_import_of_nothing_is_found() -> None:
    source = "def f():\n    from tunesmith.methods.reparam import ROWS, adopted_elsewhere\n"
    assert names_that_are_not_there(source) == ["tunesmith.methods.reparam.adopted_elsewhere"]
