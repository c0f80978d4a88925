"""``fedsim export RUN``: the run's model as a file that other programs read; one line where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from fedsim import simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.record.result import Result
from tests.conftest import Quadratics

Console = Callable[..., int]


class Own(nn.Module):
    """A class of a user's own, whose name the run's folder holds."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int):
        super().__init__()
        self.inner = nn.Linear(input_shape[0], outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.inner(x))  # type: ignore[no-any-return]


def run(folder: Path, model: Any = Own, **changes: Any) -> Result:
    from fedsim.partition import Natural

    parts: dict[str, Any] = {"data": Quadratics().dataset(), "partition": Natural(), "model": model, "rounds": 3}
    return simulate(FedAvg(lr=0.05), **(parts | changes), run_dir=folder)


def parameters(result: Result) -> dict[str, torch.Tensor]:
    assert result.model is not None
    return dict(result.model.state_dict())


def same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)


def test_safetensors_and_pt_hold_the_model_and_build_nothing(tmp_path: Path, console: Console) -> None:
    """The model's class is a user's, nobody said trust=true, and config.yaml need not even be one."""
    result = run(tmp_path / "mine")
    (tmp_path / "mine" / "config.yaml").write_text("no: [config")
    assert console("export", "mine") == 0
    assert same(load_file(tmp_path / "mine.safetensors"), parameters(result))
    assert (tmp_path / "mine.safetensors").read_bytes() == (tmp_path / "mine" / "model.safetensors").read_bytes()
    for name, words in {"a.pt": (), "b.pth": (), "c": ("--format", "pt")}.items():
        assert console("export", *words, "mine", "--out", name) == 0
        found = torch.load(tmp_path / name, weights_only=True)
        assert same(found, parameters(result))
        assert list(found) == ["inner.weight"]


def test_best_is_the_best_one(tmp_path: Path, console: Console) -> None:
    run(tmp_path / "mine", rounds=2)
    better = {"inner.weight": torch.ones(1, 2)}
    save_file(better, tmp_path / "mine" / "model_best.safetensors")
    assert console("export", "mine", "--best", "--format", "pt") == 0
    assert same(torch.load(tmp_path / "mine-best.pt", weights_only=True), better)


@pytest.mark.slow  # the exporter traces, optimises and checks
def test_onnx_predicts_as_the_model_for_any_number_of_samples(
    tmp_path: Path, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    reference: Any = pytest.importorskip("onnx.reference")
    small = ("engine=serial", "partition.clients=4", "schedule=all", "rounds=1", "model=mlp", "model.hidden=[4]")
    assert console(*small, "hydra.run.dir=mine") == 0
    capsys.readouterr()
    assert console("export", "mine", "--format", "onnx") == 0
    weights = load_file(tmp_path / "mine" / "model.safetensors")
    program = reference.ReferenceEvaluator(str(tmp_path / "mine.onnx"))
    assert list(program.input_names) == ["x"]
    for count in (1, 5):
        x = torch.linspace(-1, 1, count * 64).view(count, 1, 8, 8)
        hidden, out = (name.removesuffix(".weight") for name in weights if name.endswith("weight"))
        flat = torch.relu(x.flatten(1) @ weights[f"{hidden}.weight"].T + weights[f"{hidden}.bias"])
        expected = flat @ weights[f"{out}.weight"].T + weights[f"{out}.bias"]
        (got,) = program.run(None, {"x": x.numpy()})
        assert torch.allclose(torch.from_numpy(got), expected, rtol=1e-5, atol=1e-6)  # float32 sums of 64
    save_file({"other": torch.zeros(1)}, tmp_path / "mine" / "model.safetensors")
    assert console("export", "mine", "--out", "other.onnx") == 2
    assert "must hold the tensors of" in capsys.readouterr().err


def test_without_the_package_onnx_is_refused_in_a_line(
    tmp_path: Path, console: Console, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.callbacks.base.find_spec", lambda name: None)
    assert console("export", "nowhere", "--format", "onnx") == 2
    line = "error: --format onnx needs the package onnx, got none; pip install 'fedsim-ray[onnx]'\n"
    assert capsys.readouterr().err == line


def test_each_run_without_a_model_says_why(
    tmp_path: Path, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    run(folder)
    whole = (folder / "model.safetensors").read_bytes()

    def said(*words: str) -> str:
        assert console("export", *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "RUN must be the folder of a run, got 'nowhere'; there is no nowhere" in said("nowhere")
    (tmp_path / "empty").mkdir()
    assert "got 'empty'; there is no empty/config.yaml" in said("empty")
    (folder / "model.safetensors").write_bytes(whole[:-1])
    assert "mine/model.safetensors must hold a model as safetensors, got a damaged file" in said("mine")
    (folder / "model.safetensors").write_bytes(b"")
    assert "got a damaged file" in said("mine")
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors: its method has no model of all clients, or it was removed" in said("mine")
    summary = folder / "summary.json"
    summary.write_text(summary.read_text().replace('"finished"', '"failed"'))
    assert "it is failed; go on with fedsim resume=mine, or take the best model so far with --best" in said("mine")
    summary.unlink()
    assert "it has not come to its end; go on with fedsim resume=mine" in said("mine")
    (folder / "model_best.safetensors").unlink()
    assert "has no model_best.safetensors: it has not come to its end; go on" in said("mine", "--best")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_where_it_is_written_is_new_and_its_format_is_said(
    tmp_path: Path, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "mine")
    (tmp_path / "mine.safetensors").write_text("somebody's")
    for words, line in (
        ((), "--out must be a new file, got 'mine.safetensors'"),
        (("--out", "a.bin"), "--out must end in .safetensors, .pt, .pth, .onnx, got 'a.bin'; or say --format"),
        (("--out", "nowhere/a.pt"), "--out must be a file that can be written, got nowhere/a.pt: No such file"),
        (("trust=yes",), "unrecognized arguments: trust=yes; see fedsim export --help"),
        (("--format", "tf"), "invalid choice: 'tf'"),
    ):
        assert console("export", "mine", *words) == 2
        assert line in capsys.readouterr().err
    assert (tmp_path / "mine.safetensors").read_text() == "somebody's"


@pytest.mark.slow  # likewise
def test_a_model_of_a_users_own_becomes_onnx_with_his_word(
    tmp_path: Path, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    small = ("engine=serial", "partition.clients=4", "schedule=all", "rounds=1")
    (tmp_path / "own_model.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n"
        "    def __init__(self, input_shape, outputs):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, outputs))\n"
    )
    assert console(*small, "model._target_=own_model.Net", "hydra.run.dir=mine") == 0
    assert yaml.safe_load((tmp_path / "mine" / "config.yaml").read_text())["model"]["_target_"] == "own_model.Net"
    capsys.readouterr()
    assert console("export", "mine", "--format", "onnx") == 2
    assert "got own_model.Net, which can run any code; add trust=true" in capsys.readouterr().err
    assert console("export", "mine", "--format", "onnx", "trust=true") == 0
    assert (tmp_path / "mine.onnx").stat().st_size > 0
