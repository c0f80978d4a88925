"""``model.batchnorm`` in runs: what is sent and kept, what goes on to the same bits, what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedsim import Engine, Evaluate, Local, simulate
from fedsim.aggregate import Mean
from fedsim.algorithms.dp_sgd import PrivateSGD
from fedsim.algorithms.dpsgd import DPSGD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedavg_ft import FedAvgFT
from fedsim.algorithms.fedbn import FedBN
from fedsim.algorithms.fedper import FedPer
from fedsim.algorithms.powersgd import PowerSGD
from fedsim.channel.channel import Channel
from fedsim.channel.onion import Layer
from fedsim.channel.topk import TopK
from fedsim.errors import InputError
from fedsim.ground.frozen_norm import FrozenNorm
from fedsim.models import Adapted, cnn_bn, mlp, validate
from fedsim.privacy.config import CentralGaussian
from fedsim.topology import Complete
from fedsim.traits import RuleTraits
from tests.oracles.test_batchnorm import Two, buffers, data, model, run

UNTRACKED = nn.BatchNorm1d(3, track_running_stats=False)
Q = 2 * 3 + 2 * 6 + 2 + 2  # means and variances, two counts, two numbers of the model's own


class Anything(Mean):
    """A rule that does not say that it is a mean."""

    traits = RuleTraits()


def test_averaged_buffers_are_counted_both_ways() -> None:
    averaged, local = (run("fedavg", policy, rounds=1, dtype="float32").metrics[-1] for policy in ("average", "local"))
    for link in ("comm/uplink_bytes", "comm/downlink_bytes"):
        assert 0 <= averaged[link] - local[link] - 2 * 4 * Q < 2 * 40  # of two clients: a name and a shape


def test_layers_act_on_buffers_unless_they_are_told_what_to_act_on() -> None:
    everything, update = (
        run("fedavg", "average", channel=Channel((Layer("topk", TopK(ratio=0.5), fields),), encode=True))
        for fields in (None, ("update",))
    )
    plain = run("fedavg", "average")
    assert everything.metrics[-1]["comm/uplink_bytes"] < update.metrics[-1]["comm/uplink_bytes"]
    counts = [m.model.get_buffer("norm.num_batches_tracked") for m in (plain, update, everything)]  # type: ignore[union-attr]
    assert counts[0] == counts[1]  # which the layer did not touch
    assert counts[2].dtype == torch.int64


@pytest.mark.parametrize("policy", ["local", "average"])
def test_a_resumed_run_goes_on_to_the_same_bits(policy: str, tmp_path: Path) -> None:
    whole = run("fedavg", policy, run_dir=tmp_path / "whole")
    run("fedavg", policy, run_dir=tmp_path / "half", rounds=2)
    rest = run("fedavg", policy, run_dir=tmp_path / "half", resume=True)
    assert rest.summary["digest"] == whole.summary["digest"]
    assert all((rest.client(i)[1] == whole.client(i)[1]).all() for i in range(2) if policy == "local")
    written = load_file(tmp_path / "half/model.safetensors")
    assert whole.model is not None
    assert all(torch.equal(written[name], value) for name, value in whole.model.state_dict().items())
    initial = buffers(model())["norm.running_mean"].double()
    assert torch.equal(written["norm.running_mean"], initial) == (policy == "local")


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("policy", ["local", "average"])
def test_one_and_three_actors_have_the_serial_bits(policy: str) -> None:
    ray = pytest.importorskip("ray")

    def digest(**how: Any) -> tuple[str, float]:
        found = run("fedavg", policy, "float32", engine={"jobs": 2, **how})
        return found.summary["digest"], found.metrics[-1]["eval/loss"]

    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        assert digest() == digest(backend="ray", actors=1) == digest(backend="ray", actors=3)
    finally:
        ray.shutdown()


@pytest.mark.parametrize("policy", ["local", "average"])
@pytest.mark.parametrize("algorithm", [FedAvgFT(lr=0.05), FedPer(lr=0.05)])
def test_methods_with_models_of_their_own(algorithm: Any, policy: str) -> None:
    result = simulate(
        algorithm, data=data(), model=Adapted(model(), batchnorm=policy), partition=Two(), rounds=2,  # type: ignore[arg-type]
        local=Local(batch_size=4), engine=Engine(backend="serial"),
    )  # fmt: skip
    assert result.status == "finished"


def test_fedbn_sends_no_normalisation() -> None:
    bn, avg = run("fedbn", "local", dtype="float32"), run("fedavg", "local", dtype="float32")
    saved = avg.metrics[-1]["comm/uplink_bytes"] - bn.metrics[-1]["comm/uplink_bytes"]
    assert abs(saved - 2 * 4 * (2 * 3 + 2 * 6)) <= 2 * 8
    assert bn.client(0)[0].norms.shape == (18,)
    assert bn.model is None
    assert not torch.equal(bn.client(0)[0].norms, bn.client(1)[0].norms)


def test_fedbn_keeps_the_scales_and_shifts_of_frozen_statistics() -> None:
    bn, avg = run("fedbn", "frozen", dtype="float32"), run("fedavg", "frozen", dtype="float32")
    saved = avg.metrics[-1]["comm/uplink_bytes"] - bn.metrics[-1]["comm/uplink_bytes"]
    assert abs(saved - 2 * 4 * (2 * 3 + 2 * 6)) <= 2 * 8
    assert bn.client(0).norms.shape == (18,)
    assert not torch.equal(bn.client(0).norms, bn.client(1).norms)


def test_frozen_keeps_names_values_and_dtypes() -> None:
    made = cnn_bn((1, 8, 8), 3, (2, 3), 3, (4,))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    after = validate(made, "frozen").state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert sum(isinstance(module, FrozenNorm) for module in made.modules()) == 3


@pytest.mark.parametrize(
    ("policy", "options", "line"),
    [
        ("average", {"algorithm": DPSGD(lr=0.1), "topology": Complete()}, "or frozen for DPSGD, whose peers"),
        ("local", {"model": [Adapted(model(), batchnorm="local"), mlp]}, "for several architectures"),
        ("local", {"local": Local(batch_size=4, sampling="poisson")}, "local.sampling must be shuffle for BatchNorm"),
        ("local", {"engine": Engine(backend="serial", kernel="stacked")}, "engine.kernel must be auto"),
        ("local", {"evaluate": Evaluate(gradient=True)}, "evaluate.gradient must be false with model.batchnorm=local"),
        ("local", {"local": Local(batch_size=3)}, "fails on 1 training samples in training mode"),
        ("local", {"model": Adapted(mlp, batchnorm="local")}, "must be error for BodyHead, whose forward writes"),
        ("average", {"aggregate": Anything()}, "where the server takes no mean (FedAvg)"),
        ("average", {"privacy": CentralGaussian(1e-3, noise_multiplier=1.0)}, "for a private run"),
        ("average", {"algorithm": FedBN(lr=0.1)}, "must be local for FedBN, whose clients keep their BatchNorm"),
        ("local", {"algorithm": PrivateSGD(lr=0.1)}, "for a method that asks for gradients by example"),
        ("local", {"algorithm": PowerSGD(lr=0.1), "rounds": 2}, "or average for PowerSGD, which does not send the"),
        ("frozen", {"model": Adapted(model(), batchnorm="frozen")}, "changes its buffer seen in forward"),
        ("frozen", {"model": Adapted(UNTRACKED, batchnorm="frozen")}, "no statistics"),
    ],
)  # fmt: skip
def test_what_is_refused(policy: str, options: dict[str, Any], line: str) -> None:
    parts = {"algorithm": FedAvg(lr=0.1), "model": Adapted(model(), batchnorm=policy), "local": Local(batch_size=4)}  # type: ignore[arg-type]
    parts |= {
        "aggregate": Mean(weights="uniform"),
        "data": data(),
        "partition": Two(),
        "engine": Engine(backend="serial"),
        "rounds": 1,
    } | options
    with pytest.raises(InputError, match=re.escape(line)):
        simulate(parts.pop("algorithm"), **parts)
