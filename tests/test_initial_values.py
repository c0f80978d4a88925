"""Initial values from files: exact, by every name, or one line; on record, and kept when a run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fedsim.cli.main import main
from fedsim.errors import InputError
from fedsim.ground.model_file import file_sha256
from fedsim.models import Adapted, build, mlp
from tests.oracles.test_trained_part import numbers, run


def values(seed: int, outputs: int = 3) -> dict[str, torch.Tensor]:
    return dict(build(mlp, (6,), outputs, {"hidden": (5,)}, seed).state_dict())


def small(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return mlp(input_shape, outputs, hidden=(5,))


def begun(file: Path | str, **options: Any) -> nn.Module:
    return build(Adapted(small, init=str(file), **options), (6,), 3, {}, seed=0)


@pytest.mark.parametrize("end", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("nested", [False, True])
def test_every_kind_of_file_is_read_to_the_bit(tmp_path: Path, end: str, nested: bool) -> None:
    want, file = values(7), tmp_path / f"model{end}"
    if end == ".safetensors":
        save_file(want, file)
    else:
        torch.save({"state_dict": want} if nested else want, file)
    got = begun(file).state_dict()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert not torch.equal(values(0)["head.weight"], want["head.weight"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_run_begins_where_another_ended(tmp_path: Path, dtype: str) -> None:
    """Round 0 of the second run is the last model of the first, in either dtype, to the bit."""
    how = {"engine": {"dtype": dtype}}
    first = run(small, numbers((6,)), run_dir=tmp_path / "first", **how)
    again = run(Adapted(small, init=str(tmp_path / "first")), numbers((6,)), trajectory=True, **how)
    assert first.model is not None
    want = torch.cat([p.detach().reshape(-1) for p in first.model.parameters()])
    assert again.trajectory is not None
    assert torch.equal(torch.from_numpy(again.trajectory[0]), want)
    kept = load_file(tmp_path / "first" / "model.safetensors")
    assert {t.dtype for t in kept.values()} == {getattr(torch, dtype)}


def test_all_that_does_not_fit_is_told_in_one_line(tmp_path: Path) -> None:
    wrong = values(7, outputs=4)
    wrong["body.2.weight"] = wrong.pop("body.1.weight")
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(InputError) as caught:
        begun(tmp_path / "wrong.safetensors")
    line = str(caught.value)
    assert "\n" not in line
    assert "without body.1.weight; with too many body.2.weight; of other shapes head.weight [4, 5] for [3, 5]" in line
    assert "head.bias [4] for [3]; leave names to the model with model.init_skip=[PATTERN]" in line


def test_names_may_be_left_to_the_model(tmp_path: Path) -> None:
    """A pretrained body under a new head."""
    save_file(values(7, outputs=4), tmp_path / "other.safetensors")
    got, drawn = begun(tmp_path / "other.safetensors", init_skip=("head.*",)).state_dict(), values(0)
    assert torch.equal(got["body.1.weight"], values(7)["body.1.weight"])
    assert torch.equal(got["head.weight"], drawn["head.weight"])


def test_one_name_of_tied_weights_will_do(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight
            self.head = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.b(self.a(x)))  # type: ignore[no-any-return]

    given = {name: value.clone() + 1 for name, value in Tied().state_dict().items() if name != "b.weight"}
    save_file(given, tmp_path / "tied.safetensors")
    model = build(Adapted(Tied, init=str(tmp_path / "tied.safetensors")), (6,), 3, {}, seed=0)
    assert torch.equal(model.get_submodule("b").weight, given["a.weight"])


class Dangerous:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no"),
        ("folder", "there is no"),
        (b"nothing", "must be a file of named tensors, got"),
        ([1, 2], "which holds list; write it with torch.save(model.state_dict(), FILE)"),
        ({"epoch": 3}, "which holds dict"),
        (
            Dangerous(),
            "which holds more than tensors, or is damaged; write it with torch.save(model.state_dict(), FILE)",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "given.pt"
    if content == "folder":
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
        file.rename(tmp_path / "given.safetensors")
        file = tmp_path / "given.safetensors"
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(InputError) as caught:
        begun(file)
    assert "model.init must be a file of named tensors" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "touched").exists()


def test_the_file_is_on_record_and_the_same_when_a_run_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "begin.safetensors"
    save_file(values(7), file)
    model = Adapted(small, init=str(file), freeze=("body.*",))
    whole = run(model, numbers((6,)), rounds=3)
    run(model, numbers((6,)), rounds=1, run_dir=tmp_path / "run")
    on_record = json.loads((tmp_path / "run" / "provenance.json").read_text())["init"]
    assert on_record == [{"init": str(file), "sha256": file_sha256(file)}]
    gone_on = run(model, numbers((6,)), rounds=3, run_dir=tmp_path / "run", resume=True)
    assert gone_on.summary["digest"] == whole.summary["digest"]
    save_file(values(8), file)
    with pytest.raises(InputError, match="a run goes on only as it began, got"):
        run(model, numbers((6,)), rounds=4, run_dir=tmp_path / "run", resume=True)


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)

    def started(*words: str) -> Any:
        monkeypatch.setattr("sys.argv", ["fedsim", *words])
        try:
            return main()
        except SystemExit as stop:
            return stop.code

    common = ["engine=serial", "data=synthetic", "partition=natural", "model=linear", "rounds=1", "seed=1"]
    assert started(*common, "hydra.run.dir=first") == 0
    assert started(*common, "model.init=first", "model.freeze=[*.bias]", "hydra.run.dir=second") == 0
    first, second = (load_file(tmp_path / run / "model.safetensors") for run in ("first", "second"))
    assert torch.equal(first["head.bias"], second["head.bias"])
    assert not torch.equal(first["head.weight"], second["head.weight"])
    assert started("resume=second", "rounds=2") == 0
    capsys.readouterr()
    assert started(*common, "model.init=third") == 2
    assert "model.init must be a file of named tensors" in capsys.readouterr().err
