"""What holds for every field of every dataclass that a user may construct: only values of its annotation and range.

The classes are found in the package's modules, so that a new one is under the law from its first day.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import networkx as nx
import numpy as np
import pytest

import fedsim
from fedsim.algorithms.fedavg import FedAvg
from fedsim.data.files import DataFile
from fedsim.errors import InputError
from fedsim.privacy.config import Promise
from fedsim.privacy.matrix_mechanism import factorise

ROOT = Path(__file__).parent.parent.parent
INTERNAL = {  # what the program makes itself, from parts that were checked
    "fedsim.assemble": {"Assembled"},
    "fedsim.channel.noise": {"Addressed"},
    "fedsim.channel.onion": {"Onion"},
    "fedsim.channel.packing": {"Reader"},
    "fedsim.channel.sides": {"Positions", "Signs", "Levels", "Trits", "Seed"},
    "fedsim.checkpoint": {"Saved"},
    "fedsim.commands.catalogue": {"Option"},
    "fedsim.data.batches": {"Samples"},
    "fedsim.history": {"History"},
    "fedsim.layout": {"Layout"},
    "fedsim.papers": {"Paper"},
    "fedsim.partition.base": {"Population"},  # arrays, which its own __post_init__ checks
    "fedsim.prepared": {"Prepared"},
    "fedsim.privacy.ledger": {"Setting", "Draw", "Counts", "Ledger"},
    "fedsim.privacy.matrix_mechanism": {"BandedFactor"},
    "fedsim.simulation": {"Result"},
    "fedsim.sweep.expand": {"Interval", "Param", "Job"},
    "fedsim.sweep.packing": {"Task"},
    "fedsim.sweep.state": {"State"},
    "fedsim.topology.mixing": {"Mixing"},  # matrices, which ``checked`` checks
    "fedsim.types": {"Round"},
    "fedsim.data.base": {"Dataset", "Split"},  # arrays: tests/test_data_checks.py
}
INTERNAL_PACKAGES = ("fedsim.report.", "fedsim.engine.")  # but for the engine's settings
REQUIRED: dict[str, Any] = {  # values of fields that have no default
    "lr": 0.1,
    "clients": 4,
    "per_client": 2,
    "alpha": 0.5,
    "sigma": 1.0,
    "base": FedAvg(lr=0.1),
    "cohort": 2,
    "rate": 0.5,
    "concurrency": 2,
    "delta": 1e-5,
    "p": 0.5,
    "degree": 2,
    "radius": 0.5,
    "generator": "networkx.cycle_graph",
    "target": nx.path_graph,
    "options": {},
    "features": 3,
    "train": DataFile("a.txt", {}),
    "clip": 1.0,
    "noise_multiplier": 1.0,
    "expected": 4,
    "separation": 2,
    "parameters": 10,
    "sensitivity": 1.0,
    "std": 2.0,
    "examples": 10,
    "batch": 2,
    "steps": 3,
    "lipschitz": 1.0,
    "smoothness": 1.0,
    "samples": 100,
    "rounds": 10,
    "period": 3,
    "anchor_batch": 20,
    "difference_batch": 10,
    "anchor": 1.0,
    "difference": 1.0,
    "cap": 1.0,
    "epsilon": 1.0,
    "releases": (),
}
SIGNED = {  # numbers that may be below zero
    ("Search", "seed"),
    ("Release", "sensitivity"),
}
UNBOUNDED: set[tuple[str, str]] = set()  # and at infinity


def constructible() -> list[type]:
    """Every public dataclass that is not internal."""
    found = []
    for module in pkgutil.walk_packages(fedsim.__path__, "fedsim."):
        outside = module.name.startswith(INTERNAL_PACKAGES) and module.name != "fedsim.engine.config"
        if outside or module.name.endswith("__main__"):
            continue
        own = vars(importlib.import_module(module.name)).values()
        found += [
            c
            for c in own
            if inspect.isclass(c) and is_dataclass(c) and c.__module__ == module.name and c.__name__[0] != "_"
        ]
    found = [c for c in found if not inspect.isabstract(c)]
    return [c for c in found if c.__name__ not in INTERNAL.get(c.__module__, ())]


CLASSES = constructible()


@cache
def files(folder: Path) -> dict[str, str]:
    (folder / "graph.txt").write_text("0 1\n1 2\n")
    (folder / "cohorts.json").write_text("[[0, 1], [1, 2]]")
    return {"File": str(folder / "graph.txt"), "Cohorts": str(folder / "cohorts.json"), "DataFile": "a.txt"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fields")


def example(kind: type, folder: Path) -> Any:
    """One right instance."""
    own = {"path": files(folder).get(kind.__name__), "factor": factorise(10, 2)} | REQUIRED
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    given: dict[str, Any] = {name: own[name] for name in needed}
    if issubclass(kind, Promise):
        given["noise_multiplier"] = 1.0
    return kind(**given)


def members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def wrong(kind: Any, owner: str, name: str) -> Iterator[Any]:
    """Values that a field of this annotation must refuse."""
    choices = members(kind)
    if Any in choices:
        return
    yield object()
    if NoneType not in choices:
        yield None
    literals = [word for choice in choices if get_origin(choice) is Literal for word in get_args(choice)]
    if literals:
        yield "no such word"
        yield literals[0].upper() if isinstance(literals[0], str) else str(literals[0])
    numbers = {int, float} & set(choices)
    if numbers:
        yield from (math.nan, np.nan, -math.nan, True, "1", [1], np.array([1.0, 2.0]))
        if (owner, name) not in SIGNED:
            yield from (-1, np.int64(-1))
            yield from (-0.5, np.float32(-0.5)) if float in choices else ()
        if (owner, name) not in UNBOUNDED:
            yield from (math.inf, -math.inf, np.inf)
        if float not in choices:
            yield from (1.5, 2.0)
    if bool in choices:
        yield from (0, 1, "true", "yes", math.nan)
    if str in choices:
        yield from (3, b"a", ["a"], math.nan)
    for choice in choices:
        if get_origin(choice) is tuple:
            inner = get_args(choice)
            yield from (3, "ab", {1: 2}, math.nan)
            yield from ((bad,) * (1 if inner[-1] is ... else len(inner)) for bad in wrong(inner[0], owner, name))
            if inner[-1] is not ...:
                yield from ((), (0.5,) * (len(inner) + 1))
    if not (numbers or literals) and not any(
        choice in (bool, str) or get_origin(choice) is tuple for choice in choices
    ):
        yield from (3, "a word", math.nan)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: f"{c.__module__.removeprefix('fedsim.')}.{c.__name__}")
def test_every_field_refuses_what_it_cannot_mean_in_one_line(kind: type, folder: Path) -> None:
    part = example(kind, folder)
    hints = get_type_hints(kind)
    silent = []
    for field in fields(kind):
        for bad in wrong(hints[field.name], kind.__name__, field.name):
            try:
                replace(part, **{field.name: bad})
            except InputError as error:
                line = str(error)
                if not (field.name in line and ", got " in line and "\n" not in line):
                    silent.append(f"{field.name}={bad!r}: {line!r}")
            except Exception as error:
                silent.append(f"{field.name}={bad!r}: {type(error).__name__}: {error}")
            else:
                silent.append(f"{field.name}={bad!r}: accepted")
    assert not silent, "\n".join(silent)
