"""What models compute in: said, never by default, on record; parameters and messages stay float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim import Engine, Mean, Result
from fedsim.algorithms.dp_sgd import PrivateSGD
from fedsim.errors import InputError
from fedsim.kernels.oracle import ModelOracle
from fedsim.models import Adapted, LoRA, build, cnn, mlp, resnet_small_gn
from fedsim.types import Batch
from tests.oracles.test_trained_part import KERNELS, numbers, run

MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (mlp, (6,)),
    "cnn": (lambda input_shape, outputs: cnn(input_shape, outputs, (4, 5), 3, 1), (2, 8, 8)),
    "resnet": (resnet_small_gn, (3, 8, 8)),
    "lora": (Adapted(mlp, lora=LoRA(rank=2)), (6,)),
}


def moved(result: Result) -> Tensor:
    assert result.trajectory is not None
    return torch.from_numpy(result.trajectory[-1] - result.trajectory[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "tf32"}, "precision must be float32, bf16 or null on the cpu, which has no TF32, got 'tf32'"),
        ({"precision": "bf16", "dtype": "float64"}, "precision must be null for engine.dtype=float64, got 'bf16'"),
        ({"precision": "float32", "dtype": "float64"}, "be null for engine.dtype=float64"),
        (
            {"precision": "tf32", "dtype": "float64", "device": "cuda"},
            "precision must be null for engine.dtype=float64",
        ),
        ({"precision": "half"}, "precision must be one of float32, bf16, tf32 or null, got 'half'"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Engine(**options)
    assert message in str(caught.value)


def test_it_is_never_the_default_and_float32_is_float32() -> None:
    assert Engine().precision is None
    a, b = (run(mlp, numbers((6,)), engine={"precision": p}) for p in (None, "float32"))
    assert a.summary["digest"] == b.summary["digest"]
    assert "precision" not in a.summary
    assert b.summary["precision"] == "float32"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", MODELS)
def test_bf16_is_near_and_other(name: str, kernel: dict[str, Any]) -> None:
    """Two digits of a step agree (eps of bfloat16 is 2^-8), not seven; states and messages are float32."""
    model, shape = MODELS[name]
    data = numbers(shape)
    a, b = (
        run(model, data, trajectory=True, rounds=1, engine=kernel | {"precision": precision})
        for precision in ("float32", "bf16")
    )
    exact, low = moved(a), moved(b)
    assert low.dtype == torch.float32
    gap = float((exact - low).norm() / exact.norm())
    assert 1e-5 < gap < (0.3 if name == "resnet" else 0.1)  # eight layers, whose roundings add up
    assert a.metrics[-1]["comm/uplink_bytes"] == b.metrics[-1]["comm/uplink_bytes"]


def test_a_linear_layer_is_torchs_autocast_to_the_bit() -> None:
    """By hand: inputs and weight are rounded, their product is bfloat16, the loss float32."""
    model = build(nn.Linear(6, 3), (6,), 3, {}, 0)
    x, y = torch.randn(5, 6), torch.randint(3, (5,))
    oracle = ModelOracle(model, lambda out, target: F.cross_entropy(out, target, reduction="none"), "loop",
                         lower=torch.bfloat16)  # fmt: skip
    flat = oracle.layout.flatten(model)
    w, b = (p.detach().clone().requires_grad_() for p in model.parameters())
    out = F.linear(x.bfloat16(), w.bfloat16(), b.bfloat16()).float()
    want = torch.autograd.grad(F.cross_entropy(out, y), (w, b))
    got, _ = oracle.grad(flat, Batch(x, y, None))
    assert torch.equal(got, torch.cat([g.reshape(-1) for g in want]))


def test_clipped_sums_too() -> None:
    data = numbers((6,))
    a, b = (
        run(
            mlp,
            data,
            PrivateSGD(lr=0.1, clip=0.5),
            aggregate=Mean("uniform"),
            trajectory=True,
            rounds=1,
            engine={"precision": p},
        )
        for p in ("float32", "bf16")
    )
    assert float((moved(a) - moved(b)).norm() / moved(a).norm()) < 0.1


def test_it_is_on_record_and_another_one_is_another_run(tmp_path: Path) -> None:
    data = numbers((6,))
    run(mlp, data, rounds=1, run_dir=tmp_path / "run", engine={"precision": "bf16"})
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["engine"]["precision"] == "bf16"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["precision"] == "bf16"
    whole = run(mlp, data, rounds=2, engine={"precision": "bf16"})
    with pytest.raises(InputError, match=r"engine\.precision was bf16, is None"):
        run(mlp, data, rounds=2, run_dir=tmp_path / "run", resume=True)
    gone_on = run(mlp, data, rounds=2, run_dir=tmp_path / "run", resume=True, engine={"precision": "bf16"})
    assert gone_on.summary["digest"] == whole.summary["digest"]
