"""The examples in docstrings are run, and the things that users call most have one."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "fedsim").rglob("*.py"))
    if ">>> " in path.read_text()
]
MUST = """
fedsim.aggregate.Mean
fedsim.callbacks.early_stopping.EarlyStopping
fedsim.channel.channel.Channel
fedsim.evaluate.Evaluate
fedsim.fields.check_fields
fedsim.local.Local
fedsim.models.convolutional.cnn
fedsim.models.convolutional.lenet
fedsim.models.dense.linear
fedsim.models.dense.linear_zero
fedsim.models.dense.mlp
fedsim.partition.dirichlet.Dirichlet
fedsim.partition.sizes.Iid
fedsim.pool.engine.Engine
fedsim.privacy.config.CentralGaussian
fedsim.schedule.rules.Uniform
fedsim.record.result.Result.client
fedsim.simulation.simulate
fedsim.topology.fixed.Ring
fedsim.topology.spectrum.spectral_gap
"""
"""What must have an example."""


def examples(module: str) -> dict[str, doctest.DocTest]:
    """The docstrings with examples of a module, by the name of what they document."""
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module), module)
    return {test.name: test for test in found if test.examples}


@pytest.mark.parametrize("module", MODULES)
def test_examples_do_what_they_say(module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # an example leaves nothing behind
    tests = examples(module)
    assert tests
    said: list[str] = []
    for test in tests.values():
        doctest.DocTestRunner().run(test, out=said.append)
    assert not said, "\n".join(said)
    assert not list(tmp_path.iterdir())


def test_what_users_call_has_an_example() -> None:
    found = {name for module in MODULES for name in examples(module)}
    assert {*MUST.split()} <= found
