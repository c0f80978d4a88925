"""Assembling a run: parts are one checked value, every stage is visited once, nothing is made twice."""

from __future__ import annotations

import ast
import inspect
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from fedsim.aggregate import Mean
from fedsim.algorithms.fedavg import FedAvg
from fedsim.assembly import assemble as line
from fedsim.assembly.assemble import assemble
from fedsim.assembly.facts import as_node
from fedsim.assembly.parts import Parts
from fedsim.cli import compose, composer, main
from fedsim.data import Dataset
from fedsim.errors import InputError
from fedsim.models import mlp
from fedsim.partition import Iid
from fedsim.pool.rehearsal import rounds_of_all_fields
from fedsim.privacy.config import CentralGaussian
from fedsim.schedule import Events
from tests.test_cli import SMALL


def test_numbers_are_pythons_own_and_virtual_time_is_measured_when_it_says(squares: Dataset) -> None:
    parts = Parts(FedAvg(lr=0.1), squares, Iid(clients=2), mlp, np.int64(3), seed=np.int32(4))  # type: ignore[arg-type]
    assert (type(parts.rounds), type(parts.seed), parts.planned_rounds) == (int, int, 3)
    timed = Parts(FedAvg(lr=0.1), squares, Iid(clients=2), mlp, 99, Events(10.0, record=(1.0, 2.0)), events=True)
    assert timed.planned_rounds == 2
    with pytest.raises(InputError, match=r"^logger\.events must be false for rounds"):
        Parts(FedAvg(lr=0.1), squares, Iid(clients=2), mlp, 3, events=True)


def test_every_stage_is_a_file_that_is_visited_once() -> None:
    """And what one stage makes the next reads: none imports a later one."""
    module = ast.parse(inspect.getsource(line))
    homes = {
        alias.name: node.module
        for node in module.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedsim.assembly.")
        for alias in node.names
    }
    body = next(node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "assemble")
    called = [c for c in ast.walk(body) if isinstance(c, ast.Call) and isinstance(c.func, ast.Name)]
    called.sort(key=lambda call: (call.end_lineno or 0, call.end_col_offset or 0))  # arguments come before their call
    visits = [homes[call.func.id] for call in called if isinstance(call.func, ast.Name) and call.func.id in homes]
    stages = [stage for stage, _ in groupby(visits)]
    assert len(stages) == len(set(stages)) >= 10
    for number, stage in enumerate(stages):
        source = Path(line.__file__).with_name(f"{(stage or '').rpartition('.')[2]}.py").read_text()
        later = [other for other in stages[number + 1 :] if f"from {other} import" in source]
        assert not later, f"{stage} imports {later}"


def test_a_private_runs_model_is_built_once(squares: Dataset) -> None:
    built = []

    def counted(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        built.append(input_shape)
        return mlp(input_shape, outputs, (4,))

    noise = CentralGaussian(delta=1e-5, clip=1.0, noise_multiplier=1.0)
    assembled = assemble(
        Parts(FedAvg(lr=0.1), squares, Iid(clients=3), counted, 2, aggregate=Mean("uniform"), privacy=noise)
    )
    assert len(built) == 1
    assert assembled.ledger is not None


def test_a_run_without_end_is_rehearsed_in_four_rounds() -> None:
    assert rounds_of_all_fields(10**15) == [0, 1, 2, 10**15 - 1]
    assert rounds_of_all_fields(1) == [0]


def test_a_run_of_the_command_line_is_composed_and_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    composed: list[Any] = []
    built: list[Any] = []
    load, build = composer.ConfigLoaderImpl._load_configuration_impl, compose.build_run
    monkeypatch.setattr(
        composer.ConfigLoaderImpl,
        "_load_configuration_impl",
        lambda self, *how, **options: composed.append(how) or load(self, *how, **options),  # type: ignore[func-returns-value]
    )
    monkeypatch.setattr(compose, "build_run", lambda config: built.append(config) or build(config))  # type: ignore[func-returns-value]
    monkeypatch.setattr(main, "build_run", lambda config: pytest.fail("built again"))
    monkeypatch.setattr("sys.argv", ["fedsim", *SMALL, f"hydra.run.dir={tmp_path / 'run'}"])
    assert main.main() == 0
    assert (len(composed), len(built)) == (1, 1)
    overrides = (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text()
    assert overrides.splitlines() == [f"- {text}" for text in SMALL]
    assert "- hydra.mode=RUN" in (tmp_path / "run" / ".hydra" / "hydra.yaml").read_text()


def test_parts_are_described_as_a_configuration_names_them() -> None:
    assert as_node(Iid(clients=2)) == {"_target_": "fedsim.partition.sizes.Iid", "clients": 2} | {
        name: value for name, value in vars(Iid(clients=2)).items() if name != "clients"
    }
    assert as_node(mlp) == {"_target_": "fedsim.models.dense.mlp"}
    assert as_node([mlp, nn.Linear]) == [
        {"_target_": "fedsim.models.dense.mlp"},
        {"_target_": "torch.nn.modules.linear.Linear"},
    ]
