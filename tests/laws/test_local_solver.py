"""One local solver: SGD with clipping, weight decay and momentum is the same in every method that has it.

At its neutral values each method of the catalogue goes where a loop in numpy goes, with all three at work: its gradient
clipped, weight decay added unclipped, then the buffer, which is zero at the start of a round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.algorithms.kit.local_sgd import LocalSGD
from fedsim.channel.message import heard
from fedsim.channel.noise import Addressed
from fedsim.data.losses import loss_of
from fedsim.ground.layout import Layout
from fedsim.kernels.oracle import ModelOracle
from fedsim.models import build, mlp
from fedsim.objective import Objective
from fedsim.traits.declared import traits_of
from fedsim.types import Batch, Round, Stretch
from tests.laws.test_catalogue import ALGORITHMS, PEERS, algorithm, part
from tests.oracles import loops

SOLVER = {"lr": 0.5, "weight_decay": 0.2, "clip": 0.3, "momentum": 0.7}
STEPS = 4
NOTHING = 1e-13  # for weights that must be > 0
NEUTRAL: dict[str, dict[str, float]] = {  # what makes a method's own part vanish
    "fedasync": {"rho": 0.0},
    "fedcm": {"alpha": 1.0},
    "feddyn": {"alpha": NOTHING},
    "fedgamma": {"rho": 0.0},
    "fedinit": {"beta": 0.0},
    "fedprox": {"mu": 0.0},
    "fednova": {"mu": 0.0},
    "fedsam": {"rho": 0.0},
    "fedsmoo": {"rho": 0.0, "alpha": NOTHING},
    "fedspeed": {"rho": 0.0, "lam": 1 / NOTHING},
    "dfedsam": {"rho": 0.0},
    "fd": {"gamma": 0.0},
    "fedproto": {"ld": 0.0},
    "fml": {"alpha": 1.0, "beta": 1.0},
    "mesa": {"lam": 0.0},
    "mime_lite": {"beta": 0.0},
    "mofedsam": {"rho": 0.0, "alpha": 1.0},
    "relaxed": {"beta": 0.0},
}
OTHERS = {  # with other local steps
    "fedrep": "the head first, then the base",
    **dict.fromkeys(("beer", "gradient_tracking", "dpsgd", "dcd_psgd", "sgp"), "one step on the mean gradient"),
}
End = Callable[[Any, Any, Tensor, Any], Tensor]
ENDS: dict[str, End] = {  # where a client ends, by (message, client state, x [d], objective)
    "fednova": lambda sent, state, x, obj: x - sent["tau"] * sent["direction"],
    "fedasync": lambda sent, state, x, obj: sent["x"],
    "fedbn": lambda sent, state, x, obj: obj.join_norms(obj.split_norms(x)[0] + sent["shared"], state.norms),
    "fedper": lambda sent, state, x, obj: obj.join(obj.split(x)[0] + sent["body"], state.head),
    **{
        name: lambda sent, state, x, obj: state.x
        for name in ("fedgh", "fedproto", "fd", "fml", "lg_fedavg", "standalone")
    },
}
METHODS = [name for name in ALGORITHMS if isinstance(getattr(algorithm(name), "base", algorithm(name)), LocalSGD)]


class Four:
    """Four different minibatches, and all their examples at once."""

    length, expected = STEPS, torch.tensor(5)
    stretches = (Stretch(0, STEPS),)

    def __init__(self, batches: list[Batch]):
        self.batches = batches

    def __call__(self, k: int) -> Batch:
        return self.batches[k]

    def holds(self, k: int) -> None:
        return None


def solving(name: str) -> tuple[Any, dict[str, float]]:
    """The method at its neutral values, and what of the solver it has."""
    rule = replace(algorithm(name), **NEUTRAL.get(name, {}))
    inner = getattr(rule, "base", rule)
    known = {key: value for key, value in SOLVER.items() if key in inner.__dataclass_fields__}
    if name == "fml":
        known.pop("momentum")  # it must be 0 there
    inner = replace(inner, **known)
    return (replace(rule, base=inner) if hasattr(rule, "base") else inner), known


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OTHERS])
def test_every_method_has_the_shared_local_solver(name: str) -> None:
    rule, known = solving(name)
    model = build(partial(mlp, hidden=(6,), activation="tanh"), (5,), 3, {}, 0).double()
    layout = Layout.of(model)
    x = layout.flatten(model).double()
    draw = torch.Generator().manual_seed(1)
    batches = [
        Batch(torch.randn(5, 5, generator=draw, dtype=torch.float64), torch.randint(3, (5,), generator=draw))
        for _ in range(STEPS)
    ]
    data, rnd = Four(batches), Round(0, (0,), 1)
    oracle = ModelOracle(model, loss_of("classification"), "loop")
    noise = Addressed(0, "local", 0, torch.tensor(0))
    obj = Objective(oracle, data, torch.tensor(STEPS), torch.tensor(20), noise, data, [oracle])
    with torch.no_grad():
        if name in PEERS:
            end = rule.model(rule.local(obj, rule.init_client(x), rnd))
        else:
            server = rule.init_server(part(traits_of(rule).shares, layout, x))
            client = rule.init_client(part(traits_of(rule).keeps, layout, x))
            sent, state = rule.local(obj, client, heard(rule.broadcast(server, rnd)), rnd)
            end = ENDS.get(name, lambda sent, state, x, obj: x + sent["update"])(sent, state, x, obj)
    norms: list[float] = []
    queue = iter(batches)

    def gradient(y: np.ndarray) -> np.ndarray:
        batch = next(queue)
        torch.nn.utils.vector_to_parameters(torch.from_numpy(y), model.parameters())
        grads = torch.autograd.grad(F.cross_entropy(model(batch.x), batch.y), list(model.parameters()))
        flat = torch.cat([g.flatten() for g in grads]).numpy()
        norms.append(float(np.linalg.norm(flat)))
        return flat

    options = {"wd": known["weight_decay"], "clip": known["clip"], "momentum": known.get("momentum", 0.0)}
    want = loops.sgd(x.numpy(), STEPS, known["lr"], gradient, **options)
    assert min(norms) > 1.5 * SOLVER["clip"], "the test must clip"
    np.testing.assert_allclose(end.numpy(), want, rtol=0, atol=1e-10)  # weights of 1e-13 that had to be > 0


def test_the_exceptions_are_what_they_are_said_to_be() -> None:
    assert set(OTHERS) <= set(METHODS)
    assert set(NEUTRAL) <= set(METHODS)
