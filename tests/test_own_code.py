"""A user's own classes: every part of a run is checked where it enters, and what fails before round 0 is one line."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import TensorDataset

import fedsim.algorithms.fedavg
from fedsim import Engine, Evaluate, Local, Mean, simulate
from fedsim.algorithms.dpsgd import DPSGD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedper import FedPer
from fedsim.assembly import network
from fedsim.assembly.assemble import Assembled
from fedsim.assembly.nodes import build_object
from fedsim.assembly.part_roles import ROLES, require_parts
from fedsim.channel.channel import Channel
from fedsim.channel.onion import Layer
from fedsim.channel.topk import TopK
from fedsim.data import Dataset, Digits, Split
from fedsim.errors import InputError
from fedsim.ground.layout import Layout
from fedsim.ground.own_code import own_code
from fedsim.models import linear, mlp
from fedsim.partition import Iid, Population
from fedsim.privacy.config import CentralGaussian
from fedsim.record.checkpoint import Checkpointing
from fedsim.schedule import All, Uniform
from fedsim.topology import Ring
from tests.test_cli import SMALL, composed, options
from tests.test_cli import main as main

X = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
DATA = Dataset("own", Split(X, (X[:, 0] > 0).astype(np.int64)), None, "classification", 2)
RIGHT: dict[str, Any] = {
    "algorithm": FedAvg(lr=0.1),
    "data": DATA,
    "partition": Iid(clients=4),
    "model": linear,
    "rounds": 1,
    "schedule": All(),
    "local": Local(batch_size=4),
    "aggregate": Mean(),
    "topology": None,
    "channel": Channel(),
    "downlink": Channel(),
    "privacy": None,
    "engine": Engine(backend="serial"),
    "evaluate": Evaluate(),
    "task": None,
    "seed": 0,
    "checkpoint": Checkpointing(),
    "trajectory": False,
    "events": False,
    "resume": False,
    "progress": False,
    "run_dir": None,
    "config": None,
    "callbacks": (),
    "name": None,
}
STRANGERS: dict[str, Any] = {
    "None": None,
    "a string": "fedavg",
    "bytes": b"iid",
    "a number": 0.5,
    "an array": X,
    "a tensor": torch.from_numpy(X),
    "a tuple of arrays": (X, X[:, 0]),
    "a list": [Layer("topk", TopK(ratio=0.1), None)],
    "a dictionary": {"_target_": "fedsim.algorithms.fedavg.FedAvg", "lr": 0.1},
    "a node of Hydra": OmegaConf.create({"_target_": "fedsim.algorithms.fedavg.FedAvg", "lr": 0.1}),
    "a torch data set": TensorDataset(torch.from_numpy(X)),
    "a graph": nx.cycle_graph(4),
    "an optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1),
    "the class of an optimizer": torch.optim.Adam,
    "a module": nn.Linear(3, 2),
    "a class of modules": nn.Linear,
    "a factory": mlp,
    "a module of Python": fedsim.algorithms.fedavg,
    "numpy": np,
    "a split": DATA.train,
    "an algorithm": FedAvg(lr=0.1),
    "peers": DPSGD(lr=0.1),
    "a source": Digits(),
    "a data set": DATA,
    "a partition": Iid(clients=4),
    "a schedule": Uniform(cohort=2),
    "a topology": Ring(),
    "a rule": Mean(),
    "a mechanism": CentralGaussian(delta=1e-5, noise_multiplier=1.0),
    "local": Local(),
    "an engine": Engine(backend="serial"),
    "the class FedAvg": FedAvg,
    "the class Digits": Digits,
    "the class Iid": Iid,
    "the class All": All,
    "the class Ring": Ring,
    "the class Mean": Mean,
    "the class Local": Local,
    "the class Engine": Engine,
}
FITS = {  # the strangers that are none
    "algorithm": {"an algorithm", "peers"},
    "data": {"a source", "a data set"},
    "partition": {"a partition"},
    "model": {"a module", "a class of modules", "a factory"},
    "schedule": {"a schedule"},
    "local": {"local"},
    "aggregate": {"a rule"},
    "topology": {"None", "a topology"},
    "privacy": {"None", "a mechanism"},
    "task": {"None"},
    "engine": {"an engine"},
    "run_dir": {"None", "a string"},
    "name": {"None", "a string"},
    "config": {"None", "a dictionary", "a node of Hydra"},
}


@pytest.mark.parametrize("name", RIGHT)
def test_every_argument_refuses_every_stranger(name: str, tmp_path: Path) -> None:
    """By its own name, in one line, before anything is read."""

    class Unread:
        def load(self, seed: int) -> Dataset:
            raise AssertionError("the data must not be read before all parts are checked")

    for what, stranger in STRANGERS.items():
        if what in FITS.get(name, set()) or (name == "model" and isinstance(stranger, type)):
            continue  # any class may be a factory: what it gives is checked
        parts = {**RIGHT, "data": Unread(), **{name: stranger}}
        with pytest.raises(InputError, match=rf"^{name}(\[0\])? must ") as caught:
            simulate(parts.pop("algorithm"), **parts)
        assert "\n" not in str(caught.value), what
        assert ", got " in str(caught.value), what
    assert simulate(RIGHT["algorithm"], **{k: v for k, v in RIGHT.items() if k != "algorithm"}).status == "finished"


@pytest.mark.parametrize(
    ("name", "stranger", "says"),
    [
        ("algorithm", FedAvg, r"got the class FedAvg; pass an object of it: FedAvg\(...\)"),
        ("algorithm", "fedavg", "got 'fedavg'; names are for the command line"),
        ("algorithm", Digits(), r"it fits data=Digits\(...\)"),
        ("algorithm", STRANGERS["an optimizer"], r"FedAvg\(lr=0.1\), got torch.optim.sgd.SGD without init_server"),
        ("algorithm", STRANGERS["a node of Hydra"], "fedsim.assembly.configuration.build_run"),
        ("data", TensorDataset(torch.from_numpy(X)), r"arrays as fedsim.data.Dataset\('mine', Split\(x, y\)"),
        ("data", (X, X[:, 0]), r"arrays as fedsim.data.Dataset\('mine', Split\(x, y\)"),
        ("data", FedAvg(lr=0.1), r"it fits algorithm=FedAvg\(...\)"),
        ("partition", nn.Linear(3, 2), "it fits model=Linear"),
        ("topology", nx.path_graph(4), "networkx.write_graphml"),
        ("channel", [], r"Channel\(\(Layer\("),
        ("model", "mlp", "model must be a factory such as fedsim.models.mlp"),
        ("model", [], "model must be one or more architectures"),
        ("model", [mlp, "mlp"], "model must be a factory"),
        ("model", nn.Linear(3, 2).state_dict(), "model must be a factory"),
        ("model", lambda: None, "model must be or give a torch.nn.Module, got 'NoneType'"),
        ("model", FedAvg, "model FedAvg cannot be built"),
        ("run_dir", "", "run_dir must be a path or None, got ''; for the current folder"),
        ("rounds", 2.0, "rounds must be an int, got 2.0"),
        ("rounds", True, "rounds must be an int, got True"),
        ("seed", "0", "seed must be an int, got '0'"),
    ],
)
def test_the_line_says_what_to_pass(name: str, stranger: Any, says: str) -> None:
    parts = {**RIGHT, name: stranger}
    with pytest.raises(InputError, match=says):
        simulate(parts.pop("algorithm"), **parts)


def test_numpy_has_integers_too() -> None:
    parts = {**RIGHT, "rounds": np.int64(1), "seed": np.int32(3)}
    assert simulate(parts.pop("algorithm"), **parts).status == "finished"


@pytest.mark.parametrize(
    "group", ["algorithm", "data", "partition", "schedule", "aggregate", "topology", "privacy", "engine"]
)
def test_the_whole_catalogue_plays_its_parts(group: str) -> None:
    """No option of the configuration that the check of Python's door would refuse."""
    for name in options(group):
        noise = ["privacy.target_epsilon=1"] if group == "privacy" and name != "none" else []
        node = composed(f"{group}={name}", *noise)[group]
        if node is not None and "???" not in map(str, node.values()):
            require_parts({group: build_object(node, group)})


class Partial:
    """An algorithm whose ``local`` forgot the round."""

    init_server = init_client = staticmethod(lambda x0: ())

    def broadcast(self, server: Any, rnd: Any) -> Any: ...

    def local(self, obj: Any, client: Any, got: Any) -> Any: ...

    def server(self, server: Any, received: Any, rnd: Any) -> Any: ...


def test_methods_take_the_arguments_of_their_protocol() -> None:
    with pytest.raises(InputError, match=r"Partial without local\(obj, client, got, rnd\)"):
        simulate(Partial(), **{k: v for k, v in RIGHT.items() if k != "algorithm"})  # type: ignore[arg-type]


MINE = """
import sys
from dataclasses import dataclass
import numpy as np, torch
from torch import nn
from fedsim.algorithms.fedavg import FedAvg
from fedsim.data import Dataset, Digits, Split
from fedsim.partition import Iid, Population
from fedsim.schedule import All
from fedsim.topology import Ring

class Dumb(Exception):
    def __str__(self):
        raise ValueError("no words")

def fails(what):
    if what == "file":
        return np.load("not_there.npy")  # FileNotFoundError, raised by numpy
    if what == "lines":
        raise RuntimeError("size mismatch:\\n\\tweight\\n\\tbias")
    if what == "exit":
        sys.exit(0)
    if what == "dumb":
        raise Dumb
    kinds = {"key": KeyError, "value": ValueError, "zero": ZeroDivisionError, "none": AttributeError}
    raise kinds[what]("no such thing")

@dataclass(frozen=True)
class Construct:
    what: str
    def __post_init__(self):
        fails(self.what)
    def load(self, seed): ...
    def split(self, data, seed): ...
    def mixing(self, n, index, seed): ...

@dataclass(frozen=True)
class Load:
    what: str
    def load(self, seed):
        return fails(self.what)

@dataclass(frozen=True)
class Divide:
    what: str
    def split(self, data, seed):
        return fails(self.what)

@dataclass(frozen=True)
class Check(All):
    what: str
    def check(self, population, rounds):
        fails(self.what)

@dataclass(frozen=True)
class Clients(All):
    what: str
    def clients(self, index, population, seed):
        return fails(self.what)

@dataclass(frozen=True)
class Mix:
    what: str
    def mixing(self, n, index, seed):
        return fails(self.what)

@dataclass(frozen=True)
class InitServer(FedAvg):
    what: str = ""
    def init_server(self, x0):
        return fails(self.what)

@dataclass(frozen=True)
class InitClient(FedAvg):
    what: str = ""
    def init_client(self, x0):
        return fails(self.what)

def factory(input_shape, outputs, what):
    return fails(what)

class Net(nn.Module):
    def __init__(self, what: str):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        fails(what)

def graph(n):
    return fails("value")
"""
BOUND = ("file", "lines", "key", "value", "zero", "none", "exit", "dumb")
DOORS = {  # the overrides, and the class or function of the user's that the line names
    "Construct": ("data._target_=mine.Construct", "data.what"),
    "Load": ("data._target_=mine.Load", "data.what"),
    "Divide": ("partition._target_=mine.Divide", "partition.what"),
    "Check": ("schedule._target_=mine.Check", "schedule.what"),
    "Clients": ("schedule._target_=mine.Clients", "schedule.what"),
    "Mix": ("algorithm=dpsgd", "topology._target_=mine.Mix", "topology.what"),
    "InitServer": ("algorithm._target_=mine.InitServer", "algorithm.lr=0.1", "algorithm.what"),
    "InitClient": ("algorithm._target_=mine.InitClient", "algorithm.lr=0.1", "algorithm.what"),
    "factory": ("model._target_=mine.factory", "model.what"),
    "Net": ("model._target_=mine.Net", "model.what"),
}
TYPES = {
    "file": "FileNotFoundError: [Errno 2] No such file or directory: 'not_there.npy'",
    "lines": "RuntimeError: size mismatch: weight bias",
    "key": "KeyError: 'no such thing'",
    "value": "ValueError: no such thing",
    "zero": "ZeroDivisionError: no such thing",
    "none": "AttributeError: no such thing",
    "exit": "SystemExit: 0",
    "dumb": "Dumb: its message cannot be printed",
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of a user, in the folder where fedsim is called."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine", None)
    yield importlib.import_module("mine")
    sys.modules.pop("mine", None)


def number(text: str) -> int:
    """The line of ``MINE`` that holds a text."""
    return next(n for n, line in enumerate(MINE.splitlines(), 1) if text in line)


RAISED = {what: number("raise kinds") for what in BOUND} | {
    "file": number("np.load"),
    "lines": number("raise RuntimeError"),
    "exit": number("sys.exit"),
    "dumb": number("raise Dumb"),
}


@pytest.mark.parametrize(("door", "what"), list(itertools.product(DOORS, BOUND)))
def test_what_fails_before_round_0_is_one_line(
    mine: ModuleType, main: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, door: str, what: str
) -> None:
    *others, key = DOORS[door]
    argv = [text for text in (*SMALL, *others) if not key.startswith(text.split(".")[0] + ".") or text in others]
    argv = [text for text in argv if text != "schedule=all" or not key.startswith("schedule")]
    assert main(*argv, f"{key}={what}", "hydra.run.dir=out") == 2
    err = capsys.readouterr().err
    (line,) = err.splitlines()
    assert f"mine.{door}" in line
    assert f"mine.py:{RAISED[what]} in fails" in line
    assert TYPES[what] in line
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


@pytest.mark.parametrize("what", BOUND)
@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("data", "Load"),
        ("partition", "Divide"),
        ("schedule", "Check"),
        ("schedule", "Clients"),
        ("topology", "Mix"),
        ("algorithm", "InitServer"),
        ("algorithm", "InitClient"),
        ("model", "factory"),
        ("model", "Net"),
    ],
)
def test_from_python_the_line_chains_the_exception(mine: ModuleType, part: str, name: str, what: str) -> None:
    made = getattr(mine, name)
    if part == "model":
        one: Any = functools.partial(made, what=what)
    else:
        one = made(lr=0.1, what=what) if part == "algorithm" else made(what=what)
    parts = {**RIGHT, part: one, **({"algorithm": DPSGD(lr=0.1)} if part == "topology" else {})}
    with pytest.raises(InputError, match=f"mine.{name}.*mine.py:{RAISED[what]} in fails") as caught:
        simulate(parts.pop("algorithm"), **parts)
    cause = caught.value.__cause__
    while isinstance(cause, InputError):
        cause = cause.__cause__
    assert type(cause).__name__ == TYPES[what].partition(":")[0]


def test_a_users_function_inside_one_of_our_classes_is_the_users(
    mine: ModuleType, main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(*SMALL, "algorithm=dpsgd", "topology=networkx", "topology.generator=mine.graph") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("text", ["1 / 0", "open('not_there')", "import not_there", "def f(:", "exit(0)"])
def test_a_module_that_cannot_be_imported_is_one_line(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str
) -> None:
    sys.modules.pop("broken", None)
    (tmp_path / "broken.py").write_text(f"\n{text}\nclass A: ...\n")
    assert main(*SMALL, "data._target_=broken.A") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data" in line
    assert "broken" in line or "not_there" in line


@pytest.mark.parametrize("given", [(X, X[:, 0]), None, TensorDataset(torch.from_numpy(X)), DATA.train])
def test_a_source_loads_a_data_set(given: Any) -> None:
    class Mine:
        def load(self, seed: int) -> Any:
            return given

    with pytest.raises(InputError, match=r"data: Mine.load must return a fedsim.data.Dataset, got"):
        simulate(RIGHT["algorithm"], **{k: v for k, v in RIGHT.items() if k not in ("algorithm", "data")}, data=Mine())


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (lambda p: [[0], [1]], "must return a Population, got 'list'"),
        (lambda p: p((), ()), "one or more clients"),
        (lambda p: p(([0, 1], [24]), ()), r"must give samples 0..23 of data.train, got '24..24 for client 1'|24..24"),
        (lambda p: p(([-1, 0], [1]), ()), "must give samples 0..23 of data.train"),
        (lambda p: p(([0], [1]), ([0], [1])), "a test split, or none"),
        (lambda p: p(([0.5], [1]), ()), r"Population.train\[0\] must be \[samples\] whole numbers"),
        (lambda p: p((np.ones(24, bool), [1]), ()), r"Population.train\[0\] must be"),
        (lambda p: p(([[0]], [1]), ()), r"Population.train\[0\] must be"),
        (lambda p: p(([0, 1], [2, 3, 3]), ()), "once, got sample 3 more than once for client 1"),
        (lambda p: p(([5, 0, 5], [2, 3]), ()), "once, got sample 5 more than once for client 0"),
    ],
)
def test_a_partition_gives_samples_that_exist(rows: Any, says: str) -> None:
    class Mine:
        def split(self, data: Dataset, seed: int) -> Any:
            return rows(Population)

    parts = {**RIGHT, "partition": Mine()}
    with pytest.raises(InputError, match=says):
        simulate(parts.pop("algorithm"), **parts)


@pytest.mark.parametrize(
    "cohort", [None, [0, 1], (1, 0), (0, 0), (0, 4), (-1,), (0.0,), "01", (False, True), (0, True)]
)
def test_a_schedule_names_clients(cohort: Any) -> None:
    class Mine(All):
        def clients(self, index: int, population: int, seed: int) -> Any:
            return cohort

    parts = {**RIGHT, "schedule": Mine()}
    with pytest.raises(InputError, match=r"schedule: Mine.clients must return a tuple of client numbers in 0..3"):
        simulate(parts.pop("algorithm"), **parts)


def changed(kind: type, method: str, answer: Any) -> Any:
    """An object of a subclass whose method answers as ``answer(what the method would)``; a user's, for it is here."""
    right = getattr(kind, method)
    mine = type("Mine", (kind,), {method: lambda self, *args: answer(right(self, *args)), "__module__": __name__})
    return mine(lr=0.1)


def refuses(_: Any) -> Any:
    raise LookupError("no such thing")


def ends(_: Any) -> Any:
    sys.exit(0)


RUBBISH: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda _: None,
    "a number": lambda _: 1.0,
    "a list": lambda right: [right],
    "text": lambda _: "text",
    "fails": refuses,
    "ends": ends,
}


@pytest.mark.parametrize("algorithm", [FedAvg(lr=0.1), DPSGD(lr=0.1)])
@pytest.mark.parametrize("first", [1, 2, 7, network.ROUNDS_AHEAD - 1])
def test_a_schedule_names_clients_in_every_round(monkeypatch: pytest.MonkeyPatch, algorithm: Any, first: int) -> None:
    class Mine(All):
        def clients(self, index: int, population: int, seed: int) -> Any:
            return (0, 99) if index >= first else (0,)

    monkeypatch.setattr(Assembled, "start", lambda self: pytest.fail("it has started"))
    parts = {**RIGHT, "schedule": Mine(), "algorithm": algorithm, "rounds": first + 1}
    parts |= {"topology": Ring()} if isinstance(algorithm, DPSGD) else {}
    with pytest.raises(InputError, match=rf"Mine.clients must return .* in 0..3, .*got \(0, 99\) for index {first}$"):
        simulate(parts.pop("algorithm"), **parts)


@pytest.mark.parametrize("algorithm", [FedAvg(lr=0.1), DPSGD(lr=0.1)])
@pytest.mark.parametrize("late", [lambda: (0, 99), lambda: None, lambda: refuses(0), lambda: ends(0)])
def test_later_cohorts_are_looked_at_as_they_come(monkeypatch: pytest.MonkeyPatch, algorithm: Any, late: Any) -> None:
    class Mine(All):
        def clients(self, index: int, population: int, seed: int) -> Any:
            return late() if index >= 2 else (0,)

    monkeypatch.setattr(network, "ROUNDS_AHEAD", 2)
    parts = {**RIGHT, "schedule": Mine(), "algorithm": algorithm, "rounds": 4}
    parts |= {"topology": Ring()} if isinstance(algorithm, DPSGD) else {}
    with pytest.raises(InputError, match=r"^schedule: .*Mine") as caught:
        simulate(parts.pop("algorithm"), **parts)
    assert "\n" not in str(caught.value)


def test_a_schedule_brings_somebody() -> None:
    class Mine(All):
        came: tuple[int, ...] = ()

        def clients(self, index: int, population: int, seed: int) -> Any:
            return self.came if index == 1 else ()

    parts = {**RIGHT, "schedule": Mine(), "rounds": 3}
    with pytest.raises(InputError, match=r"Mine.clients must bring a client in one of the first 3 rounds, got"):
        simulate(RIGHT["algorithm"], **{k: v for k, v in parts.items() if k != "algorithm"})
    Mine.came = (2,)
    assert simulate(RIGHT["algorithm"], **{k: v for k, v in parts.items() if k != "algorithm"}).status == "finished"


@pytest.mark.parametrize("what", RUBBISH)
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((FedAvg, name) for name in ("init_server", "init_client", "broadcast", "local", "server")),
        *((FedPer, name) for name in ("local", "own", "server")),
        *((DPSGD, name) for name in ("init_client", "local", "offer", "mix", "model")),
    ],
)
def test_a_method_that_returns_rubbish_is_one_line_before_the_run(
    monkeypatch: pytest.MonkeyPatch, kind: type, method: str, what: str
) -> None:
    """Without a channel too, whose messages have always been rehearsed."""
    monkeypatch.setattr(Assembled, "start", lambda self: pytest.fail("it has started"))
    parts = {**RIGHT, "algorithm": changed(kind, method, RUBBISH[what])}
    parts |= {"topology": Ring()} if kind is DPSGD else {}
    parts |= {"model": mlp} if kind is FedPer else {}
    with pytest.raises(InputError, match=r"Mine|of an algorithm must return|is a method") as caught:
        simulate(parts.pop("algorithm"), **parts)
    assert "\n" not in str(caught.value)
    assert method in str(caught.value) or "no such thing" in str(caught.value) or "SystemExit" in str(caught.value)


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("local", lambda right: right[0]),
        ("local", lambda right: (*right, 1)),
        ("local", lambda right: ({"update": None}, right[1])),
        ("local", lambda right: (right[0], torch.zeros(3))),
        ("local", lambda right: ({"other": right[0]["update"]}, right[1])),
        ("local", lambda right: ({"update": right[0]["update"][:-1]}, right[1])),
        ("broadcast", lambda right: {}),
        ("broadcast", lambda right: {"x": None}),
        ("server", lambda right: right._replace(x=right.x[:-1])),
        ("server", lambda right: (right.x,)),
        ("server", lambda right: right._replace(x=None)),
    ],
)
def test_what_has_another_shape_is_one_line_before_the_run(
    monkeypatch: pytest.MonkeyPatch, method: str, answer: Callable[[Any], Any]
) -> None:
    monkeypatch.setattr(Assembled, "start", lambda self: pytest.fail("it has started"))
    parts = {**RIGHT, "algorithm": changed(FedAvg, method, answer)}
    with pytest.raises(InputError, match=r"algorithm Mine fails on|^server of an algorithm must return") as caught:
        simulate(parts.pop("algorithm"), **parts)
    assert "\n" not in str(caught.value)


def test_what_fails_without_a_gradient_only_runs() -> None:
    """The first rehearsal, in which nothing is computed, answers with gradients of zero."""

    class Divides(FedAvg):
        def local(self, obj: Any, client: Any, got: Any, rnd: Any) -> Any:
            message, state = super().local(obj, client, got, rnd)
            if not torch.is_tensor(message["update"]) or not hasattr(obj, "value"):
                raise AssertionError
            if type(obj._oracle).__name__ == "_Silent":
                raise ZeroDivisionError
            return message, state

    parts = {**RIGHT, "algorithm": Divides(lr=0.1)}
    assert simulate(parts.pop("algorithm"), **parts).status == "finished"


@pytest.mark.parametrize("w", [None, nx.cycle_graph(4), np.eye(4), Ring().mixing(5, 0, 0)])
def test_a_topology_gives_a_matrix_of_the_peers(w: Any) -> None:
    class Mine:
        def mixing(self, n: int, index: int, seed: int) -> Any:
            return w

    parts = {**RIGHT, "algorithm": DPSGD(lr=0.1), "topology": Mine()}
    with pytest.raises(InputError, match=r"topology: Mine\.mixing must return a"):
        simulate(parts.pop("algorithm"), **parts)


def test_a_fault_of_fedsims_own_stays_a_traceback() -> None:
    """No line of a user's takes part in this one: it is a bug, and a bug keeps its traceback."""
    with pytest.raises(AttributeError):
        own_code("run")(Layout.of)(None)  # type: ignore[arg-type]


def test_every_argument_of_simulate_is_tried_above() -> None:
    assert set(inspect.signature(simulate).parameters) == set(RIGHT)
    assert set(ROLES) <= set(RIGHT)
