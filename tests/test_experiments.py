"""The presets of configs/experiment: that they build, say where their numbers come from and hold those numbers."""

from __future__ import annotations

import re
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.assembly.configuration import build_run
from fedsim.errors import InputError
from fedsim.partition import Classes, ClassesPerClient, Dirichlet, DirichletPerClient, Iid, QuantityDirichlet
from fedsim.schedule import All, Bernoulli, Uniform
from fedsim.topology import RandomRegular
from tests.test_cli import composed

pytestmark = pytest.mark.xdist_group("experiments")  # which are built once
FOLDER = Path(__file__).parent.parent / "configs/experiment"
EVERY = sorted(path.stem for path in FOLDER.glob("*.yaml"))
NAMES = [name for name in EVERY if re.match(r"(cifar10|cifar100|mnist|digits)_\d+c_", name)]  # data, clients, split
FULL = [name for name in NAMES if name.startswith("cifar")]
SMALL = [name for name in NAMES if not name.startswith("cifar")]
FL_SIMULATOR = [name for name in NAMES if name.split("_")[1] in ("100c", "200c") and not name.endswith("fedgh")]
NIID_BENCH = [name for name in NAMES if name.split("_")[1] == "10c" and not name.endswith("fedgh")]
FEDGH = [name for name in NAMES if name.endswith("fedgh")]


@cache
def built(*overrides: str) -> dict[str, Any]:
    """The parts of a run, which nobody changes."""
    return build_run(composed(*overrides))


def test_every_preset_is_of_a_known_setting() -> None:
    assert sorted(FL_SIMULATOR + NIID_BENCH + FEDGH) == NAMES
    assert (len(FL_SIMULATOR), len(NIID_BENCH), len(FEDGH)) == (15, 10, 9)


@pytest.mark.parametrize("name", EVERY)
def test_builds(name: str) -> None:
    built(f"experiment={name}")


@pytest.mark.parametrize("name", FULL)
def test_says_where_its_numbers_come_from(name: str) -> None:
    head = [line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert any(source in " ".join(head) for source in ("FL-Simulator", "NIID-Bench", "LipingYi/FedGH"))


@pytest.mark.parametrize("name", SMALL)
def test_small_presets_name_their_sibling(name: str) -> None:
    sibling = f"cifar10_{name.partition('_')[2]}"
    assert sibling in FULL
    assert sibling in (FOLDER / f"{name}.yaml").read_text()
    small, full = (built(f"experiment={which}") for which in (name, sibling))
    for part in ("schedule", "partition", "algorithm"):
        assert small[part] == full[part]


@pytest.mark.parametrize("name", FL_SIMULATOR)
def test_fl_simulators_numbers(name: str) -> None:
    parts = built(f"experiment={name}")
    clients = 200 if "200c" in name else 100
    rule = parts["algorithm"]
    assert (rule.lr, rule.lr_decay, rule.weight_decay, rule.clip) == (0.1, 0.998, 1e-3, 10)
    assert (rule.momentum, rule.server_lr, rule.server_momentum) == (0, 1, 0)
    assert parts["schedule"] == Bernoulli(rate=10 / clients)
    assert (parts["local"].epochs, parts["local"].batch_size) == (5, 5000 // clients)
    kind = name.split("_")[2]
    want = {
        "iid": Iid(clients),
        "classes3": ClassesPerClient(clients, 3),
        "classes5": ClassesPerClient(clients, 5),
    }
    if kind.startswith("dir"):
        assert parts["partition"] == DirichletPerClient(clients, int(kind[3:]) / 10)
    else:
        assert parts["partition"] == want[kind]
    if name in FULL:
        assert parts["rounds"] == 1000
        assert (parts["data"].augment, parts["data"].crop) == (True, 0.5)


@pytest.mark.parametrize("method", ["scaffold", "feddyn", "fedadam", "fedcm", "mofedsam", "fedspeed", "fedsmoo"])
@pytest.mark.parametrize("name", FL_SIMULATOR)
def test_fl_simulators_methods_take_the_presets(method: str, name: str) -> None:
    assert built(f"experiment={name}", f"algorithm={method}")["algorithm"].clip == 10


@pytest.mark.parametrize("name", NIID_BENCH)
def test_niid_benchs_numbers(name: str) -> None:
    parts = built(f"experiment={name}")
    rule = parts["algorithm"]
    assert (rule.lr, rule.momentum, rule.weight_decay, rule.clip) == (0.01, 0.9, 1e-5, None)
    assert (parts["local"].epochs, parts["schedule"]) == (10, All())
    if name in FULL:
        assert (parts["rounds"], parts["local"].batch_size) == (50, 64)
    kind = name.split("_")[2]
    if kind.startswith("classes"):
        assert parts["partition"] == Classes(10, int(kind[-1]), (1.0, 1.0), owners="drawn")
    elif kind == "dir05":
        assert parts["partition"] == Dirichlet(10, 0.5, min_samples=10, cap=True)
    else:
        assert parts["partition"] == QuantityDirichlet(10, 0.5, min_samples=10)


@pytest.mark.parametrize(
    "overrides", [["algorithm=fedprox"], ["algorithm=fednova"], ["algorithm=scaffold", "~algorithm.momentum"]]
)
@pytest.mark.parametrize("name", NIID_BENCH)
def test_niid_benchs_methods_take_the_presets(overrides: list[str], name: str) -> None:
    assert built(f"experiment={name}", *overrides)["algorithm"].lr == 0.01


def test_scaffold_has_no_local_momentum() -> None:
    with pytest.raises(InputError, match=r"unknown key algorithm\.momentum"):
        built("experiment=cifar10_10c_dir05", "algorithm=scaffold")


@pytest.mark.parametrize("name", FEDGH)
def test_fedghs_numbers(name: str) -> None:
    parts = built(f"experiment={name}")
    clients = int(name.split("_")[1][:-1])
    assert parts["schedule"] == (All() if clients == 10 else Uniform(cohort=10))
    assert parts["partition"] == Classes(clients, 10 if name.startswith("cifar100_") else 2, (0.4, 0.6), held_out=10000)
    rule = parts["algorithm"]
    assert (rule.lr, rule.momentum, rule.weight_decay, rule.clip) == (0.01, 0.9, 1e-3, 50)
    if name in FULL:
        batch, epochs = (64, 10) if name.startswith("cifar100_") else (512, 30)
        assert (parts["rounds"], parts["local"].batch_size, parts["local"].epochs) == (500, batch, epochs)


@pytest.mark.parametrize("alpha", ["03", "06"])
def test_dfedsams_numbers(alpha: str) -> None:
    """As github EricLoong/da-dpfl gives them; the small sibling differs in data, model, rounds and local work only."""
    full, small = (built(f"experiment=dfedsam_{data}_dir{alpha}") for data in ("cifar10", "mnist"))
    rule = full["algorithm"]
    assert (rule.lr, rule.lr_decay, rule.rho, rule.momentum, rule.gossip_steps) == (0.1, 0.998, 0.01, 0, 1)
    assert (full["local"].epochs, full["local"].batch_size, full["schedule"]) == (5, 128, All())
    assert full["topology"] == RandomRegular(10)
    assert full["partition"] == DirichletPerClient(100, int(alpha) / 10)
    for part in ("schedule", "topology", "partition", "algorithm"):
        assert small[part] == full[part]
    base = built(f"experiment=dfedsam_cifar10_dir{alpha}", "algorithm=dfedavg", "~algorithm.rho")
    assert (type(base["algorithm"]).__name__, base["topology"]) == ("DFedAvg", RandomRegular(10))


def test_beers_reproduction_adds_the_gradient_of_its_regulariser() -> None:
    script = runpy.run_path(str(FOLDER.parents[1] / "scripts/reproduce/beer.py"))
    y = torch.linspace(-3, 3, 25, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad((script["ALPHA"] * y**2 / (1 + y**2)).sum(), y)
    for method, _ in script["METHODS"].values():
        got = method.bounded(y.detach(), torch.ones_like(y))
        torch.testing.assert_close(got, 1 + expected)


def test_diff2s_setting() -> None:
    parts = built("experiment=diff2_california")
    assert (parts["rounds"], parts["partition"], parts["schedule"]) == (2000, Iid(10), All())
    assert (parts["local"].steps, parts["local"].batch_size) == (1, "full")
    assert (parts["privacy"].target_epsilon, parts["privacy"].delta) == (3.0, 1e-5)
    assert parts["aggregate"].weights == "uniform"


@pytest.mark.parametrize(("name", "clients"), [("dp_fedavg_cifar10", 1000), ("dp_fedavg_mnist", 1200)])
def test_pfl_researchs_numbers(name: str, clients: int) -> None:
    parts = built(f"experiment={name}")
    promise = parts["privacy"]
    assert (promise.target_epsilon, promise.delta, promise.clip) == (2.0, 1e-6, 0.4)
    assert (promise.noise_cohort, promise.noise_population) == (1000, 1_000_000)
    assert parts["partition"] == Iid(clients)
    assert parts["schedule"].rate * clients == pytest.approx(50)
    assert (parts["local"].epochs, parts["local"].batch_size, parts["aggregate"].weights) == (1, 10, "uniform")
    assert (parts["algorithm"].lr, parts["algorithm"].server_lr) == (0.1, 1.0)
    if name == "dp_fedavg_cifar10":
        assert parts["rounds"] == 1500


def test_pfl_researchs_set_up_without_privacy() -> None:
    """benchmarks/image_classification/configs/baseline.yaml: 1,000 users of 50 images, 50 in a cohort."""
    parts = built("experiment=pfl_cifar10_iid")
    rule = parts["algorithm"]
    assert (parts["rounds"], parts["evaluate"].every, rule.lr, rule.server_lr) == (1500, 10, 0.1, 1.0)
    assert (parts["partition"], parts["schedule"]) == (Iid(1000), Uniform(cohort=50))
    assert (parts["local"].epochs, parts["local"].steps, parts["local"].batch_size) == (1, None, 10)
