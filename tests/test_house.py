"""The order of the package: what imports what, and how long files and functions are."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mdl_physpre"
ROWS = [
    ["errors", "utils", "structures"],
    ["potentials"],
    ["analysis", "potential_checks"],
    ["eam_fit"],
    ["pretraining"],
    ["training", "dynamics"],
    ["stress_tests"],
    ["runs"],
    ["report"],
    ["workflow"],
    ["cli", "hosts"],
]
"""Rooms in the order of imports. A room imports from rows before its own, and from its own row without circles."""
OF_ALL = {"testing", "demo"}
"""What stands beside the rooms: checks for potentials of others, and the demo's data."""

NAME_HOSTS = ("hosts.matdeeplearn.MatDeepLearnCalculator", "hosts.matdeeplearn.TorchMDETLate")
"""What other rooms may say of hosts: the calculator that an error message recommends, and a name in checkpoints."""

MAX_FILE, MAX_FUNCTION = 300, 60
LONG_FILES: dict[str, int] = {
    "analysis/radial_distribution.py": 310,
}
LONG_FUNCTIONS: dict[str, int] = {
    "potentials/checkpoints/matdeeplearn.py:read_matdeeplearn_checkpoint": 63,
    "potentials/checkpoints/matdeeplearn.py:write_matdeeplearn_checkpoint": 69,
}
"""Exceptions with their lengths; both lists only shrink."""

LATE = {"cli", "hosts"}
"""Rooms whose commands and plugins import when they are called, so that ``physpre --help`` starts at once."""
LATE_MODULES: set[str] = set()
OPTIONAL = {"mdl_physpre.potentials.adapters.torchsim"}
"""Modules that need an optional package."""


def modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in MODULES.items()}


def targets(name: str, node: ast.AST) -> Iterator[str]:
    """The modules that a statement of the module ``name`` imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = name.split(".") if MODULES[name].name == "__init__.py" else name.split(".")[:-1]
        base = package[: len(package) - node.level + 1] if node.level else []
        source = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            whole = f"{source}.{alias.name}"
            yield whole if whole in MODULES else source


def imports(name: str) -> Iterator[tuple[str, int]]:
    """All modules that one imports, with the line: at its top, inside functions, and for types alone."""
    for node in ast.walk(TREES[name]):
        for target in targets(name, node):
            yield target, getattr(node, "lineno", 0)


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def row(name: str) -> int:
    return next(k for k, rooms in enumerate(ROWS) if room(name) in rooms)


def own(target: str) -> bool:
    return target.split(".")[0] == "mdl_physpre" and room(target) not in OF_ALL


def test_every_room_has_its_place():
    assert {room(name) for name in MODULES} - OF_ALL - {""} == {r for rooms in ROWS for r in rooms}


def test_nothing_imports_upwards():
    wrong = []
    for name in MODULES:
        if room(name) in OF_ALL | {""}:
            continue
        for target, line in imports(name):
            if own(target) and room(target) and row(target) > row(name):
                wrong.append(f"{MODULES[name].relative_to(ROOT)}:{line} imports {target}")
    assert not wrong, "\n".join(wrong)


def graph(key) -> dict[str, set[str]]:
    edges: dict[str, set[str]] = defaultdict(set)
    for name in MODULES:
        for target, _ in imports(name):
            if target in MODULES and own(target) and room(target) and room(name) and key(name) != key(target):
                edges[key(name)].add(key(target))
    return edges


@pytest.mark.parametrize("key", [str, room], ids=["modules", "rooms"])
def test_no_circles_between(key):
    try:
        TopologicalSorter(graph(key)).prepare()
    except CycleError as error:
        pytest.fail(" < ".join(error.args[1]))


def test_init_files_only_hand_on_names():
    wrong = []
    for name, path in MODULES.items():
        if path.name != "__init__.py":
            continue
        for node in TREES[name].body:
            names = isinstance(node, (ast.ImportFrom, ast.Import, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr))
            hook = isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", "__dir__")
            if not names and not hook:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} holds more than names")
    assert not wrong, "\n".join(wrong)


def late_imports() -> dict[str, list[str]]:
    """Imports of the package's own modules inside functions, by module."""
    late = defaultdict(list)
    for name, tree in TREES.items():
        for function in (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))):
            for node in ast.walk(function):
                for target in targets(name, node):
                    if own(target) and target not in OPTIONAL and room(name) not in LATE:
                        late[name.removeprefix("mdl_physpre.")].append(f"line {node.lineno} imports {target}")
    return late


def test_own_modules_are_imported_at_the_top():
    late = late_imports()
    assert set(late) <= LATE_MODULES, late
    assert set(late) >= LATE_MODULES, f"no longer exceptions: {LATE_MODULES - set(late)}"


def test_only_hosts_name_hosts():
    named = re.compile(r"mdl_physpre[./]hosts|^\s*(from|import) (matdeeplearn|mattertune)")
    wrong = []
    for name, path in MODULES.items():
        if room(name) != "hosts":
            lines = enumerate(path.read_text().splitlines(), 1)
            wrong += [f"{path.relative_to(ROOT)}:{n}: {line.strip()}" for n, line in lines if named.search(line)]
    assert len(wrong) <= len(NAME_HOSTS) and all(any(word in line for word in NAME_HOSTS) for line in wrong), wrong


def test_no_test_or_benchmark_changes_where_python_looks():
    for folder in ("tests", "benchmarks", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                changed = isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"
                assert not changed, f"{path.relative_to(ROOT)}:{node.lineno}"


def lengths_of_functions() -> dict[str, int]:
    """Lines of the longest function of each name in each file."""
    found: dict[str, int] = defaultdict(int)
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                where = f"{MODULES[name].relative_to(PACKAGE)}:{node.name}"
                found[where] = max(found[where], (node.end_lineno or node.lineno) - node.lineno + 1)
    return found


def hold(found: dict[str, int], limit: int, exceptions: dict[str, int]) -> None:
    """What is longer than the limit is an exception and has not grown; no exception is left over."""
    long = {where: lines for where, lines in found.items() if lines > limit}
    grown = {where: lines for where, lines in long.items() if lines > exceptions.get(where, limit)}
    assert not grown, f"longer than {limit} lines, or than when they were excepted: {grown}"
    assert set(exceptions) <= set(long), f"no longer exceptions: {set(exceptions) - set(long)}"


def test_files_stay_short():
    lines = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in MODULES.values()}
    hold(lines, MAX_FILE, LONG_FILES)


def test_functions_stay_short():
    hold(lengths_of_functions(), MAX_FUNCTION, LONG_FUNCTIONS)
