"""What holds for every layer of the channel, collected from configs/channel/*.yaml.

Two ways of computing the same message differ by rounding. Where that rounding could flip a codec's choice (the last
kept entry of Top-K, a level drawn within 1e-15 of its edge, the sign of a zero) results could differ by more than
rounding; in float64 on this data no entry is that close, except exact zeros, which all kernels agree on.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fedsim import Engine, Local, Result, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.assembly.nodes import build_channel
from fedsim.channel.channel import Channel
from fedsim.ground.tree import leaves
from fedsim.partition import Dirichlet
from fedsim.schedule import Uniform
from tests.conftest import images, small_cnn

ROOT = Path(__file__).parent.parent.parent
LAYERS = sorted(path.stem for path in (ROOT / "configs/channel").glob("*.yaml"))
INSIDE = dict.fromkeys(["econtrol", "ef14", "ef21", "ef21_plus", "ef21_sgdm", "layerwise"], "topk") | {"diana": "qsgd"}
STACKS = [*LAYERS, "topk+fp16", "econtrol+layerwise+topk", "ef21_plus+topk+int8"]
EACH = [pytest.param(name, marks=pytest.mark.xdist_group(f"channel {name}")) for name in STACKS]
"""Tests of one stack come to one worker, which keeps the runs that they share."""
VARIANTS = {"bf16": {"format"}, "int4": {"bits", "bucket"}}  # one class under several names


def node(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / f"configs/channel/{name}.yaml").read_text())
    assert list(loaded) == [name], "a file holds one key, its own name"
    return loaded  # type: ignore[no-any-return]


def channel(name: str, encode: bool = False) -> Channel:
    """The layer, with what it needs inside it; or these layers."""
    layers: dict[str, Any] = {}
    for one in [name, INSIDE[name]] if name in INSIDE else name.split("+"):
        layers |= node(one)
    for small in ("topk", "randk"):
        if small in layers:
            layers[small]["ratio"] = 0.1  # 1 % of some parameters is less than an entry
    built: Channel = build_channel({**layers, "encode": encode}, "channel")
    return built


def run(name: str, *, encode: bool = False, **engine: Any) -> Result:
    """Three rounds of clients of different sizes, of which two do not take part in each."""
    return simulate(
        FedAvg(lr=0.1, momentum=0.5),
        data=images(72),
        partition=Dirichlet(clients=6, alpha=0.5, min_samples=2),
        model=small_cnn,
        rounds=3,
        schedule=Uniform(cohort=4),
        local=Local(steps=3, batch_size=8),
        channel=channel(name, encode),
        engine=Engine(**{"backend": "serial", "jobs": 2, **engine}),
        seed=1,
    )


@cache
def counted(name: str) -> Result:
    return run(name)


@cache
def together(name: str) -> Result:
    return run(name, dtype="float64", kernel="stacked", block=2)


def everything(result: Result) -> list[torch.Tensor]:
    """The server's state, and every client's link."""
    links = [torch.from_numpy(a) for i in range(6) for a in leaves(result.stores[0].read([i]))]
    return [*leaves(result.server), *links]


def sent(result: Result) -> list[dict[str, float]]:
    return [{tag: value for tag, value in record.items() if tag.startswith("comm/")} for record in result.metrics]


def assert_close(one: Result, other: Result) -> None:
    for a, b in zip(everything(one), everything(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)  # float64 through nine steps of a CNN
    assert sent(one) == sent(other)


@pytest.mark.parametrize("name", EACH)
def test_runs_finite_and_sends_less(name: str) -> None:
    result = counted(name)
    assert result.status == "finished"
    assert len(result.metrics) == 4
    assert all(np.isfinite(value) for record in result.metrics for value in record.values())
    assert result.metrics[-1]["eval/loss"] != result.metrics[0]["eval/loss"]
    assert result.metrics[-1]["comm/uplink_ratio"] > 1.0
    assert (
        sum(record["comm/uplink_bytes"] for record in result.metrics[1:]) == sent(result)[-1]["comm/uplink_total_bytes"]
    )


@pytest.mark.parametrize("name", EACH)
def test_real_bytes_give_the_same_bits_and_the_counted_size(name: str) -> None:
    """Twice the same seed, too."""
    encoded = run(name, encode=True)
    assert encoded.summary["digest"] == counted(name).summary["digest"]
    assert sent(encoded) == sent(counted(name))
    for a, b in zip(everything(encoded), everything(counted(name)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", EACH)
def test_batching_changes_rounding_only(name: str) -> None:
    assert_close(together(name), run(name, dtype="float64", batching="loop"))


@pytest.mark.parametrize("name", EACH)
def test_jobs_and_blocks_change_rounding_only(name: str) -> None:
    assert_close(together(name), run(name, dtype="float64", kernel="stacked", jobs=1, block=3))


@pytest.mark.parametrize("name", LAYERS)
def test_docstrings_cite_the_paper_and_explain_every_field(name: str) -> None:
    rule = channel(name).layers[0].middleware
    head = ast.get_docstring(ast.parse(inspect.getsource(importlib.import_module(type(rule).__module__)))) or ""
    if name != "layerwise":  # a way to apply a layer, not a method
        assert re.search(r"arXiv\W{1,2}\d{4}\.\d{4,5}|IEEE 754|SIAM|Interspeech", head), "no citation"
        assert re.search(r"\b(19|20)\d\d\b", head), "no year"
    docs = "\n".join(base.__doc__ or "" for base in type(rule).__mro__)
    for field in fields(rule):  # type: ignore[arg-type]
        assert re.search(rf"^\s+{field.name}: ", docs, re.M), f"{field.name} is not documented"


@pytest.mark.parametrize("name", LAYERS)
def test_yaml_holds_the_defaults(name: str) -> None:
    options = node(name)[name]
    module, _, target = options.pop("_target_").rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), target)).parameters
    assert set(options) == set(parameters), "every option is in the yaml"
    changed = {key for key, parameter in parameters.items() if options[key] != parameter.default}
    assert changed <= VARIANTS.get(name, set())
    text = (ROOT / f"configs/channel/{name}.yaml").read_text()
    assert text.startswith("# ")
