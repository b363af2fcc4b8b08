"""Rules for the code as a whole. Each rule is a function from sources to violations, one sentence each.

A rule takes its sources as an argument, so that a test can hand it a planted violation: a rule that
cannot fail protects nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "tunesmith"
Sources = Mapping[str, str]
"""Python text by module name: {"tunesmith.data.pack": "..."}; a package stands under its own name."""

LEVELS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("api",),
    ("tables", "system_tables", "flags"),
    ("studio", "serve", "export", "inspection"),
    ("judging",),
    ("aligning",),
    ("rl",),
    ("rewarding",),
    ("feedback",),
    ("evaluation",),
    ("planning", "survey", "checking"),
    ("pretraining", "tokenizing"),
    ("tuning",),
    ("forecasting",),
    ("runs",),
    ("methods",),
    ("train",),
    ("models",),
    ("data",),
    ("config_align", "config_compare", "config_export", "config_pretrain"),
    ("assets", "config", "runtime", "chips"),
    ("pages", "unpacking", "trackers"),
    ("storage",),
    ("terminal", "signals"),
    ("records", "outcomes", "errors"),
)
"""Top first. A part imports from lower lines only, never from its own line."""
LEVEL_OF = {part: level for level, parts in enumerate(LEVELS) for part in parts}
FAMILIES = tuple(f"tunesmith.methods.{name}" for name in ("full", "selective", "additive", "reparam"))
MEASURES = (
    "metrics",
    "predictions",
    "of_classes",
    "of_answers",
    "answers",
    "tags",
    "rankings",
    "duels",
    "drift",
    "intervals",
)
PURE = (
    "tunesmith.train.losses",
    "tunesmith.train.preference",
    *(f"tunesmith.evaluation.{name}" for name in MEASURES),
    "tunesmith.rl.advantage",
    "tunesmith.rl.losses",
)
BASIS = ("tunesmith.records", "tunesmith.outcomes", "tunesmith.errors")

MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 60


def read_sources(package: Path = PACKAGE) -> dict[str, str]:
    sources = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        sources[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return sources


# What a module imports


def imported_names(module: str, source: str) -> Iterator[tuple[str, int]]:
    """Full dotted names with their lines, wherever in the file they stand: `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(module.split(".")[: -node.level]) if node.level else ""
            base = ".".join(part for part in (start, node.module) if part)
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def our_imports(module: str, sources: Sources) -> Iterator[tuple[str, int]]:
    """Modules of ours that a module imports; names inside a module count as the module."""
    for name, line in imported_names(module, sources[module]):
        if name.split(".")[0] == "tunesmith":
            yield name if name in sources else name.rpartition(".")[0], line


def part_of(module: str) -> str:
    """The file or folder under src/tunesmith: "data" for tunesmith.data.pack; "" for the package itself."""
    return module.partition(".")[2].split(".")[0]


# The rules


def imports_go_down(sources: Sources) -> list[str]:
    found = []
    for module in sources:
        part = part_of(module)
        if part and part not in LEVEL_OF:
            found.append(f"{module}: '{part}' has no place in LEVELS")
            continue
        for target, line in our_imports(module, sources):
            # The package's own __init__ offers the public names, so it may import anything.
            below = LEVEL_OF.get(part_of(target), -1) > LEVEL_OF.get(part, -1)
            if part and part_of(target) != part and not below:
                found.append(f"{module}:{line} imports {target}, which is not below it")
    return found


def families_are_strangers(sources: Sources) -> list[str]:
    return [
        f"{module}:{line} imports {target}, another family"
        for module in FAMILIES
        if module in sources
        for target, line in our_imports(module, sources)
        if target in FAMILIES and target != module
    ]


def mathematics_is_pure(sources: Sources) -> list[str]:
    return [
        f"{module}:{line} imports {target}; mathematics needs records, outcomes, errors and mathematics only"
        for module in PURE
        if module in sources
        for target, line in our_imports(module, sources)
        if target not in BASIS and target not in PURE and target != "tunesmith.evaluation"
    ]


def no_cycles(sources: Sources) -> list[str]:
    """Imports inside functions count too. The package's __init__ imports lazily and stands aside."""
    edges = {
        module: {target for target, _ in our_imports(module, sources)} - {module, "tunesmith"}
        for module in sources
        if module != "tunesmith"
    }
    found: list[str] = []
    finished: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            found.append(" -> ".join([*way[way.index(module) :], module]))
        elif module not in finished:
            for target in sorted(edges.get(module, ())):
                visit(target, [*way, module])
            finished.add(module)

    for module in edges:
        visit(module, [])
    return found


def files_are_short(sources: Sources) -> list[str]:
    sizes = {module: len(source.splitlines()) for module, source in sources.items()}
    return [f"{module}: {size} lines" for module, size in sizes.items() if size > MOST_FILE_LINES]


def functions_are_short(sources: Sources) -> list[str]:
    return [
        f"{module}:{node.lineno} {node.name} has {size} lines"
        for module, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or node.lineno) - node.lineno + 1) > MOST_FUNCTION_LINES
    ]


UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
UNSAFE_KEYWORDS = {"trust_remote_code", "shell", "allow_pickle"}


def nothing_unsafe(sources: Sources) -> list[str]:
    """No pickle, no code from data or models, no shell."""
    found = []
    for module, source in sources.items():
        for name, line in imported_names(module, source):
            if name.split(".")[0] in UNSAFE_MODULES:
                found.append(f"{module}:{line} imports {name.split('.')[0]}")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call):
                found += [f"{module}:{node.lineno} {problem}" for problem in call_problems(node)]
    return found


def call_problems(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}
    if name in UNSAFE_CALLS:
        yield f"calls {name}"
    if name == "torch.load" and keywords.get("weights_only") != "True":
        yield "calls torch.load without weights_only=True"
    for keyword in UNSAFE_KEYWORDS & keywords.keys():
        if keywords[keyword] != "False":
            yield f"passes {keyword}={keywords[keyword]}"


RULES: tuple[Callable[[Sources], list[str]], ...] = (
    imports_go_down,
    families_are_strangers,
    mathematics_is_pure,
    no_cycles,
    files_are_short,
    functions_are_short,
    nothing_unsafe,
)


@pytest.mark.parametrize("rule", RULES)
def test_the_package_obeys(rule: Callable[[Sources], list[str]]) -> None:
    sources = read_sources()
    assert len(sources) > 10, "the rules look at nothing"
    assert rule(sources) == []


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * MOST_FUNCTION_LINES
PLANTED = [
    (imports_go_down, {"tunesmith.data.pack": "from tunesmith.train import loop"}, "data.pack:1"),
    (imports_go_down, {"tunesmith.data.pack": "from ..train import loop"}, "data.pack:1"),
    (imports_go_down, {"tunesmith.data.pack": "def f():\n    import tunesmith.cli"}, "data.pack:2"),
    (imports_go_down, {"tunesmith.tuning": "from tunesmith.pretrain import run"}, "tuning:1"),
    (imports_go_down, {"tunesmith.errors": "from tunesmith import records"}, "errors:1"),
    (imports_go_down, {"tunesmith.data.pack": "from tunesmith import compare"}, "imports tunesmith,"),
    (imports_go_down, {"tunesmith.utils": ""}, "no place"),
    (families_are_strangers, {FAMILIES[0]: "from tunesmith.methods.reparam import add_lora"}, "full:1"),
    (families_are_strangers, {FAMILIES[1]: "from . import additive", FAMILIES[2]: ""}, "selective:1"),
    (mathematics_is_pure, {PURE[0]: "from tunesmith.storage import write_json"}, "losses:1"),
    (no_cycles, {"tunesmith.a": "from tunesmith import b", "tunesmith.b": "import tunesmith.a"}, "a -> "),
    (
        no_cycles,
        {"tunesmith.a": "from tunesmith.b import x", "tunesmith.b": "def f():\n import tunesmith.a"},
        "b -> ",
    ),
    (files_are_short, {"tunesmith.a": "\n" * (MOST_FILE_LINES + 1)}, "401"),
    (functions_are_short, {"tunesmith.a": LONG_FUNCTION}, "f has 61"),
    (
        functions_are_short,
        {"tunesmith.a": "class A:\n    async " + LONG_FUNCTION.replace("    ", "     ")},
        "61",
    ),
    (nothing_unsafe, {"tunesmith.a": "def f():\n    from pickle import load"}, "a:2 imports pickle"),
    (nothing_unsafe, {"tunesmith.a": "torch.load(path)"}, "weights_only"),
    (nothing_unsafe, {"tunesmith.a": "torch.load(path, weights_only=False)"}, "weights_only"),
    (
        nothing_unsafe,
        {"tunesmith.a": "AutoModel.from_pretrained(p, trust_remote_code=flag)"},
        "trust_remote_code",
    ),
    (nothing_unsafe, {"tunesmith.a": "subprocess.run(line, shell=True)"}, "shell"),
    (nothing_unsafe, {"tunesmith.a": "eval(text)"}, "calls eval"),
]


@pytest.mark.parametrize(("rule", "sources", "expected"), PLANTED)
def test_a_rule_catches_its_violation(rule: Callable[[Sources], list[str]], sources: Sources, expected: str) -> None:
    assert expected in " ".join(rule(sources))


INNOCENT = {
    "tunesmith": "from tunesmith.tuning import tune",
    "tunesmith.tuning": "from tunesmith.data import pack\nfrom tunesmith.errors import InputError",
    "tunesmith.data": "",
    "tunesmith.data.pack": "from tunesmith.data.split import split",
    "tunesmith.data.split": "model.eval()\ntorch.load(path, weights_only=True)\nrun(line, shell=False)",
    "tunesmith.errors": "",
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_lets_good_code_be(rule: Callable[[Sources], list[str]]) -> None:
    assert rule(INNOCENT) == []
