"""What holds for every field of every dataclass that a user may construct: only values of its annotation and range.

The classes are found in the package's modules, so that a new one is under the law from its first day.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
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
from fedsim.callbacks import EarlyStopping
from fedsim.data import Dataset, Split
from fedsim.data.own import Arrays
from fedsim.data.published import DataFile
from fedsim.errors import InputError
from fedsim.privacy.config import Promise
from fedsim.privacy.matrix_mechanism import banded_factor

ROOT = Path(__file__).parent.parent.parent
INTERNAL = {  # what the program makes itself, from parts that were checked
    "fedsim.assembly.assemble": {"Assembled"},
    "fedsim.callbacks.base": {"RunView"},
    "fedsim.channel.noise": {"Addressed"},
    "fedsim.channel.onion": {"Onion"},
    "fedsim.channel.packing": {"Reader"},
    "fedsim.channel.sides": {"Positions", "Signs", "Levels", "Trits", "Seed"},
    "fedsim.record.checkpoint": {"Saved"},
    "fedsim.cli.catalogue": {"Option"},
    "fedsim.data.batches": {"Samples", "Work"},
    "fedsim.data.downloads": {"Download"},
    "fedsim.record.history": {"History"},
    "fedsim.ground.addresses": {"Purpose"},
    "fedsim.ground.buffers": {"Buffers"},
    "fedsim.ground.layout": {"Layout"},
    "fedsim.record.papers": {"Paper"},
    "fedsim.assembly.choose": {"Chosen"},
    "fedsim.assembly.parts": {"Parts"},  # what tests/test_own_code.py checks, field by field
    "fedsim.assembly.part_roles": {"Role"},
    "fedsim.assembly.initial": {"Initial"},
    "fedsim.partition.population": {"Population"},  # arrays, which its own __post_init__ checks
    "fedsim.assembly.prepared": {"Prepared"},
    "tests.privacy.closed_forms": {"AnchoredNoise"},  # a result
    "fedsim.privacy.ledger": {"AccountedRun", "Draw", "Counts", "Ledger"},
    "fedsim.privacy.matrix_mechanism": {"BandedFactor"},
    "fedsim.traits.releases": {"Drawn"},
    "fedsim.record.result": {"Result"},
    "fedsim.sweep.expand": {"Interval", "Param", "SweepJob"},
    "fedsim.sweep.queued": {"QueuedJob"},
    "fedsim.sweep.state": {"State"},
    "fedsim.topology.mixing": {"Mixing"},  # matrices, which ``checked`` checks
    "fedsim.types": {"Round"},
}
INTERNAL_PACKAGES = (
    "fedsim.report.",
    "fedsim.kernels.",
    "fedsim.pool.",
    "fedsim.runs.",
)  # but for ``CHOSEN``
CHOSEN = ("fedsim.pool.engine", "fedsim.kernels.tuning")
REQUIRED: dict[str, Any] = {  # values of fields that have no default
    "lr": 0.1,
    "fn": len,
    "model": len,
    "rank": 2,
    "loss": len,
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
    "lipschitz": 1.0,
    "smoothness": 1.0,
    "samples": 100,
    "rounds": 10,
    "period": 3,
    "anchor_batch": 20,
    "difference_batch": 10,
}
HUGE = (10**400, -(10**400), 10**5000)
"""Whole numbers that no float holds; the last Python does not even print."""

ROWS = Split(np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1]))
DATA: dict[str, Any] = {"x": ROWS.x, "y": ROWS.y, "name": "rows", "train": ROWS, "test": ROWS}
DATA |= {"task": "classification", "outputs": 2}

SIGNED = {  # numbers that may be below zero
    ("Search", "seed"),
    ("EarlyStopping", "target"),
    ("Adapted", "output"),  # of a tuple, from its end
}


def constructible() -> list[type]:
    """Every public dataclass that is not internal."""
    found = []
    for module in pkgutil.walk_packages(fedsim.__path__, "fedsim."):
        outside = module.name.startswith(INTERNAL_PACKAGES) and module.name not in CHOSEN
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
    own = {"path": files(folder).get(kind.__name__, "a folder"), "factor": banded_factor(10, 2)} | REQUIRED
    own |= DATA if kind in (Dataset, Split, Arrays) else {}
    own |= {"target": "column"} if kind.__module__.startswith("fedsim.data.") else {}
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    given: dict[str, Any] = {name: own[name] for name in needed}
    if kind is EarlyStopping:
        given["patience"] = 3
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
        yield from (math.nan, np.nan, -math.nan, True, [1], np.array([1.0, 2.0]))
        yield from () if str in choices else ("1",)  # the name of a file
        if (owner, name) not in SIGNED:
            yield from (-1, np.int64(-1))
            yield from (-0.5, np.float32(-0.5)) if float in choices else ()
        yield from (math.inf, -math.inf, np.inf, *HUGE)
        if float not in choices:
            yield from (1.5, 2.0)
    if bool in choices:
        yield from (0, 1, "true", "yes", math.nan)
    if str in choices:
        yield from () if int in choices else (3,)
        yield from (b"a", ["a"], math.nan)
    for choice in choices:
        if get_origin(choice) is tuple:
            inner = get_args(choice)
            yield from () if numbers else (3,)
            yield from ("ab", {1: 2}, math.nan)
            yield from ((bad,) * (1 if inner[-1] is ... else len(inner)) for bad in wrong(inner[0], owner, name))
            if inner[-1] is not ...:
                yield from ((), (0.5,) * (len(inner) + 1))
    if not (numbers or literals) and not any(
        choice in (bool, str) or get_origin(choice) is tuple for choice in choices
    ):
        yield from (3, "a word", math.nan)


def complaint(part: Any, name: str, bad: Any) -> str | None:
    """What is wrong with how a class takes a wrong value; None: it refuses it in one line that names the field."""
    try:
        replace(part, **{name: bad})
    except InputError as error:
        line = str(error)
        return None if name in line and ", got " in line and "\n" not in line else f"{name}={shown(bad)}: {line!r}"
    except Exception as error:
        return f"{name}={shown(bad)}: {type(error).__name__}: {error}"
    return f"{name}={shown(bad)}: accepted"


def shown(bad: Any) -> str:
    try:
        return repr(bad)[:80]
    except ValueError:  # a number of very many digits
        return "10**5000"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: f"{c.__module__.removeprefix('fedsim.')}.{c.__name__}")
def test_every_field_refuses_what_it_cannot_mean_in_one_line(kind: type, folder: Path) -> None:
    part, hints = example(kind, folder), get_type_hints(kind)
    tried = [(f.name, bad) for f in fields(kind) for bad in wrong(hints[f.name], kind.__name__, f.name)]
    found = [line for name, bad in tried if (line := complaint(part, name, bad))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: f"{c.__module__.removeprefix('fedsim.')}.{c.__name__}")
def test_right_values_of_other_types_are_converted(kind: type, folder: Path) -> None:
    part, hints = example(kind, folder), get_type_hints(kind)
    for field in fields(kind):
        value, choices = getattr(part, field.name), members(hints[field.name])
        other: list[Any] = []
        if type(value) in (int, float, bool, str) and {int, float, bool, str} & set(choices):
            other = [np.array(value)[()]]
            other += [int(value)] if type(value) is float and value.is_integer() else []
        elif type(value) is tuple:
            other = [list(value)]
        for given in other:
            done = getattr(replace(part, **{field.name: given}), field.name)
            assert done == value
            assert type(done) is type(value)


def test_the_law_is_about_the_catalogue_and_what_is_left_out_exists() -> None:
    targets = set()
    for path in ROOT.glob("configs/*/*.yaml"):
        targets |= set(re.findall(r"^\s*_target_: (fedsim\.[\w.]+)$", path.read_text(), re.M))
    named = {getattr(importlib.import_module(t.rpartition(".")[0]), t.rpartition(".")[2]) for t in targets}
    assert {c for c in named if is_dataclass(c)} <= set(CLASSES)
    for module, names in INTERNAL.items():
        assert all(is_dataclass(getattr(importlib.import_module(module), name)) for name in names)


def stated(kind: type) -> dict[str, tuple[float, float, bool, bool]]:
    """Ranges that docstrings state: low, high, and whether each bound belongs to the range."""
    found = {}
    for holder in reversed(kind.__mro__):
        for name, text in re.findall(r"^ {8}(\w+): (.*?)(?=^ {8}\w+: |\Z|^\s*$)", holder.__doc__ or "", re.M | re.S):
            text = " ".join(text.split())
            zero = "0: computed" in text or "0: all" in text
            if m := re.search(r"\bin ([\[(])(-?[\d.]+), (-?[\d.]+)([\])])", text):
                found[name] = (float(m[2]), float(m[3]), zero or m[1] == "[", m[4] == "]")
            elif m := re.search(r"\bin (\d+)\.\.(\d+)\b", text):
                found[name] = (float(m[1]), float(m[2]), True, True)
            elif m := re.search(r"(>=?) ?(-?\d+(?:\.\d+)?)\b", text):
                found[name] = (float(m[2]), math.inf, zero or m[1] == ">=", False)
            elif m := re.search(r"\bin (\d+)\.\.", text):
                found[name] = (float(m[1]), math.inf, True, False)
    return {name: found[name] for name in found if name in {f.name for f in fields(kind)}}


def outside(low: float, high: float, with_low: bool, with_high: bool, whole: bool) -> Iterator[float]:
    """Numbers at and beyond the bounds that are not in the range."""
    step = 1 if whole else 0.01
    number = int if whole else float
    yield number(low - step if with_low else low)
    if high < math.inf:
        yield number(high + step if with_high else high)


RANGES = {kind: ranges for kind in CLASSES if (ranges := stated(kind))}


@pytest.mark.parametrize("kind", RANGES, ids=lambda kind: kind.__name__)
def test_a_stated_range_is_kept(kind: type, folder: Path) -> None:
    part, hints = example(kind, folder), get_type_hints(kind)
    for name, bounds in RANGES[kind].items():
        choices = members(hints[name])
        listed = any(get_origin(choice) is tuple for choice in choices)
        for bad in outside(*bounds, whole=float not in choices):
            with pytest.raises(InputError, match=rf"\b{name}\b.*, got "):
                replace(part, **{name: (bad,) if listed else bad})
