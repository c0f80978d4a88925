"""What a whole number in a configuration may cost: nothing that is allocated or started is without an upper bound.

Every field of every dataclass that a user may construct, and every option of every model, either refuses an enormous
number where it is given, or stands here with the reason why it needs no bound of its own.
"""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from fedsim import models, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.channel.channel import Channel, Layer
from fedsim.channel.lowrank import LowRank
from fedsim.channel.qsgd import QSGD
from fedsim.channel.randk import RandK
from fedsim.channel.sign import Sign
from fedsim.channel.topk import TopK
from fedsim.channel.uniform import Uniform
from fedsim.data import Digits
from fedsim.errors import InputError
from fedsim.local import Local
from fedsim.models import linear
from fedsim.partition import Iid
from fedsim.pool.engine import Engine
from tests.laws.test_fields import CLASSES, example, members

ENORMOUS = 2**40
"""Of bytes more than any machine has for one thing, and of threads or clients more than there will be."""

SAMPLES = "compared with the training samples, and their classes, before anything is divided"
PEERS = "compared with the clients before the run starts"
TIME = "costs time, which can be stopped, and no memory"
LATER = "a number to be compared with; nothing is made for it"
FITTED = "at most what there is: a message's entries, a client's examples, a matrix's sides, or the clients"
INNER = "made by the program from parts that were checked, or compared with the clients there"

UNBOUNDED = {
    **{("*", name): SAMPLES for name in ("clients", "per_client", "held_out", "min_samples")},
    **{("*", name): PEERS for name in ("cohort", "concurrency", "degree", "neighbours", "edges", "left", "bridge")},
    ("Grid", "rows"): PEERS,
    ("Torus", "rows"): PEERS,
    ("BaseKPlus1", "k"): FITTED,
    **{("*", name): TIME for name in ("gossip_steps", "attempts", "head_passes", "iterations", "retries")},
    **{("*", name): LATER for name in ("period", "start", "warmup", "every", "keep", "seed", "first", "factor")},
    **{("*", name): LATER for name in ("buffer", "common", "min_chars", "max_size", "compresses_from", "outputs")},
    ("EarlyStopping", "patience"): LATER,
    **{("Tuning", name): LATER for name in ("parameters", "numbers", "rows", "wide", "alone")},
    ("Adapted", "output"): FITTED,
    **{("*", name): FITTED for name in ("rank", "chunk", "bucket", "batch_size", "min_separation", "bands")},
    **{(name, "k"): FITTED for name in ("RandK", "TopK")},
    ("*", "shape"): "compared with the columns that there are",
    ("ImageFolder", "size"): "compared with memory when the images are known",
    ("LibSVM", "n_features"): "compared with memory when the file's lines are known",
    **{("*", name): INNER for name in ("expected", "separation", "parameters", "count", "features")},
}
"""{(class or *, field): why it has no upper bound of its own}."""


def whole_numbers(kind: type) -> list[tuple[str, Any]]:
    """Fields that hold whole numbers, and an enormous value of each."""
    found: list[tuple[str, Any]] = []
    hints = get_type_hints(kind)
    for field in fields(kind):
        choices = members(hints[field.name])
        if int in choices:
            found.append((field.name, ENORMOUS))
        elif any(get_origin(choice) is tuple and int in get_args(choice) for choice in choices):
            found.append((field.name, (ENORMOUS,)))
    return found


def accepted(folder: Path) -> set[tuple[str, str]]:
    """Fields that take an enormous number."""
    found = set()
    for kind in CLASSES:
        part = example(kind, folder)
        for name, value in whole_numbers(kind):
            try:
                replace(part, **{name: value})
            except InputError:
                continue
            found.add((kind.__name__, name))
    return found


def test_every_whole_number_has_a_bound_or_needs_none(tmp_path: Path) -> None:
    taken = accepted(tmp_path)
    reasons = {pair if pair in UNBOUNDED else ("*", pair[1]) for pair in taken}
    assert reasons - set(UNBOUNDED) == set(), "give them an upper bound, or a reason here"
    assert set(UNBOUNDED) - reasons == set(), "they have a bound now: remove them here"


def test_what_starts_processes_and_threads_is_bounded() -> None:
    for name in ("threads", "actors"):
        with pytest.raises(InputError, match=f"{name} must be <= 1024, got 100000"):
            Engine(**{name: 100_000})
    assert Engine(threads=1024, actors=1024, jobs=2**20, block=2**20).threads == 1024


def factories() -> list[str]:
    """Models that come with fedsim."""
    functions = {name: inspect.signature(f) for name, f in vars(models).items() if inspect.isfunction(f)}
    return sorted(name for name, s in functions.items() if [*s.parameters][:2] == ["input_shape", "outputs"])


SHAPES = {"char_lstm": (8,), "transformer": (8,), "gpt_small": (8,)}
OPTIONS = [
    (name, option)
    for name in factories()
    for option, parameter in inspect.signature(getattr(models, name)).parameters.items()
    if option not in ("input_shape", "outputs") and "int" in str(parameter.annotation)
]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_of_a_model_has_a_bound(name: str, option: str) -> None:
    factory = getattr(models, name)
    listed = "tuple" in str(inspect.signature(factory).parameters[option].annotation)
    with pytest.raises(InputError, match=option):
        factory(SHAPES.get(name, (3, 32, 32)), 10, **{option: (10**9, 10**9) if listed else 6 * 10**9 + 2})


def test_the_law_is_about_models_with_options() -> None:
    assert {("mlp", "hidden"), ("cnn", "channels"), ("char_lstm", "layers"), ("resnet_small_gn", "depth")} <= {*OPTIONS}


FITS: dict[str, dict[str, Any]] = {
    "batch_size": {"local": Local(batch_size=ENORMOUS)},
    "qsgd": {"channel": Channel((Layer("qsgd", QSGD(bucket=ENORMOUS)),))},
    "uniform": {"channel": Channel((Layer("uniform", Uniform(bucket=ENORMOUS)),))},
    "sign": {"channel": Channel((Layer("sign", Sign(bucket=ENORMOUS)),))},
    "lowrank": {"channel": Channel((Layer("lowrank", LowRank(rank=ENORMOUS)),))},
    "topk": {"channel": Channel((Layer("topk", TopK(k=ENORMOUS)),))},
    "randk": {"channel": Channel((Layer("randk", RandK(k=ENORMOUS)),))},
    "jobs": {"engine": Engine(backend="serial", jobs=2**20)},
    "block": {"engine": Engine(backend="serial", block=2**20)},
}


@pytest.mark.parametrize("name", FITS)
def test_what_is_fitted_to_what_there_is_runs(name: str) -> None:
    parts: dict[str, Any] = {"data": Digits(), "partition": Iid(clients=4), "model": linear, "rounds": 1}
    assert simulate(FedAvg(lr=0.1), **parts | FITS[name]).status == "finished"


@pytest.mark.parametrize("clients", [ENORMOUS, 10**6])
def test_more_clients_than_samples_are_refused_before_they_are_made(clients: int) -> None:
    with pytest.raises(InputError, match=r"partition\.clients must be <= the 1438 training samples"):
        simulate(FedAvg(lr=0.1), data=Digits(), partition=Iid(clients=clients), model=linear, rounds=1)
