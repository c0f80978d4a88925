"""Imports point down only, heavy libraries are imported where they belong, nothing draws from a global generator."""

from __future__ import annotations

import ast
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
    ("aggregate", "channel", "data"),
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


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & NAMES
            out |= inside
            if len(inside) < len(node.names):
                out.add(node.module)
    return out


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_floor() -> None:
    rooms = {room(module) for module in NAMES if "." in module}
    assert rooms == set(FLOOR)
    assert len(rooms) <= 27  # with fedsim itself, hydra_plugins and scripts 30


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_run_down(path: Path) -> None:
    module = name(path)
    if module == "fedsim":  # the door, which hands out names of every floor
        return
    for other in imports(path):
        if other.partition(".")[0] != "fedsim":
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


@pytest.mark.parametrize("path", FILES, ids=name)
def test_where_libraries_are_imported(path: Path) -> None:
    module, used = name(path), imports(path)
    roots = {m.partition(".")[0] for m in used}
    assert "ray" not in roots or module == "fedsim.pool.ray_pool"
    assert not roots & {"hydra", "omegaconf"} or module in (
        "fedsim.cli.compose",
        "fedsim.cli.explain",
        "fedsim.cli.main",
    )
    if module.startswith("fedsim.algorithms."):
        told = ("traits", "fields", "errors")  # what classes say of themselves, and how it is checked
        allowed = ("algorithms", "objective", "data.losses", "channel", "types", *told)
        strange = {m for m in used if m.startswith("fedsim.")} - {
            m for m in used if m.startswith(tuple(f"fedsim.{part}" for part in allowed))
        }
        assert not strange, "algorithms know objectives and messages, nothing else"
    if module.startswith(("fedsim.kernels", "fedsim.pool", "fedsim.runs", "fedsim.record", "fedsim.assembly")):
        concrete = {m for m in used if m.startswith("fedsim.algorithms")}
        assert all(m.startswith("fedsim.algorithms.kit.") for m in concrete), "what runs methods knows none of them"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_global_generators_no_prints(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            assert call != "print"
            scoped = name(path) == "fedsim.ground.rng"  # which puts the generators back
            assert scoped or call not in {
                "torch.manual_seed",
                "np.random.seed",
                "random.seed",
                "np.random.rand",
                "np.random.randn",
            }
        if isinstance(node, ast.Import):
            watched = name(path) in ("fedsim.ground.rng", "fedsim.models.pure", "fedsim.models.reach")
            assert watched or "random" not in {alias.name for alias in node.names}  # Python's is put back and watched
