"""The house rules of src/convoy: which room may use which, and who may read what."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "convoy"
# From the top of the house to its ground: a room imports only from rooms further down.
ROOMS = (
    "commands host launch scoring training synthetic data health "
    "navsim agents run config global_batch topology errors"
).split()
# What runs on a login node, on any Python 3.11 and without an environment.
STANDARD_LIBRARY_ONLY = (
    "host/*.py",
    "run/layout.py",
    "run/score_layout.py",
    "navsim/tree.py",
    "errors.py",
    "topology.py",
)
MOST_LINES = 400

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imports_of(path: Path) -> Iterator[str]:
    """Every module that `path` imports anywhere, those for type checkers included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in NAMES else str(node.module)


def room_of(module: str) -> str:
    return module.split(".")[1]


def by_name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=by_name)
def test_arrows_go_down(path: Path):
    own = name_of(path)
    if own == "convoy":
        return
    for module in imports_of(path):
        if module.startswith("convoy.") and room_of(module) != room_of(own):
            assert ROOMS.index(room_of(module)) > ROOMS.index(room_of(own)), f"{own} uses {module}"


def test_every_room_has_its_floor():
    assert {room_of(name) for name in NAMES - {"convoy"}} == set(ROOMS)


def test_there_is_no_circle():
    graph = {
        name_of(path): {m for m in imports_of(path) if m in NAMES and m != name_of(path)}
        for path in MODULES
    }
    while graph:
        free = {module for module, used in graph.items() if not used & graph.keys()}
        assert free, f"these import each other: {', '.join(sorted(graph))}"
        graph = {module: used for module, used in graph.items() if module not in free}


@pytest.mark.parametrize("pattern", STANDARD_LIBRARY_ONLY)
def test_what_runs_on_a_login_node_needs_the_standard_library_only(pattern: str):
    """What these modules import of Convoy is held to the same."""
    waiting = list(PACKAGE.glob(pattern))
    seen: set[Path] = set()
    assert waiting
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for module in imports_of(path):
            if module.split(".")[0] == "convoy":
                file = PACKAGE.parent / f"{module.replace('.', '/')}.py"
                waiting.append(file if file.is_file() else file.with_suffix("") / "__init__.py")
            else:
                assert module.split(".")[0] in sys.stdlib_module_names, f"{path} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=by_name)
def test_only_its_room_imports_navsim(path: Path):
    if path.parent != PACKAGE / "navsim":
        foreign = {m for m in imports_of(path) if m.split(".")[0] in ("navsim", "nuplan")}
        assert not foreign


@pytest.mark.parametrize("path", MODULES, ids=by_name)
def test_only_topology_reads_the_launch_s_variables(path: Path):
    if path.name == "topology.py":
        return
    names = (
        r"(SLURM|TORCHELASTIC)\w*|CONVOY_\w+|(LOCAL_|GROUP_)?(RANK|WORLD_SIZE)|CUDA_VISIBLE_DEVICES"
    )
    text = path.read_text()
    read = re.compile(
        rf"""environ(?:ment)?(?:\.get\(|\.setdefault\(|\.pop\(|\[)\s*["']({names})["']"""
        rf"""|["']({names})["']\s+(?:not\s+)?in\s+(?:os\.)?environ"""
    )
    found = [match.group(0) for match in read.finditer(text)]
    assert path.parent.name == "host" or not found


@pytest.mark.parametrize("path", MODULES, ids=by_name)
def test_modules_are_small(path: Path):
    assert len(path.read_text().splitlines()) <= MOST_LINES
