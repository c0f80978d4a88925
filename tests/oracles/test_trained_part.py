"""A model of which a part is trained, against a plain torch loop; what is frozen is neither trained nor sent."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fedsim import Engine, Local, Mean, Result, simulate
from fedsim.aggregate import Stack
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedgh import FedGH
from fedsim.algorithms.fedper import FedPer
from fedsim.algorithms.fedrep import FedRep
from fedsim.algorithms.lg_fedavg import LGFedAvg
from fedsim.algorithms.scaffold import Scaffold
from fedsim.channel.channel import Channel
from fedsim.channel.onion import Layer
from fedsim.channel.topk import TopK
from fedsim.data import Dataset, Split
from fedsim.errors import InputError
from fedsim.ground.rng import stream
from fedsim.models import Adapted, cnn, mlp
from fedsim.partition import Iid, Partition

SEED, CLIENTS, BATCH = 5, 3, 4
ROUNDING = {"float32": 1e-6, "float64": 1e-12}  # of a handful of steps on numbers of order 1
KERNELS = [{"batching": "loop"}, {"kernel": "vmap"}, {"kernel": "stacked"}]


def numbers(shape: tuple[int, ...] = (2, 8, 8), n: int = 30) -> Dataset:
    random = np.random.default_rng(0)
    some = Split(random.normal(size=(n, *shape)), random.integers(3, size=n))
    return Dataset("numbers", some, None, "classification", 3)


def fedavg_by_hand(
    model: nn.Module, data: Dataset, partition: Partition, *, lr: float, rounds: int, dtype: torch.dtype
) -> nn.Module:
    """FedAvg over what requires a gradient, with torch.optim.SGD on a copy for each client."""
    x, y = torch.from_numpy(data.train.x).to(dtype), torch.from_numpy(data.train.y)
    shards = partition.split(data, SEED).train
    model = copy.deepcopy(model).to(dtype)
    for t in range(rounds):
        total: list[Any] = [0.0] * len(list(model.parameters()))
        for client, rows in enumerate(shards):
            mine = copy.deepcopy(model)
            optimizer = torch.optim.SGD([p for p in mine.parameters() if p.requires_grad], lr=lr)
            order = torch.randperm(len(rows), generator=stream(SEED, "batches", t, client))
            for first in range(0, len(rows), BATCH):
                chosen = torch.tensor(rows)[order[first : first + BATCH]]
                optimizer.zero_grad()
                F.cross_entropy(mine(x[chosen]), y[chosen]).backward()
                optimizer.step()
            total = [s + len(rows) * p.detach().double() for s, p in zip(total, mine.parameters(), strict=True)]
        with torch.no_grad():
            for p, s in zip(model.parameters(), total, strict=True):
                if p.requires_grad:
                    p.copy_(s / sum(map(len, shards)))
    return model


def run(model: Any, data: Dataset, algorithm: Any = None, **options: Any) -> Result:
    engine = Engine(**({"backend": "serial"} | options.pop("engine", {})))
    algorithm = FedAvg(lr=0.1) if algorithm is None else algorithm
    settings = {"rounds": 2, "local": Local(batch_size=BATCH), "seed": SEED, "partition": Iid(clients=CLIENTS)}
    return simulate(algorithm, data=data, model=model, engine=engine, **(settings | options))


def same(got: nn.Module | None, want: nn.Module, tolerance: float) -> None:
    assert got is not None
    for (name, a), b in zip(got.named_parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=name)


def body_frozen() -> nn.Module:
    """All but the last layer is frozen, and one bias in its midst is not."""
    torch.manual_seed(1)
    return Adapted(cnn((2, 8, 8), 3, channels=(4, 5), kernel=3, padding=1), train=("head.*", "body.3.bias"))(
        (2, 8, 8), 3
    )


def head_frozen() -> nn.Module:
    torch.manual_seed(1)
    return Adapted(cnn((2, 8, 8), 3, channels=(4, 5), kernel=3, padding=1), freeze=("head.*", "body.0.bias"))(
        (2, 8, 8), 3
    )


@pytest.mark.parametrize("make", [body_frozen, head_frozen])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_fedavg_is_a_plain_loop_over_what_is_trained(make: Any, dtype: str, kernel: dict[str, Any]) -> None:
    data, model, partition = numbers(), make(), Iid(clients=CLIENTS)
    result = run(model, data, engine=kernel | {"dtype": dtype})
    want = fedavg_by_hand(model, data, partition, lr=0.1, rounds=2, dtype=getattr(torch, dtype))
    same(result.model, want, ROUNDING[dtype])
    moved = [not torch.equal(p.to(q.dtype), q) for p, q in zip(model.parameters(), want.parameters(), strict=True)]
    assert moved == [p.requires_grad for p in model.parameters()]


def test_what_is_frozen_is_not_sent_and_not_counted() -> None:
    data, model = numbers(), body_frozen()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    result = run(model, data)
    assert trained == 5 + 20 * 3 + 3
    sent = result.metrics[-1]["comm/uplink_bytes"]
    assert 0 <= sent - CLIENTS * 4 * trained < CLIENTS * 100  # names and shapes
    assert result.server is not None
    assert result.server.x.shape == (trained,)


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (Scaffold(lr=0.1), {"aggregate": Mean(weights="uniform")}),
        (FedAvg(lr=0.1), {"channel": Channel((Layer("topk", TopK(ratio=0.5)),), encode=True)}),
        (FedPer(lr=0.1), {}),
        (FedRep(lr=0.1), {}),
        (LGFedAvg(lr=0.1), {}),
        (FedGH(lr=0.1), {"aggregate": Stack()}),
    ],
)
def test_methods_and_layers_know_the_trained_part_alone(algorithm: Any, options: dict[str, Any]) -> None:
    """A frozen layer between the others is a constant of the model: a module that holds it as one gives the same."""
    data = numbers((6,))

    class Constant(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.register_buffer("weight", layer.weight.detach().clone())
            self.register_buffer("bias", layer.bias.detach().clone())

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.get_buffer("weight"), self.get_buffer("bias"))

    torch.manual_seed(2)
    model = Adapted(mlp((6,), 3, hidden=(8, 7), activation="tanh"), freeze=("body.1.*",))((6,), 3)
    plain = copy.deepcopy(model)
    plain.get_submodule("body")[1] = Constant(model.get_submodule("body")[1])  # type: ignore[operator,index]
    a, b = (run(m, data, algorithm, engine={"batching": "loop", "dtype": "float64"}, **options) for m in (model, plain))
    assert a.summary["digest"] == b.summary["digest"]
    assert [r.get("comm/uplink_bytes") for r in a.metrics] == [r.get("comm/uplink_bytes") for r in b.metrics]


@pytest.mark.parametrize(
    ("algorithm", "freeze", "message"),
    [
        (FedRep(lr=0.1), "head.*", "model must end with a trained linear layer named head for FedRep"),
        (LGFedAvg(lr=0.1), "head.bias", "model must end with a trained linear layer named head for LGFedAvg"),
    ],
)
def test_methods_of_two_parts_need_both(algorithm: Any, freeze: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        run(Adapted(mlp, freeze=(freeze,)), numbers((6,)), algorithm)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"freeze": ("bdy.*",)},
            "model.freeze must be patterns of names of parameters, got 'bdy.*'; there are: body.1",
        ),
        (
            {"train": ("head",)},
            "model.train must be patterns of names of parameters, got 'head'; did you mean 'head.*'?",
        ),
        ({"freeze": ("*",)}, "model.freeze must leave parameters to train, got ['*'], which leaves none"),
        ({"train": ()}, "model.train must leave parameters to train, got [], which leaves none"),
    ],
)
def test_patterns_are_checked(options: dict[str, Sequence[str]], message: str) -> None:
    with pytest.raises(InputError) as caught:
        run(Adapted(mlp, **options), numbers((6,)))  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_keeps_the_whole_model_and_goes_on_with_it(tmp_path: Path) -> None:
    data, model = numbers(), body_frozen()
    whole = run(model, data, rounds=3, run_dir=tmp_path / "whole")
    kept = load_file(tmp_path / "whole" / "model.safetensors")
    assert set(kept) == set(model.state_dict())
    for name, p in model.named_parameters():
        assert p.requires_grad or torch.equal(kept[name], p), name
    run(model, data, rounds=1, run_dir=tmp_path / "part")
    gone_on = run(model, data, rounds=3, run_dir=tmp_path / "part", resume=True)
    assert gone_on.summary["digest"] == whole.summary["digest"]


def test_other_constants_are_another_run(tmp_path: Path) -> None:
    data, model = numbers(), body_frozen()
    run(model, data, rounds=1, run_dir=tmp_path / "run")
    with torch.no_grad():
        next(p for p in model.parameters() if not p.requires_grad).add_(1e-3)
    with pytest.raises(InputError, match="a run goes on only as it began, got constants was"):
        run(model, data, rounds=3, run_dir=tmp_path / "run", resume=True)
