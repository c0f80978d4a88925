"""The command line: what composes, what is refused and how it says so, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fedsim import __version__
from fedsim.assembly.configuration import build_run
from fedsim.cli.argv import COMMANDS, with_own_classes
from fedsim.cli.catalogue import GROUPS
from fedsim.cli.compose import check
from fedsim.cli.folder import config_folder
from fedsim.errors import InputError
from tests.stopped import signalled

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("engine=serial", "partition.clients=4", "schedule=all", "rounds=2")


def composed(*overrides: str, whole: bool = False) -> dict[str, Any]:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("config", list(overrides), return_hydra_config=whole)
    if whole:
        return {"run": cfg.hydra.run.dir}
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return plain  # type: ignore[no-any-return]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def problems(*argv: str) -> list[str]:
    with pytest.raises(InputError) as error:
        check(argv)
    return str(error.value).splitlines()


def status(folder: Path) -> str:
    return str(json.loads((folder / "summary.json").read_text())["status"])


def environment(tmp_path: Path, *absent: str) -> dict[str, str]:
    """The checkout on the path, and packages that must not be imported replaced by ones that fail."""
    for name in absent:
        (tmp_path / "absent" / name).mkdir(parents=True)
        (tmp_path / "absent" / name / "__init__.py").write_text(f"raise AssertionError('{name} was imported')\n")
    path = os.pathsep.join([str(tmp_path / "absent"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}


def fedsim(tmp_path: Path, *argv: str, absent: Sequence[str] = ("ray",)) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedsim", *argv]
    env = environment(tmp_path, *absent)
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def main(console: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The console script's entry point in this process, in an empty folder, on a machine without Ray."""
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    return console


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["algorithm=fedvag"],
            ["unknown option algorithm=fedvag", "did you mean algorithm=fedavg?", "fedavg, fedavg_ft, fedavgm,"],
        ),
        (["experiment=nosuch"], ["unknown option experiment=nosuch; nearest: ", "fedsim presets describes all"]),
        (["algorithm.lrr=1"], ["unknown key algorithm.lrr", "did you mean algorithm.lr=1?", "server_lr"]),
        (["+algorithm.lrr=1"], ["unknown key algorithm.lrr", "did you mean algorithm.lr?", "server_lr"]),
        (["algoritm=sgd"], ["unknown key algoritm", "did you mean algorithm=sgd?", "experiment"]),
        (["rounds.x=1"], ["unknown key rounds.x", "rounds holds a value"]),
        (["~algorithm.lr"], ["algorithm.lr must be given, got nothing"]),
        (["~algorithm"], ["algorithm must be given, got nothing"]),
        (["+algorithm=sgd"], ["got +algorithm=sgd", "write algorithm=sgd"]),
        (["algorithm.lr=abc"], ["algorithm.lr must be a float, got 'abc'"]),
        (["algorithm.lr=0"], ["algorithm.lr must be > 0, got 0"]),
        (["local.batch_size=0"], ["local.batch_size must be", "got 0"]),
        (["rounds=0"], ["rounds must be >= 1, got 0"]),
        (["rounds=2.5"], ["rounds must be an int, got 2.5"]),
        (["engine.kernel=fast"], ["engine.kernel must be one of auto, stacked, vmap, got 'fast'"]),
        (["algorithm._target_=my_own.Alg"], ["algorithm._target_", "No module named 'my_own'"]),
        (["schedule=cohorts"], ["schedule.path must be given"]),
        (["algorithm.lr=1,2"], ["algorithm.lr must be one value", "add -m"]),
        (["foo"], ["KEY=VALUE", "got 'foo'"]),
        (["=3"], ["KEY=VALUE", "got '=3'"]),
        (["local=5"], ["local must be a mapping with the keys steps, epochs, batch_size, sampling, got 5"]),
        (["algorithm.lr=inf"], ["algorithm.lr must be a finite number, got inf"]),
        (["algorithm.lr=[1"], ["KEY=VALUE", "got 'algorithm.lr=[1'"]),
        (["--foo"], ["unrecognized arguments: --foo", "--help"]),
        (["--config-dir", "nowhere"], ["--config-dir must be an existing folder, got 'nowhere'"]),
        (["-m", "--cfg", "job"], ["-m and --cfg"]),
        (["-m", "algorithm.lr=0.1,-2"], ["algorithm.lr must be > 0, got -2"]),
        (["-m", "algorithm=fedavg,fedvag"], ["unknown option algorithm=fedvag"]),
        (["-m", "rounds=range(0,3)"], ["rounds must be >= 1, got 0"]),
    ],
    ids=lambda part: "_".join(part) if "=" in part[0] or part[0].startswith("-") else None,
)
def test_one_clear_line_for_each_mistake(argv: list[str], words: list[str]) -> None:
    (line,) = problems(*argv)
    assert [word for word in words if word not in line] == []


def test_all_mistakes_at_once() -> None:
    lines = problems("algorithm.lr=-1", "rounds=0", "partition.alpha=x", "local.batch_size=0")
    assert sorted(line.split()[0] for line in lines) == [
        "algorithm.lr",
        "local.batch_size",
        "partition.alpha",
        "rounds",
    ]
    lines = problems("algorithm=x", "data=y")
    assert [line.split()[2].rstrip(";") for line in lines] == ["algorithm=x", "data=y"]


def test_what_is_right_passes() -> None:
    check([])
    check(["-m", "algorithm.lr=0.1,0.2", "seed=range(0,3)", "algorithm=fedavg,sgd", "hydra.sweep.dir=x"])
    check(["algorithm.lrr=1", "--hydra-help"])  # nothing runs, nothing to refuse


@pytest.mark.parametrize("data", options("data"))
def test_every_data_set_composes_with_the_defaults(data: str) -> None:
    text = (ROOT / f"configs/data/{data}.yaml").read_text()
    build_run(composed(f"data={data}", *(f"data.{key}=given" for key in re.findall(r"^  (\w+): \?{3}", text, re.M))))


def test_the_main_job_is_digits_on_two_ray_actors() -> None:
    cfg = composed()
    assert (cfg["data"]["_target_"], cfg["partition"]["clients"]) == ("fedsim.data.Digits", 20)
    assert (cfg["engine"]["backend"], cfg["engine"]["actors"]) == ("ray", 2)


def test_command_line_wins_over_experiment_over_data() -> None:
    assert composed("data=mnist")["model"]["_target_"] == "fedsim.models.cnn"  # what MNIST asks for
    assert composed("data=mnist", "model=linear")["model"]["_target_"] == "fedsim.models.linear"
    assert composed("data=quadratic")["local"]["batch_size"] == "full"
    assert composed("data=quadratic", "local.batch_size=3")["local"]["batch_size"] == 3
    cfg = composed("experiment=mnist_100c_dir03")
    assert (cfg["data"]["_target_"], cfg["model"]["_target_"]) == ("fedsim.data.MNIST", "fedsim.models.cnn")
    assert (cfg["rounds"], cfg["partition"]["clients"], cfg["partition"]["alpha"]) == (10, 100, 0.3)
    assert (cfg["schedule"]["rate"], cfg["algorithm"]["clip"], cfg["local"]["epochs"]) == (0.1, 10, 5)
    cfg = composed("experiment=mnist_100c_dir03", "data=fashion_mnist", "model=linear", "rounds=3", "algorithm=fedsam")
    assert (cfg["data"]["_target_"], cfg["model"]["_target_"]) == ("fedsim.data.FashionMNIST", "fedsim.models.linear")
    assert (cfg["rounds"], cfg["algorithm"]["_target_"]) == (3, "fedsim.algorithms.fedsam.FedSAM")


def test_runs_of_the_same_second_have_their_own_folders() -> None:
    assert composed(whole=True)["run"] != composed(whole=True)["run"]


def test_an_own_class_replaces_the_node() -> None:
    assert with_own_classes(["algorithm._target_=a.B", "algorithm.mu=1", "rounds=3", "-m"]) == [
        "~algorithm",
        "++algorithm._target_=a.B",
        "++algorithm.mu=1",
        "rounds=3",
        "-m",
    ]
    kept = ["algorithm=sgd", "algorithm._target_=a.B", "algorithm.lr=1", "data.path=x._target_=y"]
    assert with_own_classes(kept) == kept


@pytest.mark.parametrize(
    ("argv", "absent", "words"),
    [
        (["algorithm=fedvag"], ["ray", "torch"], ["algorithm=fedvag", "did you mean algorithm=fedavg?"]),
        (["algorithm.foo=3"], ["ray", "torch"], ["algorithm.foo=3", "keys of algorithm: lr"]),
        (["algorithm.lr=-1"], ["ray"], ["algorithm.lr must be > 0", "-1"]),
    ],
    ids=["option", "key", "range"],
)
def test_refused_before_anything_heavy_is_imported(
    tmp_path: Path, argv: list[str], absent: list[str], words: list[str]
) -> None:
    done = fedsim(tmp_path, *argv, absent=absent)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert [word for word in words if word not in line] == []
    assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["absent"], "no run folder is left behind"


def test_help_needs_no_torch(tmp_path: Path) -> None:
    done = fedsim(tmp_path, "--help", absent=["ray", "torch"])
    assert done.returncode == 0, done.stderr
    assert "Examples" in done.stdout
    for group, text in GROUPS.items():
        assert re.search(rf"^  {group} +{re.escape(text)}", done.stdout, re.M)
    assert [command for command in COMMANDS if f"fedsim {command} " not in done.stdout] == []
    for line in re.findall(r"^  fedsim ((?:[\w.]+=\S+ ?)+)", done.stdout, re.M):
        if "my" not in line:
            check(line.split())


def test_version_and_cfg(main: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main("--version") == 0
    assert capsys.readouterr().out == f"fedsim {__version__}\n"
    assert main("--cfg", "job", "algorithm.lr=0.5") == 0
    assert yaml.safe_load(capsys.readouterr().out)["algorithm"]["lr"] == 0.5
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_one_line_before_ray(main: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main("data=quadratic", "data.path=nowhere.npz", "engine=ray") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nowhere.npz" in line


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_a_folder_that_cannot_be_written_is_one_line(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, key: str
) -> None:
    (tmp_path / "file").touch()
    assert main(*SMALL, f"{key}=file/out", *(["-m"] if "sweep" in key else [])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "must be writable" in line
    assert "file/out" in line


def test_a_run_from_another_folder(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom fedsim.algorithms.fedavg import FedAvg\n\n"
        "@dataclass(frozen=True)\nclass Mine(FedAvg):\n    lam: float = 1.0\n"
    )
    own = ("algorithm._target_=mine.Mine", "algorithm.lr=0.1", "algorithm.lam=2")
    assert main(*SMALL, *own, "hydra.run.dir=out") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "accuracy" in shown.out
    assert "tensorboard --logdir" in shown.out
    assert status(tmp_path / "out") == "finished"
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["algorithm"]["lam"] == 2


def test_a_diverged_run_keeps_its_results(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(*SMALL, "algorithm.lr=1e30", "hydra.run.dir=out") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "diverged" in line
    assert status(tmp_path / "out") == "diverged"


@pytest.mark.parametrize("launcher", ["fedsim", "basic"])
def test_a_sweep_goes_on_after_jobs_that_fail(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, launcher: str
) -> None:
    sweep = ("partition.clients=100000,4", "algorithm.lr=1e30,0.1", "hydra.sweep.dir=out", f"hydra/launcher={launcher}")
    assert main("-m", *SMALL, *sweep) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.count("100000") >= 2
    assert err.count("the run diverged") == 1
    ended = {path.parent.name: status(path.parent) for path in tmp_path.glob("out/*/summary.json")}
    assert ended == {"clients4-lr1e+30": "diverged", "clients4-lr0.1": "finished"}
    states = [json.loads(path.read_text())["status"] for path in tmp_path.glob("out/jobs/*.json")]
    assert sorted(states) == ["diverged", "failed", "failed", "finished"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])  # Python meets the full disk at the end, or at every write
def test_a_full_disk_is_one_line(tmp_path: Path, unbuffered: str) -> None:
    command = [sys.executable, "-m", "fedsim", *SMALL, "hydra.run.dir=out"]
    env = environment(tmp_path, "ray") | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=tmp_path, env=env, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert "No space left on device" in line
    assert status(tmp_path / "out") == "failed"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_is_lost_is_one_line_and_an_exit_code(tmp_path: Path, unbuffered: str) -> None:
    env = environment(tmp_path, "ray") | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "fedsim", "--version"]
        done = subprocess.run(command, cwd=tmp_path, env=env, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.stderr.decode().splitlines() == ["error: standard output must be writable, got No space left on device"]
    assert done.returncode == 1


def test_a_standard_output_that_is_closed_stops_nothing(tmp_path: Path) -> None:
    script = f"{sys.executable} -m fedsim {' '.join(SMALL)} hydra.run.dir=out >&-"
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment(tmp_path, "ray"), check=False)
    assert done.returncode == 0
    assert status(tmp_path / "out") == "finished"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl_c", "terminated"]
)
def test_a_stopped_run_keeps_its_results(
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
) -> None:
    replace_file, while_saving = os.replace, []

    def and_again(source: Any, target: Any) -> None:
        if import_module("fedsim.cli.borrowed").heard:  # an impatient second one, Ctrl-C, changes nothing
            while_saving.append(target)
            signal.raise_signal(signal.SIGINT)
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", and_again)
    with signalled(tmp_path / "out", number):
        assert main(*SMALL, "rounds=1000000", "hydra.run.dir=out") == code
    assert while_saving, "nothing was saved: the second one came to nothing"
    assert capsys.readouterr().err == ""
    assert status(tmp_path / "out") == "interrupted"
