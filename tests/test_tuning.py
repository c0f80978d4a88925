"""The constants of the kernel rule: measured, chosen, written, read, recorded; and images channels last."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from fedsim.algorithms.fedavg import FedAvg
from fedsim.assembly.assemble import assemble
from fedsim.assembly.kernel_table import with_table
from fedsim.assembly.parts import Parts
from fedsim.cli import tune as cli_tune
from fedsim.data import Digits
from fedsim.data.losses import cross_entropy
from fedsim.errors import InputError
from fedsim.ground.files import atomic_file
from fedsim.ground.layout import Layout
from fedsim.kernels.choosing import Measured, Shape, Way, best, mean_seconds, way_of
from fedsim.kernels.kernel import kernel_rule
from fedsim.kernels.oracle import ModelOracle
from fedsim.kernels.timing import CASES, measure, rule_shape, ways_of
from fedsim.kernels.tuning import BUILT_IN, MOST, Tuning, built_in_row
from fedsim.kernels.tuning_file import read_table, users_file, write_table
from fedsim.models import build, cnn, mlp, zero_sample
from fedsim.partition import Iid
from fedsim.pool.engine import Engine
from fedsim.record.checkpoint import Checkpointing
from fedsim.record.fingerprint import _differences
from fedsim.record.provenance import cpu_capability
from fedsim.simulation import simulate
from fedsim.types import Batch

HERE = {"capability": cpu_capability()}
OTHER = Tuning(clients=3, wide=1, alone=1, channels_last=True)


class Viewing(nn.Module):
    """A user's network: views after pooling, functions in the place of layers, and three channels of images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2)
        self.head = nn.Linear(6 * 3 * 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[m, 3, 14, 14] -> [m, 5]."""
        x = F.max_pool2d(torch.tanh(self.first(x)), 2)
        return self.head(torch.tanh(self.second(x)).view(len(x), -1))  # type: ignore[no-any-return]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "view": (Viewing, (3, 14, 14), 5),
    "one_channel": (lambda: build(cnn, (1, 12, 12), 10, {"channels": (4, 6), "kernel": 3}, 0), (1, 12, 12), 10),
    "grouped": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 3, groups=2, padding=1), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1, bias=False)),
            *(nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
        ),
        (2, 6, 6),
        3,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_images_channels_last_give_the_numbers_of_the_plain_module(name: str) -> None:
    """Autograd on the module itself is the judge; float64, so that only rounding of sums can differ."""
    factory, shape, outputs = NETWORKS[name]
    torch.manual_seed(0)
    model = factory().double()
    inputs, y = torch.randn(7, *shape, dtype=torch.float64), torch.randint(outputs, (7,))
    out = model(inputs)
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(out, y), list(model.parameters()))])
    x = Layout.of(model).flatten(model).double()
    oracle = ModelOracle(model, cross_entropy, "loop_last")
    batch = Batch(inputs, y)
    with torch.no_grad():
        got, loss = oracle.grad(x, batch)
        descended, _ = oracle.descend(x, batch, 0.5)
        outputs_ = oracle.outputs(x, batch)
    assert (got - wanted).abs().max() <= 1e-12 * wanted.abs().max()
    assert (descended - (x - 0.5 * wanted)).abs().max() <= 1e-12
    assert (outputs_ - out.detach()).abs().max() <= 1e-12
    assert abs(loss - F.cross_entropy(out, y)) <= 1e-12
    evaluator = ModelOracle(model, cross_entropy, "loop_last", training=False)
    with torch.no_grad():
        assert (evaluator.predict(x, inputs) - out.detach()).abs().max() <= 1e-12


@pytest.mark.parametrize("name", NETWORKS)
def test_convolutions_see_and_give_images_channels_last(name: str) -> None:
    """In float32: torch has no such convolutions of float64."""
    factory, shape, _ = NETWORKS[name]
    model = factory().float()
    seen: list[bool] = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, args, out: seen.append(out.stride(1) == 1))
    x = Layout.of(model).flatten(model)
    with torch.no_grad():
        ModelOracle(model, cross_entropy, "loop_last").outputs(x, Batch(torch.randn(7, *shape), torch.zeros(7)))
        assert seen == [True, True]
        ModelOracle(model, cross_entropy, "loop").outputs(x, Batch(torch.randn(7, *shape), torch.zeros(7)))
    assert seen[2:] == [False, False]


@pytest.mark.parametrize("wide", [1, 4, 16, MOST])
def test_convolutions_that_run_client_by_client_give_the_same_gradients(wide: int) -> None:
    torch.manual_seed(0)
    model = build(cnn, (1, 12, 12), 10, {"channels": (4, 6), "kernel": 3}, 0).double()
    inputs, y = torch.randn(2, 5, 1, 12, 12, dtype=torch.float64), torch.randint(10, (2, 5))
    x = torch.stack([Layout.of(model).flatten(model).double() * scale for scale in (1.0, 0.5)])
    alone = ModelOracle(model, cross_entropy, "loop")
    together = ModelOracle(model, cross_entropy, "stacked", wide=wide)
    with torch.no_grad():
        wanted = torch.stack([alone.grad(x[i], Batch(inputs[i], y[i]))[0] for i in range(2)])
        got = torch.func.vmap(lambda x, i, y: together.grad(x, Batch(i, y))[0])(x, inputs, y)
    assert (got - wanted).abs().max() <= 1e-12


TABLES = [*BUILT_IN.values(), OTHER, Tuning(wide=16, alone=1), Tuning(numbers=1, rows=1, parameters=1)]


@pytest.mark.parametrize("name", ["logistic", "mlp", "cnn", "leaf_cnn", "lstm"])
def test_what_is_chosen_from_is_what_the_rule_takes(name: str) -> None:
    case = CASES[name]
    model = build(case.factory, case.shape, case.outputs, case.options, 0)
    shape = rule_shape(model, zero_sample(model, case.shape, tokens=case.tokens))
    for table in TABLES:
        rule = next(kernel_rule(model, Layout.of(model), case.shape, "cpu", table))
        way = way_of(shape, table)
        assert rule[:2] == (way.kernel, way.block)
        assert way._replace(block=0) in [w._replace(block=0) for w in ways_of(shape, case.blocks)]


WIDE = Shape(1_700_000, 25_000, 1, ((1, 25_000), (32, 12_500)))
NARROW = Shape(1_000, 100)


def times(shape: Shape, loop: float, last: float, stacked: Callable[[int], float]) -> Measured:
    """Of a model whose stacked time depends on the block alone."""
    seconds = {Way("loop", 1): loop, Way("loop_last", 1): last}
    aparts = {shape.apart(wide) for wide in (1, 2, 33)}
    seconds |= {Way("stacked", b, apart): stacked(b) for apart in aparts for b in (2, 10, 100)}
    return Measured("model", shape, seconds)


def test_between_blocks_times_are_interpolated_and_beyond_them_they_stay() -> None:
    one = times(NARROW, 9.0, 9.0, {2: 4.0, 10: 2.0, 100: 1.0}.__getitem__)
    assert [one.at(Way("stacked", b)) for b in (2, 10, 100, 1000)] == [4.0, 2.0, 1.0, 1.0]
    assert math.isclose(one.at(Way("stacked", 5)), 4.0 * 0.5 ** (math.log(5 / 2) / math.log(10 / 2)))
    assert one.at(Way("loop", 1)) == 9.0


def test_a_wide_network_runs_alone_where_that_is_faster() -> None:
    start = Tuning()
    assert way_of(WIDE, start) == Way("stacked", 2, 1)
    slow = [times(WIDE, 1.0, 0.8, lambda b: 1.1)]
    chosen = best(slow, start)
    assert chosen.channels_last
    assert way_of(WIDE, chosen) == Way("loop_last", 1)
    assert math.isclose(mean_seconds(slow, chosen), 0.8)
    back = best([times(WIDE, 1.0, 0.8, lambda b: 0.5)], chosen)  # a table that suits nobody is left again
    assert way_of(WIDE, back).kernel == "stacked"


def test_constants_that_bound_a_block_grow_where_larger_blocks_are_faster() -> None:
    start = Tuning(numbers=200)
    assert way_of(NARROW, start) == Way("stacked", 2)
    chosen = best([times(NARROW, 9.0, 9.0, {2: 4.0, 10: 2.0, 100: 1.0}.__getitem__)], start)
    assert chosen == replace(start, numbers=3200)
    assert way_of(NARROW, chosen).block == 32


def test_what_differs_by_noise_stays_built_in() -> None:
    start = Tuning(numbers=200)
    noise = [times(NARROW, 1.0, 1.0, {2: 1.0, 10: 0.995, 100: 0.993}.__getitem__)]
    assert best(noise, start) == start
    assert best(noise, best(noise, start)) == start


def test_every_way_is_measured() -> None:
    told: list[None] = []
    one = measure("logistic", 1, lambda: told.append(None))
    assert one.shape == Shape(301, 1, 1)
    assert [*one.seconds] == [Way("loop", 1), *(Way("stacked", b) for b in CASES["logistic"].blocks)]
    assert len(told) == len(one.seconds)
    assert min(one.seconds.values()) > 0


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_table(tmp_path / "a" / "b.json", OTHER, {"capability": "AVX2"})
    assert read_table(tmp_path / "a" / "b.json", "AVX2") == OTHER


GOOD = {"version": 1, **HERE, "table": asdict(Tuning())}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "holds no table"),
        (json.dumps(GOOD | {"table": 3}), "holds no table"),
        (json.dumps(GOOD | {"version": 99}), "of version 99, need 1"),
        (json.dumps(GOOD | {"capability": "NEON"}), f"measured for {cpu_capability()}, got .* for 'NEON'"),
        (json.dumps(GOOD | {"table": {"wide": 3}}), "with the constants wide, need clients, parameters"),
        (json.dumps(GOOD | {"table": GOOD["table"] | {"wide": -1}}), "wide must be >= 1, got -1"),  # type: ignore[operator]
        (json.dumps(GOOD | {"table": GOOD["table"] | {"wide": "a"}}), "wide must be an int, got 'a'"),  # type: ignore[operator]
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "table.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=says) as error:
        with_table(parts(tuning=str(file)))
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)
    assert "run `fedsim tune` on this machine, or use engine.tuning=builtin" in str(error.value)


def parts(**engine: Any) -> Parts:
    return Parts(FedAvg(lr=0.1), Digits(), Iid(clients=4), mlp, 2, engine=Engine(backend="serial", **engine))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration folder, with nothing in it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def mine(table: Tuning) -> Path:
    """The user's table, written."""
    file = users_file(cpu_capability())
    assert file is not None
    write_table(file, table, HERE)
    return file


def test_auto_is_the_users_table_or_what_is_built_in(home: Path) -> None:
    row = built_in_row(cpu_capability(), "cpu")
    assert with_table(parts()).engine.tuning == row
    (home / "fedsim").mkdir(parents=True)
    (home / "fedsim" / "tuning-VSX.json").write_text("of another machine with the same home")
    assert with_table(parts()).engine.tuning == row
    assert mine(OTHER).is_relative_to(home)
    assert with_table(parts()).engine.tuning == OTHER
    assert with_table(parts(tuning="builtin")).engine.tuning == row
    assert with_table(parts(tuning=Tuning(clients=7))).engine.tuning == Tuning(clients=7)
    assert built_in_row("VSX", "cpu") == built_in_row("AVX512", "cpu") == Tuning()
    assert built_in_row("AVX2", "cuda") == BUILT_IN["cuda"]


def test_a_run_is_computed_by_its_table(home: Path) -> None:
    mine(OTHER)
    prepared = assemble(parts()).prepared
    assert prepared.blocks == (3,)
    small = {"channels": (2, 3), "kernel": 3, "padding": 1}

    def network(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return cnn((1, 8, 8), outputs, **small)  # type: ignore[arg-type]

    prepared = assemble(replace(parts(), model=network)).prepared
    assert prepared.setup.kernels == prepared.setup.predictions == ("loop_last",)
    assert prepared.setup.wide == 1
    assert assemble(replace(parts(tuning="builtin"), model=network)).prepared.setup.kernels != ("loop_last",)


def test_a_run_that_goes_on_keeps_its_table(home: Path, tmp_path: Path) -> None:
    run: dict[str, Any] = {
        "algorithm": FedAvg(lr=0.1),
        "data": Digits(),
        "partition": Iid(clients=4),
        "model": mlp,
        "checkpoint": Checkpointing(every=1),
    }
    whole = simulate(**run, rounds=3, run_dir=tmp_path / "whole")
    simulate(**run, rounds=2, run_dir=tmp_path / "part")
    mine(OTHER)
    again = simulate(**run, rounds=3, run_dir=tmp_path / "part", resume=True)
    assert again.summary["digest"] == whole.summary["digest"]
    row = asdict(built_in_row(cpu_capability(), "cpu"))
    assert yaml.safe_load((tmp_path / "part" / "config.yaml").read_text())["engine"]["tuning"] == row
    facts = json.loads((tmp_path / "part" / "provenance.json").read_text())
    assert facts["engine"]["tuning"] == facts["resumed"][0]["engine"]["tuning"] == row


def test_the_command_line_records_its_table_and_goes_on_with_it(
    console: Callable[..., int], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = mine(Tuning(clients=3))
    assert console("engine=serial", "rounds=2", "hydra.run.dir=out") == 0
    recorded = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert recorded["engine"]["tuning"] == asdict(Tuning(clients=3))
    write_table(file, OTHER, HERE)
    capsys.readouterr()
    assert console("resume=out", "rounds=3") == 0
    assert "differ in rounding" not in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["engine"]["tuning"]["clients"] == 3
    file.write_text("{}")
    assert console("engine=serial", "rounds=1", "hydra.run.dir=other") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"engine.tuning must be a table of `fedsim tune`, got {file}, which holds no table" in line


def test_tune_measures_shows_and_writes(
    console: Callable[..., int], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console("tune", "--quick", "--models", "logistic", "--out", "mine.json") == 0
    said = capsys.readouterr().out
    assert "logistic" in said
    assert "written to mine.json: use it with engine.tuning=mine.json" in said
    table = read_table(tmp_path / "mine.json", cpu_capability())
    written = json.loads((tmp_path / "mine.json").read_text())
    assert {"processor", "capability", "torch", "made", "measured"} <= written.keys()
    assert written["measured"][0]["ways"][0]["seconds"] > 0
    assert (
        table.wide == built_in_row(cpu_capability(), "cpu").wide
    )  # of which a model without convolutions says nothing
    assert not home.exists()
    assert console("tune", "--quick", "--models", "logistic") == 0
    assert [path.name for path in (home / "fedsim").iterdir()] == [f"tuning-{cpu_capability()}.json"]


def test_tune_refuses_in_one_line(
    console: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console("tune", "--models", "leaf_cn") == 2
    assert "--models must be some of logistic, " in (said := capsys.readouterr().err)
    assert said.rstrip().endswith("got leaf_cn; did you mean leaf_cnn?")
    assert console("tune", "--help") == 0
    assert "leaf_cnn" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
def test_a_place_where_no_file_can_be_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_tune, "_measured", lambda *_: pytest.fail("it measures"))
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", tmp_path / "file" / "table.json"):
        with pytest.raises(InputError, match=r"^--out must be a file that can be written, got .*; choose another one"):
            cli_tune.tune(place, ())
    with pytest.raises(OSError, match="it is no regular file"), atomic_file(tmp_path / "pipe"):
        pytest.fail("it writes")
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_to_the_users_table_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "table.json")
    fast = Measured("logistic", Shape(300), {Way("loop", 1): 1.0, Way("loop_last", 1): 1.0, Way("stacked", 2): 0.5})
    monkeypatch.setattr(cli_tune, "_measured", lambda *_: [fast])
    assert cli_tune.tune(tmp_path / "link.json", ()) == 0
    assert (tmp_path / "link.json").is_symlink()
    assert read_table(tmp_path / "table.json", cpu_capability()) == Tuning()


def test_of_two_tables_a_resumed_run_says_what_differs() -> None:
    both = ({"rounding": {"tuning": asdict(replace(Tuning(), clients=n))}} for n in (3, 4))
    assert _differences(*both) == ["rounding.tuning.clients was 3, is 4"]
