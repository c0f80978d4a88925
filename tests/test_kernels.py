"""Which kernel each model of the catalogue gets after the check on gradients, and what the check catches."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from fedsim import Engine, models, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.standalone import Standalone
from fedsim.assembly.agreement import Agreement, trial
from fedsim.assembly.assemble import assemble
from fedsim.assembly.choose import choose
from fedsim.assembly.parts import Parts
from fedsim.assembly.prepared import Prepared
from fedsim.assembly.uses import QUESTIONS
from fedsim.cli.main import main
from fedsim.data import Dataset, Split
from fedsim.data.batches import Feed, Samples
from fedsim.data.dataset import Word as Task
from fedsim.data.losses import loss_of
from fedsim.errors import InputError
from fedsim.ground.layout import Layout, aligned
from fedsim.kernels.oracle import ModelOracle
from fedsim.kernels.stacked_ops import Act
from fedsim.partition import Iid
from tests.zoo import NUMBERS

CONFIGS = Path(__file__).parent.parent / "configs" / "model"

KEPT: dict[str, tuple[tuple[int, ...], int, Any, Any]] = {
    # shape of a sample, outputs, kernel, block: as they were before there was a check
    "char_lstm": ((20,), 80, "stacked", 4),
    "cnn": ((1, 28, 28), 10, "stacked", 5),
    "cnn_bn": ((1, 28, 28), 10, "loop", 1),
    "cnn_dropout": ((3, 32, 32), 10, "loop", 1),
    "fedgh_cnn": ((3, 32, 32), 10, "stacked", 2),
    "gpt_small": ((20,), 80, "stacked", 4),
    "transformer": ((20,), 80, "stacked", 35),
    "vit_small": ((3, 32, 32), 10, "stacked", 12),
    "fedgh_heterogeneous": ((3, 32, 32), 10, ["stacked"] * 5, [2, 2, 3, 3, 3]),
    "lenet": ((1, 28, 28), 10, "stacked", 10),
    "linear": ((300,), 2, "stacked", 250),
    "linear_zero": ((7,), 1, "stacked", 250),
    "mlp": ((1, 28, 28), 10, "stacked", 25),
    "resnet18_gn": ((3, 32, 32), 10, "stacked", 2),
    "resnet18_gn_cifar": ((3, 32, 32), 10, "loop", 1),
    "resnet_small_gn": ((3, 32, 32), 10, "stacked", 3),
}


def prepared(factories: list[Any], shape: tuple[int, ...], outputs: int, task: Task, **engine: Any) -> Prepared:
    random, n = np.random.default_rng(0), 12
    x = random.integers(0, outputs, (n, *shape)) if task == "next_token" else random.normal(size=(n, *shape))
    y = random.normal(size=n) if outputs == 1 else random.integers(0, outputs, n)
    data = Dataset("any", Split(x, x if task == "next_token" else y), None, task, outputs)
    algorithm: Any = Standalone(lr=0.1) if len(factories) > 1 else FedAvg(lr=0.1)
    parts = Parts(algorithm, data, Iid(clients=3), factories, 1, engine=Engine(backend="serial", **engine))
    return assemble(parts, data).prepared


def test_the_whole_catalogue_is_here() -> None:
    assert set(KEPT) == {path.stem for path in CONFIGS.glob("*.yaml")}


@pytest.mark.parametrize("name", KEPT)
def test_every_model_keeps_its_kernel(name: str) -> None:
    """With everything that an algorithm may ask, where gradients by example are affordable."""
    shape, outputs, kernel, block = KEPT[name]
    node = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    factories = []
    for one in node.get("architectures", [node]):
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in one.items() if k != "_target_"}
        policy = options.pop("batchnorm", "error")
        factory = partial(getattr(models, one["_target_"].rpartition(".")[2]), **options)
        factories.append(factory if policy == "error" else models.Adapted(factory, batchnorm=policy))
    task: Task = "next_token" if shape == (20,) else "least_squares" if outputs == 1 else "classification"
    made = prepared(factories, shape, outputs, task)
    described = made.described()
    assert (described["kernel"], described["block"]) == (kernel, block)
    assert made.notes == ()
    assert made.setup.predictions == made.setup.kernels
    for number, d in enumerate(made.parameters):
        if d < 1_000_000:
            x0 = Layout.of(made.setup.models[number]).flatten(made.setup.models[number])
            chosen = choose(made.setup, number, x0, shape, Engine(backend="serial"), QUESTIONS)
            assert (chosen.kernel, chosen.by_layer, chosen.note) == (made.setup.kernels[number], True, "")


def agreement(factory: Any = models.mlp, dtype: torch.dtype = torch.float64) -> Agreement:
    random = np.random.default_rng(1)
    model = models.build(factory, (6,), 3, {}, 0).to(dtype)
    x = torch.from_numpy(random.normal(size=(9, 6))).to(dtype).numpy()
    train = Samples(x, random.integers(0, 3, 9), np.array([0, 5, 9]))
    x0 = Layout.of(model).flatten(model, dtype)
    return Agreement(model, loss_of("classification"), trial(train, x0, 0))


BROKEN = {  # one method of the oracle, and the questions whose answers it spoils
    "_together": {"grad", "descend", "term"},  # an example of its own is padding: the last one
    "_by_example_of_many": {"example_grads"},
    "_values": {"value"},
    "_outputs": {"outputs"},
    "_bodies": {"features"},
    "_clipped_of_many": {"clipped_sum"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", BROKEN)
def test_every_path_is_compared(method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of one per mille, in the second client alone, on each path of the kernels in turn."""
    original = getattr(ModelOracle, method)

    def spoilt(self: ModelOracle, *arguments: Any) -> Any:
        found = original(self, *arguments)
        first = found[0] if isinstance(found, tuple) else found
        first[-1] = first[-1] * (1 + 1e-3)
        return found

    for kernel in ("stacked", "vmap"):
        assert agreement(dtype=dtype).training(kernel, QUESTIONS) == ""
    monkeypatch.setattr(ModelOracle, method, spoilt)
    for kernel in ("stacked", "vmap"):
        for question in QUESTIONS:
            wrong = agreement(dtype=dtype).training(kernel, [question])
            assert bool(wrong) == (question in BROKEN[method]), (kernel, question)


def test_a_wrong_stacked_kernel_is_left_for_the_next_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.tanh

    def wrong(params: Any, x: Act) -> Act:
        return x._replace(data=right(x.data.detach() * 0.5 + x.data * 0.5))

    monkeypatch.setattr("fedsim.kernels.stacked.ops.elementwise", lambda op: wrong)
    made = prepared([partial(models.mlp, activation="tanh")], (6,), 3, "classification")
    assert made.setup.kernels == ("vmap",)
    assert made.setup.predictions == ("loop",)
    assert "stacked is not right for BodyHead: the gradient of a step" in made.described()["why"]
    (note,) = made.notes
    assert note.endswith("kernel in use: vmap")
    with pytest.raises(InputError, match=r"engine\.kernel=stacked is not right for model BodyHead"):
        prepared([partial(models.mlp, activation="tanh")], (6,), 3, "classification", kernel="stacked")


def test_sums_of_clipped_gradients_layer_by_layer_are_left_alone_where_they_are_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = prepared([models.mlp], (6,), 3, "classification")
    x0 = Layout.of(made.setup.models[0]).flatten(made.setup.models[0])
    monkeypatch.setattr("fedsim.kernels.example_sums.ExampleSums.__call__", lambda self, x, *rest: x * 0)
    chosen = choose(made.setup, 0, x0, (6,), Engine(backend="serial"), QUESTIONS)
    assert (chosen.kernel, chosen.by_layer) == ("stacked", False)


@pytest.mark.parametrize("name", ["temperature", "only_a_scalar"])
@pytest.mark.parametrize("batching", ["auto", "loop"])
def test_parameters_without_dimensions(name: str, batching: Any, tmp_path: Path) -> None:
    """A run with a folder ends as it says; the temperature moves."""
    random = np.random.default_rng(2)
    data = Dataset("any", Split(random.normal(size=(20, 6)), random.integers(0, 3, 20)), None, "classification", 3)
    result = simulate(
        FedAvg(lr=0.5),
        data=data,
        partition=Iid(clients=4),
        model=NUMBERS[name][0],
        rounds=2,
        engine=Engine(backend="serial", batching=batching),
        run_dir=tmp_path / "run",
    )
    assert result.status == "finished"
    assert result.model is not None
    moved: Any = result.model.get_parameter("t")
    assert moved.shape == ()
    assert moved != 0.7


OWN = """
import torch
from torch import nn
class Expit(nn.Module):
    def __init__(self, input_shape, outputs):
        super().__init__()
        self.f, self.l = nn.Flatten(), nn.Linear(64, outputs)
    def forward(self, x):
        return self.l(torch.special.expit(self.f(x)))
class Branch(Expit):
    def forward(self, x):
        return super().forward(x if x.sum() > 1 else -x)
"""


@pytest.mark.parametrize(
    ("model", "kernel", "says"),
    [
        ("Expit", "stacked", "the call special_expit has no stacked kernel"),
        ("Branch", "stacked", "torch.fx cannot trace Branch"),
        ("Branch", "vmap", "vmap fails"),
    ],
)
def test_a_kernel_that_the_model_has_not_is_one_line(
    model: str, kernel: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "own_kernels.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["fedsim", "engine=serial", "rounds=1", f"model._target_=own_kernels.{model}", f"engine.kernel={kernel}"]
    monkeypatch.setattr("sys.argv", [*command, f"hydra.run.dir={tmp_path / 'run'}"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    printed = capsys.readouterr()
    lines = [line for line in (printed.out + printed.err).splitlines() if "engine.kernel" in line]
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in printed.err


def test_the_place_of_the_samples_in_memory_changes_no_bit() -> None:
    """numpy may put an array anywhere; shifted by one element, samples reach matrix products where torch puts them."""
    random = np.random.default_rng(3)
    x = random.normal(size=(40, 37)).astype(np.float32)
    room = np.empty(x.size + 64, dtype=np.float32)
    oracle = ModelOracle(models.build(models.mlp, (37,), 5, {}, 0), loss_of("classification"), "loop")
    point = oracle.layout.flatten(oracle.model)
    found = []
    for shift in range(0, 17):
        mine = room[shift : shift + x.size].reshape(x.shape)
        mine[...] = x
        feed = Feed(Samples(mine, np.zeros(40, dtype=np.int64), np.array([0, 40])), torch.device("cpu"), torch.float32)
        assert feed.x.data_ptr() % 64 == 0
        found.append(oracle.predict(point, feed.x).detach())
    assert all(torch.equal(found[0], other) for other in found)


def test_aligned_copies_what_lies_elsewhere_or_is_strided() -> None:
    whole = torch.arange(40.0).view(4, 10)
    assert aligned(whole) is whole
    for view in (whole[1:], whole.t(), whole.view(-1)[1:]):
        copy = aligned(view)
        assert torch.equal(copy, view)
        assert copy.is_contiguous()
        assert copy.data_ptr() % 64 == 0


def test_the_check_sees_token_0_repeated_samples_and_padding() -> None:
    tokens = np.array([[3, 2], [1, 4], [5, 0], [2, 2], [0, 1], [4, 4]])
    at = trial(Samples(tokens, np.arange(6), np.array([0, 3, 6])), torch.zeros(5), 0)
    assert (at.inputs == 0).any(2).any(1).all()
    for client in range(2):
        _, y = at.real(client)
        assert len(y.unique()) < len(y)
    assert at.mask.sum(1).tolist() == [3, 2]
    assert (at.x[0] != at.x[1]).all()


class Doubler(nn.Module):
    """Not what it says: twice its layer, half of it by a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.layer(x).detach()  # type: ignore[no-any-return]


def test_what_has_a_kernel_after_all_gets_it() -> None:
    """Detached parts are no reason to go slowly."""
    assert prepared([Doubler], (6,), 3, "classification").setup.kernels == ("stacked",)
