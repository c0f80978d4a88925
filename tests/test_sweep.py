"""Sweeps: what a command expands to, what is run, skipped, resumed and retried, and what survives."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from fedsim.cli import main as run
from fedsim.cli.folder import config_folder
from fedsim.errors import InputError
from fedsim.sweep.board import last_record, last_score
from fedsim.sweep.expand import SweepJob, covering, expand, folder_name, overrides_of, params_of
from fedsim.sweep.queued import Limits, QueuedJob, in_one_process
from fedsim.sweep.search import Search, search
from fedsim.sweep.state import State, SweepFolder, identity, pairing
from hydra_plugins.fedsim_sweep._composer import Composer

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("engine=serial", "data=quadratic", "schedule=all", "rounds=2")
DIGITS = ("engine=serial", "partition.clients=4", "schedule=all")


def jobs(*texts: str, **choices: Any) -> list[tuple[str, ...]]:
    parsed = OverridesParser.create().parse_overrides(list(texts))
    return [job.overrides for job in expand(params_of(parsed), {"algorithm": "fedavg", **choices})]


def config(**changes: Any) -> dict[str, Any]:
    whole = {
        "algorithm": {"_target_": "FedAvg", "lr": 0.1},
        "partition": {"clients": 4},
        "engine": {"backend": "serial", "actors": 2, "address": None, "threads": 1, "device": "cpu"},
        "checkpoint": {"every": 1},
        "privacy": None,
        "rounds": 2,
        "seed": 0,
    }
    return {**whole, **changes}


def states(folder: Path) -> dict[str, State]:
    return {state.name: state for state in SweepFolder(folder).states()}


def digests(folder: Path) -> dict[str, str]:
    return {state.name: (state.summary or {})["digest"] for state in SweepFolder(folder).states()}


def files(folder: Path) -> dict[str, int]:
    """Every file of the finished jobs of a sweep, with the time of its last change."""
    found = [state.folder for state in SweepFolder(folder).states() if state.status == "finished"]
    paths = [path for name in found for path in (folder / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """The console script's entry point in this process, in an empty folder, on a machine without Ray."""

    def call(*argv: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fedsim", *argv])
        return run.main()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


# What a command expands to


def test_every_combination_in_order() -> None:
    got = jobs("algorithm.lr=0.1,0.2", "rounds=3", "seed=range(3)")
    want = [(f"algorithm.lr={lr}", "rounds=3", f"seed={seed}") for lr, seed in itertools.product((0.1, 0.2), range(3))]
    assert got == want


def test_a_conditional_key_makes_no_redundant_job() -> None:
    got = jobs("algorithm=fedavg,fedprox,fednova", "algorithm.mu@fedprox=0.01,0.1", "seed=0,1")
    want = [("algorithm=fedavg", f"seed={s}") for s in (0, 1)]
    want += [("algorithm=fedprox", f"algorithm.mu={mu}", f"seed={s}") for s in (0, 1) for mu in ("0.01", "0.1")]
    want += [("algorithm=fednova", f"seed={s}") for s in (0, 1)]
    assert got == want


def test_a_condition_looks_at_the_choice_that_nothing_on_the_command_line_makes() -> None:
    assert jobs("algorithm.mu@fedprox=1", "seed=0,1", algorithm="fedprox") == [
        ("algorithm.mu=1", "seed=0"),
        ("algorithm.mu=1", "seed=1"),
    ]
    layers = jobs("channel=[],[ef14,topk]", "channel.topk.ratio@topk=0.1,0.2")
    assert layers == [("channel=[]",), *(("channel=[ef14,topk]", f"channel.topk.ratio={r}") for r in (0.1, 0.2))]


def test_a_condition_that_never_holds_is_an_error() -> None:
    with pytest.raises(InputError, match=r"algorithm\.mu@fedprox is for algorithm=fedprox, which no job"):
        jobs("algorithm=fedavg,sgd", "algorithm.mu@fedprox=1,2")


def test_the_same_key_twice_is_the_later_one() -> None:
    assert jobs("seed=0,1", "rounds=2", "+seed=7") == [("rounds=2", "+seed=7")]


def test_a_file_says_the_same_as_the_command_line() -> None:
    given = yaml.safe_load(
        "{algorithm: 'fedavg,fedprox', algorithm.mu@fedprox: [0.1, 1], seed: range(2), channel: [[], [int8]], a: null}"
    )
    assert overrides_of(given) == [
        "algorithm=fedavg,fedprox",
        "algorithm.mu@fedprox=0.1,1",
        "seed=range(2)",
        "channel=[],[int8]",
        "a=null",
    ]


def test_few_jobs_hold_every_value() -> None:
    texts = ["algorithm=fedavg,fedprox", "algorithm.mu@fedprox=1,2", "algorithm.lr=interval(0.1,1)", "seed=range(50)"]
    params = params_of(OverridesParser.create().parse_overrides(texts))
    chosen = list(covering(params, {}))
    assert len(chosen) <= 56
    values = {text for job in chosen for text in job.overrides}
    ends = {"algorithm.lr=0.1", "algorithm.lr=1", "algorithm.lr=1.0"}
    assert values - ends == {
        *("algorithm=fedavg", "algorithm=fedprox", "algorithm.mu=1", "algorithm.mu=2"),
        *(f"seed={s}" for s in range(50)),
    }
    assert len(values & ends) == 2


@pytest.mark.parametrize(
    ("varied", "name"),
    [
        (["algorithm=fedprox", "algorithm.mu=0.01", "seed=2"], "fedprox-mu0.01-seed2"),
        (["channel=[ef14,topk]", "local.batch_size=full"], "ef14+topk-batch_size_full"),
        (["channel=[]"], "channel_none"),
        (["data.path=/a b/c"], "path_a+b+c"),
        ([], "job"),
    ],
)
def test_folders_have_names_that_need_no_quotes(varied: list[str], name: str) -> None:
    assert folder_name(varied) == name


# Which job is which


def test_what_cannot_change_a_bit_does_not_make_another_job() -> None:
    ray = config(engine={"backend": "ray", "actors": 7, "address": "a:1", "threads": 1, "device": "cpu"}, checkpoint={})
    assert identity(ray) == identity(config())
    for other in (
        config(rounds=3),
        config(seed=1),
        config(algorithm={"_target_": "FedAvg", "lr": 0.2}),
        config(engine={**config()["engine"], "threads": 2}),
    ):
        assert identity(other) != identity(config())


def test_pairs_differ_in_method_and_seed_only() -> None:
    other = config(seed=3, algorithm={"_target_": "FedProx"}, privacy={"_target_": "x"}, channel={"encode": True})
    assert pairing(other) == pairing(config())
    assert pairing(config(partition={"clients": 5})) != pairing(config())
    assert pairing(config(rounds=3)) != pairing(config())


def test_a_claimed_job_is_found_again(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    with folder.held(["fedsim", "-m"], []):
        first = folder.claim(
            [(SweepJob(("seed=0",), ("seed=0",)), config()), (SweepJob(("seed=1",), ("seed=1",)), config(seed=1))]
        )
        # The same configurations by another command, twice the same, and a new one whose name is taken.
        again = folder.claim(
            [
                (SweepJob(("seed=1", "rounds=2"), ("seed=1",)), config(seed=1)),
                (SweepJob(("seed=1",), ()), config(seed=1)),
                (SweepJob(("seed=0", "rounds=9"), ("seed=0",)), config(rounds=9)),
            ]
        )
    assert [state.folder for state in first] == ["seed0", "seed1"]
    assert again[0] == first[1]
    assert len(again) == 2
    assert again[1].folder == f"seed0-{identity(config(rounds=9))[:6]}"
    assert [state.number for state in folder.states()] == [0, 1, 2]
    assert sorted(path.name for path in (tmp_path / "sweep" / "jobs").iterdir()) == sorted(
        f"{state.identity[:16]}.json" for state in folder.states()
    ), "no temporary file is left"


def test_two_commands_do_not_run_the_same_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.sweep.state.PATIENCE_S", 0.1)
    folder = SweepFolder(tmp_path)
    with folder.held([], []), pytest.raises(InputError, match="is being run by another fedsim"), folder.held([], []):
        pass
    with folder.held([], []):
        pass  # free again


def test_what_a_killed_sweep_leaves_is_seen(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    with folder.held([], []):
        for seed, summary in enumerate(
            (None, {"status": "interrupted"}, {"status": "finished"}, {"status": "diverged"})
        ):
            (state,) = folder.claim([(SweepJob((f"seed={seed}",), (f"seed={seed}",)), config(seed=seed))])
            folder.write(State(**{**vars(state), "status": "running"}))
            if summary:
                (tmp_path / state.folder).mkdir()
                (tmp_path / state.folder / "summary.json").write_text(json.dumps({**summary, "rounds": 2}))
    with folder.held([], []):
        got = [state.status for state in folder.states()]
    assert got == ["interrupted", "interrupted", "finished", "diverged"]


def test_a_damaged_state_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / f"{'a' * 16}.json").write_text("{")
    with pytest.raises(InputError, match=r"aaaa\.json must be a job's state"):
        SweepFolder(tmp_path).states()


def test_the_last_whole_line_is_the_progress(tmp_path: Path) -> None:
    assert last_record(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('{"round": 0}\n{"round": 1, "eval/loss": null}\n{"rou')
    assert last_record(tmp_path) == {"round": 1}


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=mnist", "~algorithm", "++algorithm._target_=a.B", "++algorithm.x=1", "rounds=7"],
        ["channel=[ef14,topk]", "channel.topk.ratio=0.3", "channel@downlink=[int8]", "hydra.sweep.dir=x"],
    ],
    ids=["own_class", "layers"],
)
def test_values_set_on_a_copy_are_what_hydra_composes(overrides: list[str]) -> None:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        composer = Composer(loader, master)
        composer([*overrides, "seed=9"])  # of the same options: what it sets must not stay
        got = composer(overrides)
        want = OmegaConf.to_container(compose("config", overrides), resolve=True)
    assert got == want


# Packing


def task(seed: int = 0, overrides: tuple[str, ...] = (), **engine: Any) -> QueuedJob:
    whole = config(seed=seed, engine={**config()["engine"], "backend": "ray", **engine})
    state = State(identity(whole), pairing(whole), seed, f"seed{seed}", overrides, (), seed, 2)
    return QueuedJob(state, whole, overrides)


def test_jobs_run_in_one_process_each_where_that_fills_the_machine() -> None:
    two = Limits(cpus=2)
    assert [t.ray for t in in_one_process([task(0), task(1)], two)] == [False, False]
    assert [t.ray for t in in_one_process([task(0)], two)] == [True]
    assert [t.ray for t in in_one_process([task(0, ("engine.actors=2",)), task(1, ("engine=ray",))], two)] == [True] * 2
    assert [t.ray for t in in_one_process([task(0, address="a:1"), task(1, ("engine.threads=1",))], two)] == [
        True,
        False,
    ]
    assert (task(actors=3).cpus, task(backend="serial", threads=4).cpus) == (3, 4)


# Search


def searching(settings: Search, texts: Sequence[str], loss: Callable[[dict[str, str], int], float]) -> Any:
    """A search over jobs that are not run but looked up: (values, rounds, seed) of each in order, and what it found."""
    ran: list[dict[str, str]] = []

    def look_up(jobs: Sequence[SweepJob]) -> list[State]:
        found = []
        for job in jobs:
            values = dict(text.split("=") for text in job.overrides)
            ran.append(values)
            rounds = int(values.get("rounds", 9))
            got = loss(values, rounds)
            summary = {"status": "finished", "rounds": rounds, "eval/loss": {"last": got, "best": got}}
            status = "diverged" if math.isnan(got) else "finished"
            found.append(
                State(str(len(ran)), "", 0, f"f{len(ran)}", job.overrides, (), 0, rounds, status, summary=summary)
            )
        return found

    parsed = OverridesParser.create().parse_overrides(list(texts))
    return ran, search(settings, params_of(parsed), {"algorithm": "fedavg"}, 9, look_up)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_finds_a_minimum_and_repeats_itself(sampler: Any) -> None:
    settings = Search(sampler=sampler, trials=40, batch=4)
    texts = ["algorithm.lr=tag(log,interval(0.001,1))", "seed=0,1"]

    def bowl(values: dict[str, str], rounds: int) -> float:
        return math.nan if float(values["algorithm.lr"]) > 0.5 else math.log(float(values["algorithm.lr"]) / 0.05) ** 2

    ran, states = searching(settings, texts, bowl)
    assert len(ran) == len(states) == 80
    assert [values["seed"] for values in ran] == ["0", "1"] * 40
    best = min(ran, key=lambda values: bowl(values, 9) if float(values["algorithm.lr"]) < 0.5 else 99)
    assert 0.03 < float(best["algorithm.lr"]) < 0.08
    assert searching(settings, texts, bowl)[0] == ran


def test_tpe_learns() -> None:
    texts = ["algorithm.lr=tag(log,interval(0.0001,1))"]
    ran, _ = searching(
        Search(sampler="tpe", trials=40, batch=4), texts, lambda v, r: abs(math.log10(float(v["algorithm.lr"])) + 2)
    )
    distances = [abs(math.log10(float(values["algorithm.lr"])) + 2) for values in ran]
    assert np.mean(distances[20:]) < 0.7  # drawn without learning: 1, with a deviation of 0.13


def test_successive_halving() -> None:
    texts = ["algorithm.lr=interval(0,1)", "seed=0,1"]
    ran, states = searching(
        Search(sampler="random", trials=9, batch=9, first=1), texts, lambda v, r: float(v["algorithm.lr"])
    )
    rungs = [[v for v in ran if v.get("rounds") == r] for r in ("1", "3", None)]
    assert [len(rung) for rung in rungs] == [18, 6, 2]
    ordered = sorted({float(v["algorithm.lr"]) for v in rungs[0]})
    assert {float(v["algorithm.lr"]) for v in rungs[1]} == set(ordered[:3])
    assert {float(v["algorithm.lr"]) for v in rungs[2]} == {ordered[0]}
    assert [state.overrides[0] for state in states] == [f"algorithm.lr={ordered[0]:.4g}"] * 2


def test_a_search_asks_conditional_keys_where_they_are() -> None:
    texts = ["algorithm=fedavg,fedprox", "algorithm.mu@fedprox=interval(0,1)", "algorithm.momentum=int(interval(1,9))"]
    ran, _ = searching(Search(sampler="random", trials=20), texts, lambda v, r: 1.0)
    assert all(("algorithm.mu" in v) == (v["algorithm"] == "fedprox") for v in ran)
    assert {v["algorithm"] for v in ran} == {"fedavg", "fedprox"}
    assert all(v["algorithm.momentum"] in "123456789" for v in ran)


def test_rungs() -> None:
    assert Search().rungs(100) == [100]
    assert Search(first=5, factor=4).rungs(100) == [5, 20, 80, 100]
    assert Search(first=100).rungs(100) == [100]


def test_scores_are_read_from_summaries() -> None:
    summary = {"rounds": 3, "eval/loss": {"last": 1.0}, "eval/accuracy": {"last": 0.5}}
    assert last_score(summary) == ("eval/accuracy", 0.5)
    assert last_score(summary, "eval/loss") == ("eval/loss", 1.0)
    assert math.isnan(last_score(summary, "eval/mse")[1])


# The command line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sweep=nosuch"], ["unknown option sweep=nosuch", "fedprox_mu"]),
        (["-m", "sweep.retyr=true"], ["unknown key sweep.retyr", "did you mean sweep.retry=true?"]),
        (["-m", "algorithm.lr=interval(0.1,1)"], ["algorithm.lr must be values", "sweep.search.sampler=tpe"]),
        (["-m", "algorithm.mu@fedprx=1,2"], ["algorithm.mu@fedprx must be for an option of algorithm", "fedprox"]),
        (["-m", "algorithm=fedavg,fedprox", "algorithm.mu=1"], ["unknown key algorithm.mu", "algorithm.mu@OPTION="]),
        (["-m", "seed=0,1", "sweep.search.trials=a"], ["sweep.search.trials must be an int, got 'a'"]),
        (["-m", "seed=0,1", "hydra.launcher.jobs=0"], ["hydra.launcher.jobs must be >= 1, got 0"]),
        (["-m", "algorithm=fedavg,fedprox", "algorithm.mu@fedprox=-1,2"], ["algorithm.mu must be", "got -1"]),
    ],
    ids=lambda part: "_".join(part) if "=" in part[0] or part[0].startswith("-") else None,
)
def test_one_clear_line_for_each_mistake(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str], tmp_path: Path
) -> None:
    assert main(*argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [word for word in words if word not in line] == []
    assert list(tmp_path.rglob("metrics.jsonl")) == []


def test_a_sweep_side_by_side_is_the_runs_one_by_one(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sweep = ("-m", *SMALL, "algorithm=fedavg,fedprox", "algorithm.mu@fedprox=0.1,1", "seed=3")
    assert main(*sweep) == 0
    (folder,) = (tmp_path / "multirun").iterdir()
    shown = capsys.readouterr().out
    assert "tensorboard --logdir multirun/" in shown
    assert "fedsim-report multirun/" in shown
    found = digests(folder)
    assert list(found) == ["algorithm=fedavg", *(f"algorithm=fedprox algorithm.mu={mu}" for mu in (0.1, 1))]
    one = states(folder)["algorithm=fedprox algorithm.mu=1"]
    assert main(*one.overrides, "hydra.run.dir=alone") == 0
    assert json.loads((tmp_path / "alone" / "summary.json").read_text())["digest"] == found[one.name]
    command = json.loads((folder / one.folder / "provenance.json").read_text())["command"]
    assert command == ["fedsim", *one.overrides]
    assert not (folder / one.folder / "output.log").exists()

    before = files(folder)
    capsys.readouterr()
    assert main(*sweep) == 0  # the same command finds its sweep and has nothing to do
    assert "3 of 3 jobs are done" in capsys.readouterr().out
    assert files(folder) == before
    assert main(*sweep[:-1], "seed=3,4", f"hydra.sweep.dir={folder}", "hydra/launcher=basic") == 0  # a sweep grows
    assert {name: digest for name, digest in digests(folder).items() if name in found} == found
    assert files(folder).items() >= before.items()
    assert [state.seed for state in SweepFolder(folder).states()] == [3, 3, 3, 4, 4, 4]


FRAGILE = """
import os, signal
from dataclasses import dataclass
from pathlib import Path
from fedsim.algorithms.fedavg import FedAvg

@dataclass(frozen=True)
class Fragile(FedAvg):
    what: str = "none"

    def server(self, server, received, rnd):
        if rnd.index == 1 and len(rnd.clients) > 1 and Path(self.what).exists():  # at work, not rehearsed
            how = Path(self.what).read_text()
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "raise":
                raise RuntimeError("fragile")
        return super().server(server, received, rnd)
"""


def test_a_job_that_dies_loses_nothing_of_the_others_and_goes_on(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "fragile.py").write_text(FRAGILE)
    (tmp_path / "a").write_text("kill")
    (tmp_path / "b").write_text("raise")
    sweep = ("-m", *SMALL, "rounds=3", "checkpoint.seconds=0", "algorithm._target_=fragile.Fragile")
    sweep += ("algorithm.lr=0.1", "algorithm.what=a,b,c", "hydra.sweep.dir=out", "hydra.launcher.jobs=1")
    assert main(*sweep) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "fragile" in err
    found = {state.varied[0][-1]: state for state in SweepFolder(tmp_path / "out").states()}
    assert {name: state.status for name, state in found.items()} == {"a": "failed", "b": "failed", "c": "finished"}
    assert "SIGKILL" in found["a"].message
    assert "Traceback" in (tmp_path / "out" / found["b"].folder / "output.log").read_text()
    done = files(tmp_path / "out")

    (tmp_path / "a").unlink()
    (tmp_path / "b").unlink()
    assert main(*sweep) == 1  # what has failed is not run again unless asked for
    assert "sweep.retry=true" in capsys.readouterr().out
    assert main(*sweep, "sweep.retry=true") == 0
    ended = {state.varied[0][-1]: state for state in SweepFolder(tmp_path / "out").states()}
    assert {name: state.attempts for name, state in ended.items()} == {"a": 4, "b": 2, "c": 1}
    assert len(set(digests(tmp_path / "out").values())) == 1  # of the same mathematics
    assert files(tmp_path / "out").items() >= done.items()
    for state in ended.values():
        lines = (tmp_path / "out" / state.folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["round"] for line in lines] == [0, 1, 2, 3]


def test_methods_of_one_seed_are_paired(main: Callable[..., int], tmp_path: Path) -> None:
    """Who holds what, who is asked, where they begin and which examples they see are the same, whatever the method."""
    first = ("-m", *SMALL, "schedule=uniform", "schedule.cohort=2", "partition=iid", "partition.clients=4", "rounds=1")
    drawn = ("local.steps=1", "local.batch_size=3", "aggregate.weights=uniform", "logger.trajectory=true")
    assert main(*first, *drawn, "hydra.sweep.dir=out", "algorithm=fedavg,scaffold", "seed=0,1") == 0
    found = SweepFolder(tmp_path / "out").states()
    assert len({state.pairing for state in found}) == 1
    splits, steps = [], []
    for seed in (0, 1):
        runs = [tmp_path / "out" / state.folder for state in found if state.seed == seed]
        facts = [json.loads((folder / "provenance.json").read_text()) for folder in runs]
        assert len(runs) == len(facts) == 2
        assert facts[0]["partition"]["digest"] == facts[1]["partition"]["digest"]
        a, b = (np.load(folder / "trajectory.npz")["x"] for folder in runs)
        assert np.array_equal(a[0], b[0])
        # The first step of both methods is that of SGD: equal models after it mean equal cohorts and equal batches, but
        # for the rounding of float32.
        assert np.abs(a[1] - b[1]).max() < 1e-6
        splits.append(facts[0]["partition"]["digest"])
        steps.append(a[1] - a[0])
    assert splits[0] != splits[1]
    assert np.abs(steps[0] - steps[1]).max() > 1e-3, "other cohorts and batches make other steps"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}


def rounds_done(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.read_bytes().count(b"\n") - 1 for path in folder.glob("*/metrics.jsonl")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [("algorithm=fedavg,fedprox",), ("algorithm=scaffold", "channel=[econtrol,topk]", "algorithm.lr=0.05,0.1")],
    ids=["two_methods", "stateful_compressed"],
)
def test_a_sweep_killed_again_and_again_ends_as_if_nothing_had_happened(
    tmp_path: Path, method: tuple[str, ...]
) -> None:
    sweep = [sys.executable, "-m", "fedsim", "-m", *method, "seed=0,1", "rounds=12", "checkpoint.seconds=0"]
    quiet = {"cwd": tmp_path, "env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*sweep, "hydra.sweep.dir=whole"], check=True, timeout=300, **quiet)
    killed, finished = [], {}
    for wanted in (3, 17, 29):  # rounds of all jobs together
        process = subprocess.Popen([*sweep, "hydra.sweep.dir=out"], start_new_session=True, **quiet)
        while sum(rounds_done(tmp_path / "out").values()) < wanted and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)  # its workers notice by themselves
        assert process.wait() == -signal.SIGKILL
        killed.append(rounds_done(tmp_path / "out"))
        assert files(tmp_path / "out").items() >= finished.items()
        finished = files(tmp_path / "out")
    assert len({tuple(sorted(rounds.items())) for rounds in killed}) == 3, "the kills fell in different rounds"
    assert finished, "the last kills came after a job had finished"
    subprocess.run([*sweep, "hydra.sweep.dir=out"], check=True, timeout=300, **quiet)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert files(tmp_path / "out").items() >= finished.items()
    for path in (tmp_path / "out").glob("*/metrics.jsonl"):
        assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == list(range(13))


@pytest.mark.slow
def test_jobs_with_actors_share_one_ray_without_deadlock(tmp_path: Path) -> None:
    sweep = [sys.executable, "-m", "fedsim", "-m", "partition.clients=4", "schedule=all", "rounds=2", "seed=0,1,2"]
    run = {"cwd": tmp_path, "env": environment(), "check": True, "timeout": 300}
    limits = ("hydra.launcher.cpus=2", "engine=ray", "engine.actors=2")
    subprocess.run([*sweep, *limits, "hydra.sweep.dir=ray"], **run)
    subprocess.run([*sweep, "engine=serial", "hydra.sweep.dir=serial"], **run)
    assert digests(tmp_path / "ray") == digests(tmp_path / "serial")


@pytest.mark.slow
def test_ctrl_c_saves_what_the_jobs_have(tmp_path: Path) -> None:
    sweep = [sys.executable, "-m", "fedsim", "-m", *DIGITS, "rounds=60", "seed=0,1,2", "hydra.sweep.dir=out"]
    process = subprocess.Popen(sweep, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    while sum(rounds_done(tmp_path / "out").values()) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
    got = sorted(state.status for state in SweepFolder(tmp_path / "out").states())
    assert set(got) <= {"interrupted", "pending", "finished"}
    assert "interrupted" in got
    subprocess.run(sweep, cwd=tmp_path, env=environment(), check=True, timeout=120)
    assert {state.status for state in SweepFolder(tmp_path / "out").states()} == {"finished"}
