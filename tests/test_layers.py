"""Imports point down only, heavy libraries are imported where they belong, nothing draws from a global generator."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "fedsim").rglob("*.py"))

FLOORS = (
    ("errors", "types"),
    ("fields",),
    ("ground",),
    ("evaluate", "local", "models", "schedule", "topology", "traits"),
    ("aggregate", "callbacks", "channel", "data"),
    ("kernels", "objective", "partition"),
    ("algorithms",),
    ("pool", "privacy"),
    ("runs",),
    ("record",),
    ("assembly", "report"),
    ("simulation",),
    ("sweep",),
    ("cli",),
    ("__main__",),
)
"""The rooms of fedsim, folders folded, from the ground up: a room imports from floors below its own only."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name(path) for path in FILES}


@cache
def tree(path: Path) -> ast.Module:
    """A file, parsed once for all laws."""
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, anywhere in it."""
    out = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & NAMES
            out |= inside
            if len(inside) < len(node.names):
                out.add(node.module)
    return frozenset(out)


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_floor() -> None:
    rooms = {room(module) for module in NAMES if "." in module}
    assert rooms == set(FLOOR)
    assert len(rooms) <= 28  # with fedsim itself, hydra_plugins and scripts 31


def test_imports_run_down() -> None:
    pairs = [(name(path), other) for path in FILES for other in imports(path)]
    for module, other in pairs:
        if module == "fedsim" or other.partition(".")[0] != "fedsim":  # the door hands out names of every floor
            continue
        assert other != "fedsim", f"{module} imports the front door: import the module that has the name"
        down = room(other) == room(module) or FLOOR[room(other)] < FLOOR[room(module)]
        assert down, f"{module} imports {other}, which is not below it"


def test_no_circle_between_files() -> None:
    graph = {name(path): {m for m in imports(path) if m in NAMES} - {name(path)} for path in FILES}
    del graph["fedsim"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


def test_where_libraries_are_imported() -> None:
    for path in FILES:
        require_libraries_where_they_belong(name(path), imports(path))


def require_libraries_where_they_belong(module: str, used: frozenset[str]) -> None:
    roots = {m.partition(".")[0] for m in used}
    assert "ray" not in roots or module in ("fedsim.pool.ray_pool", "fedsim.pool.ray_start"), module
    assert not roots & {"hydra", "omegaconf"} or module in (
        "fedsim.cli.arguments",
        "fedsim.cli.compose",
        "fedsim.cli.composer",
        "fedsim.cli.explain",
        "fedsim.cli.main",
    ), module
    if module.startswith("fedsim.algorithms."):
        told = ("traits", "fields", "errors")  # what classes say of themselves, and how it is checked
        allowed = ("algorithms", "objective", "data.losses", "channel", "types", *told)
        strange = {m for m in used if m.startswith("fedsim.")} - {
            m for m in used if m.startswith(tuple(f"fedsim.{part}" for part in allowed))
        }
        assert not strange, f"algorithms know objectives and messages, nothing else: {module} imports {strange}"
    if module.startswith(("fedsim.kernels", "fedsim.pool", "fedsim.runs", "fedsim.record", "fedsim.assembly")):
        concrete = {m for m in used if m.startswith("fedsim.algorithms")}
        assert all(m.startswith("fedsim.algorithms.kit.") for m in concrete), (
            f"what runs methods knows none of them: {module}"
        )


def test_every_file_says_what_it_is_for() -> None:
    assert [name(path) for path in FILES if not ast.get_docstring(tree(path))] == []


def test_no_global_generators_no_prints() -> None:
    for path in FILES:
        require_no_generators_and_prints(name(path), tree(path))


def require_no_generators_and_prints(module: str, parsed: ast.Module) -> None:
    for node in ast.walk(parsed):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            assert call != "print", module
            scoped = module == "fedsim.ground.rng"  # which puts the generators back
            drawn = {"torch.manual_seed", "np.random.seed", "random.seed", "np.random.rand", "np.random.randn"}
            assert scoped or call not in drawn, (module, call)
        if isinstance(node, ast.Import):
            watched = module in (
                "fedsim.ground.process",
                "fedsim.ground.rng",
                "fedsim.models.pure",
                "fedsim.models.reach",
            )
            plain = "random" not in {alias.name for alias in node.names}
            assert watched or plain, module  # Python's is put back and watched
