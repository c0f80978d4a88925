"""Imports point down only, heavy libraries are imported where they belong, nothing draws from a global generator."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "fedsim").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out.add(node.module)
            out |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "fedsim"}
    return out


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=name)
def test_where_things_are_imported(path: Path) -> None:
    module, used = name(path), imports(path)
    roots = {m.partition(".")[0] for m in used}
    assert "ray" not in roots or module == "fedsim.engine.ray_pool"
    assert not roots & {"hydra", "omegaconf"} or module == "fedsim.run"
    mine = {m for m in used if m.startswith("fedsim.")}
    above = {"fedsim.run", "fedsim.simulation", "fedsim.prepare", "fedsim.config", "fedsim.console"}
    if module.startswith("fedsim.algorithms."):
        told = ("traits", "declared", "fields", "errors")  # what classes say of themselves, and how it is checked
        allowed = ("algorithms", "objective", "losses", "channel", "privacy.releases", "types", *told)
        mine_only = tuple(f"fedsim.{name}" for name in allowed)
        assert all(m.startswith(mine_only) for m in mine), "algorithms know objectives and messages, nothing else"
    if module.startswith(("fedsim.engine", "fedsim.data", "fedsim.models", "fedsim.partition", "fedsim.channel")):
        assert not mine & above, "lower layers do not know who calls them"
    if module.startswith("fedsim.engine"):
        concrete = {
            m
            for m in mine
            if m.startswith("fedsim.algorithms") and m not in ("fedsim.algorithms.base", "fedsim.algorithms.around")
        }
        assert not concrete, "the engine knows no algorithm"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_global_generators_no_prints(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            assert call != "print"
            scoped = name(path) == "fedsim.rng"  # which puts the generators back
            assert scoped or call not in {
                "torch.manual_seed",
                "np.random.seed",
                "random.seed",
                "np.random.rand",
                "np.random.randn",
            }
        if isinstance(node, ast.Import):
            watched = name(path) in (
                "fedsim.rng",
                "fedsim.models.pure",
                "fedsim.models.reach",
            )  # Python's generator is put back and watched
            assert watched or "random" not in {alias.name for alias in node.names}
