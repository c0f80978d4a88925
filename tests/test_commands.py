"""``fedsim list``, ``presets``, ``verify`` and ``replay``, as a user types them."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fedsim.algorithms.fedavg import FedAvg
from fedsim.assembly.configuration import build_run
from fedsim.assembly.parts import Parts
from fedsim.cli import catalogue, replay
from fedsim.cli import main as run
from fedsim.cli.compose import compose
from fedsim.cli.folder import config_folder
from fedsim.cli.verify import difference
from fedsim.ground.console import Terminal
from fedsim.objective import Objective
from fedsim.simulation import simulate
from fedsim.types import Message, Round

CONFIGS = Path(config_folder())
SMALL = ["engine=serial", "partition.clients=5", "schedule.cohort=3", "rounds=4", "data=digits"]


def fedsim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["fedsim", *argv])
    code = run.main()
    out, err = capsys.readouterr()
    return code, out, err


@dataclass(frozen=True)
class Sour(FedAvg):
    """FedAvg that cannot bear the third round."""

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        if rnd.index == 2:
            raise RuntimeError("sour")
        return super().local(obj, client, got, rnd)


def test_every_option_has_a_line_of_its_own() -> None:
    """From its docstring or its file, no two alike within a group."""
    for group in sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "hydra"):
        assert catalogue.GROUPS[group]
        lines = catalogue.describe(list(catalogue.options([CONFIGS], group).values()))
        assert lines.keys() == {path.stem for path in (CONFIGS / group).glob("*.yaml")}
        assert all(lines.values()), [name for name, line in lines.items() if not line]
        assert len(set(lines.values())) == len(lines)


def test_list_shows_docstrings_keys_and_folders_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(Terminal, "is_terminal", False)
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm" / "mine.yaml").write_text("# Mine alone.\n_target_: nowhere.Mine\nlr: 1\n")
    code, out, _ = fedsim(monkeypatch, capsys, "list", "algorithm", "--config-dir", str(tmp_path))
    rows = {row[0]: row[1:] for row in (line.split("\t") for line in out.splitlines())}
    assert code == 0
    assert rows["fedprox"][0] == "Federated averaging with a proximal term mu/2 ||y - x||^2 on the clients."
    assert rows["fedprox"][1].split() == [
        k for k in yaml.safe_load((CONFIGS / "algorithm/fedprox.yaml").open()) if k[0] != "_"
    ]
    assert "No module named 'nowhere'" in rows["mine"][0]
    assert "fedavg *" in rows
    code, out, _ = fedsim(monkeypatch, capsys, "list")
    assert code == 0
    assert {line.split("\t")[0] for line in out.splitlines()[:-1]} == set(catalogue.GROUPS)
    code, out, _ = fedsim(monkeypatch, capsys, "list", "downlink", "topk")
    assert code == 0
    assert "entries kept" in out
    assert "_target_: fedsim.channel.topk.TopK" in out
    code, out, _ = fedsim(monkeypatch, capsys, "presets")
    assert code == 0
    assert "mnist_100c_dir03\tMNIST over 100 clients" in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["list", "algoritm"], "unknown group algoritm; did you mean algorithm?"),
        (["list", "channel", "topq"], "unknown option channel=topq; did you mean topk?"),
        (["list", "a", "b", "c"], "unrecognized arguments: c; see fedsim list --help"),
        (["verify", "algorithm.lrr=1"], "unknown key algorithm.lrr"),
        (["verify", "seed=0,1"], "seed must be one value"),
        (["replay", "{run}"], "the following arguments are required"),
        (["replay", "{run}", "client=1"], "round must be one number from 1, got nothing"),
        (["replay", "{run}", "round=x"], "round must be a whole number, got 'x'"),
        (["replay", "{run}", "round=1", "seed=1"], "replay takes round=R and client=I[,J,...], got seed"),
        (["replay", "{run}", "round=9"], "round must be 1..4, got 9"),
        (["replay", "{run}", "round=1", "client=7"], "client must be 0..4, got 7"),
        (["replay", "{run}/nowhere", "round=1"], "resume must be the folder of a run"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recorded: Path, argv: list[str], said: str
) -> None:
    code, _, err = fedsim(monkeypatch, capsys, *(text.format(run=recorded) for text in argv))
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four rounds whose clients are computed one by one, so that a replay has its bits."""
    folder = tmp_path_factory.mktemp("replay") / "run"
    config = compose([*SMALL, "engine.batching=loop", "algorithm=scaffold"])
    simulate(**build_run(config), run_dir=folder, config=config)
    return folder


def cohort(folder: Path, round_: int) -> tuple[int, ...]:
    parts = build_run(yaml.safe_load((folder / "config.yaml").read_text()))
    found: tuple[int, ...] = parts["schedule"].clients(round_ - 1, 5, parts["seed"])
    return found


def mean_of_replayed(folder: Path, round_: int) -> tuple[np.ndarray, float]:
    """Mean update and mean loss over the cohort of a round, each client replayed on its own."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assembled = replay.assemble(Parts(**build_run(config)))
    lit = replay.find(assembled, folder, round_, None)
    worker = replay.Worker(assembled.prepared.setup)
    done = [replay.work(worker, i, job, lit.shared) for i, job in lit.found]
    assert tuple(work.client for work in done) == cohort(folder, round_)
    updates = [work.outcome.messages["update"][0].double().numpy() for work in done]
    return np.mean(updates, axis=0), float(np.mean([work.outcome.losses[0].item() for work in done]))


def test_replayed_clients_are_those_of_the_run(recorded: Path) -> None:
    """SCAFFOLD's server moves by the mean update, in float32; its clients remember their control variates."""
    config = yaml.safe_load((recorded / "config.yaml").read_text())
    points = []
    for rounds in (2, 3):
        parts = build_run(config | {"rounds": rounds})
        points.append(simulate(**parts).server.x.double().numpy())
    update, loss = mean_of_replayed(recorded, 3)
    recorded_loss = [yaml.safe_load(line) for line in (recorded / "metrics.jsonl").read_text().splitlines()][3]
    assert loss == pytest.approx(recorded_loss["train/loss"], abs=1e-12)
    np.testing.assert_allclose(points[1] - points[0], update, atol=1e-7)  # float32 of numbers below 1
    assert np.abs(update).max() > 1e-3


def test_replay_prints_the_clients_and_stops_in_the_debugger(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recorded: Path
) -> None:
    first, second, *_ = cohort(recorded, 2)
    code, out, _ = fedsim(monkeypatch, capsys, "replay", str(recorded), "round=2", f"client={second},{first}")
    assert code == 0
    cells = [line.split("│")[1].strip() for line in out.splitlines() if "│" in line]
    assert cells == [str(first), str(second)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("p 'here', rnd.index, sorted(got)\ncontinue\n"))
    code, out, _ = fedsim(monkeypatch, capsys, "replay", str(recorded), "round=2", f"client={first}", "--pdb")
    assert code == 0
    assert "scaffold.py" in out
    assert "('here', 1, ['c', 'x'])" in out
    absent = next(i for i in range(5) if i not in cohort(recorded, 2))
    code, _, err = fedsim(monkeypatch, capsys, "replay", str(recorded), "round=2", f"client={absent}")
    assert code == 2
    assert "client must be one of those who work in round 2" in err


def test_a_client_that_fails_names_the_command_that_replays_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    argv = [*SMALL, f"hydra.run.dir={folder}", "algorithm._target_=tests.test_commands.Sour", "algorithm.lr=0.1"]
    with pytest.raises(Exception, match="sour") as raised:
        fedsim(monkeypatch, capsys, *argv)
    command = str(raised.value).partition("fedsim replay ")[2].split()
    assert command[:2] == [str(folder), "round=3"]
    assert command[2] == "client=" + ",".join(map(str, cohort(folder, 3)))
    monkeypatch.setattr(sys, "stdin", io.StringIO("p rnd.index\nquit\n"))
    with monkeypatch.context() as patch:
        patch.setattr("fedsim.cli.replay.pdb.post_mortem", lambda trace: None)
        code, _, _ = fedsim(monkeypatch, capsys, "replay", *command, "--pdb")
    assert code == 0, "quit in the debugger is no failure"
    with pytest.raises(RuntimeError, match="sour"):
        fedsim(monkeypatch, capsys, "replay", *command)


def test_the_first_round_that_differs_is_named() -> None:
    same = ["a", "b", "c"]
    assert difference({"serial": same, "ray": list(same)}) is None
    assert difference({"serial": same, "one": ["a", "b", "x"], "three": ["a", "x", "c"]}) == ("three", 1)
    assert difference({"serial": same, "one": ["a", "b"]}) == ("one", 2)


def test_verify_compares_states_round_by_round(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without Ray: a backend that adds one float's last bit in round 2 is found out, an honest one is not."""
    from fedsim.assembly.prepared import Prepared
    from fedsim.pool.serial import Serial

    bend = False

    class Bent(Serial):
        def map(self, method: str, jobs: Any, costs: Any, shared: Any) -> list[Any]:
            answers = super().map(method, jobs, costs, shared)
            if bend and method == "train" and jobs[0].round.index == 1:
                sums = answers[0].sums
                sums["update"] = np.nextafter(np.float32(sums["update"]), np.float32(9)).astype(sums["update"].dtype)
            return answers

    started: list[tuple[str, int]] = []

    def start(self: Prepared, engine: Any, cohort: int = 1) -> Any:
        started.append((engine.backend, engine.actors))
        return Serial(self.setup) if engine.backend == "serial" else Bent(self.setup)

    monkeypatch.setattr(Prepared, "start", start)
    code, out, _ = fedsim(monkeypatch, capsys, "verify", *SMALL[:3], "seed=3")
    assert code == 0
    assert f"equal after every one of 3 rounds (CPU capability {torch.backends.cpu.get_cpu_capability()})" in out
    assert started == [("serial", 2), ("ray", 1), ("ray", 3)]
    bend = True
    code, out, err = fedsim(monkeypatch, capsys, "verify", *SMALL, "seed=3")
    assert code == 1
    assert "ray, 1 actor differs from serial, first after round 2\n" in err
    code, out, err = fedsim(monkeypatch, capsys, "verify", *SMALL, "engine.address=10.0.0.1:6379", "seed=3")
    assert "first after round 2; this machine's CPU capability is" in err


def test_replay_on_another_cpu_capability_says_that_rounding_may_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recorded: Path
) -> None:
    words = ("replay", str(recorded), "round=1", f"client={cohort(recorded, 1)[0]}")
    assert "CPU capability" not in fedsim(monkeypatch, capsys, *words)[1]
    monkeypatch.setattr(replay, "cpu_capability", lambda: "another")
    assert "here it is another: numbers may differ" in fedsim(monkeypatch, capsys, *words)[1]


def test_digests_are_of_the_state() -> None:
    """Two seeds differ from the start, the same seed twice does not."""
    from fedsim.cli.verify import trace

    one, again, other = (trace(Parts(**build_run(compose([*SMALL, f"seed={seed}"])))) for seed in (0, 0, 1))
    assert one == again
    assert len(set(one)) == len(one) == 5
    assert not set(one) & set(other)


def test_pdb_of_wrapped_algorithms_stops_in_the_inner_one() -> None:
    from fedsim.algorithms.mesa import Mesa

    debugger = replay._debugger(Mesa(base=FedAvg(lr=0.1)))
    assert [Path(file).name for file in debugger.get_all_breaks()] == ["fedavg.py"]
    debugger.clear_all_breaks()
