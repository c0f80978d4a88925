"""A run that was stopped, anyhow and anywhere, goes on to what it would have come to, and its files do not tell."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imsave
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from fedsim import Result, simulate
from fedsim.assembly.configuration import build_run
from fedsim.errors import InputError, Interrupted
from fedsim.ground.tree import leaves
from fedsim.record.checkpoint import Checkpointing
from fedsim.record.run_folder import RunFolder
from fedsim.runs.run import Run
from fedsim.runs.store import Store
from tests.started import assert_gone, completed, kill, members, started, wait_for
from tests.stopped import Stopped, signalled
from tests.test_cli import composed, main  # noqa: F401 - a fixture

SMALL = (
    "engine=serial",
    "partition.clients=6",
    "model.hidden=[8]",
    "rounds=7",
    "local.steps=2",
    "checkpoint.seconds=0",
)
PEERS = ("schedule=all", "topology=ring", "channel=[topk]", "channel.topk.ratio=0.1")
CASES = {
    "fedavg": ("algorithm=fedavg",),
    "scaffold": ("algorithm=scaffold", "evaluate.every=3"),
    "compressed": ("algorithm=sgd", "channel=[econtrol,topk]", "channel.topk.ratio=0.1"),
    "momentum": ("algorithm=fedavgm", "evaluate.clients=true"),
    "private": (
        "algorithm=diff2",
        "privacy=own",
        "privacy.noise_multiplier=2",
        "privacy.delta=1e-3",
        "privacy.kind=rdp",
        "schedule=all",
    ),
    "dfedsam": ("algorithm=dfedsam", "evaluate.clients=true", "schedule=all", "topology=ring"),
    "choco": ("algorithm=choco_sgd", *PEERS),
}


@pytest.fixture(autouse=True)
def _no_stops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nor pictures, which would take most of the time: matplotlib saves a pixel instead."""
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: imsave(file, np.zeros((1, 1, 3))))
    yield
    Stopped.rounds.clear()


@cache
def configuration(*overrides: str) -> dict[str, Any]:
    return composed(*overrides)


def run(case: str, folder: Path | None, *overrides: str, **changes: Any) -> Result:
    """Seven rounds of a case, or what it had when it was stopped; four of six clients take part in each."""
    config = configuration(*SMALL, *CASES[case], *overrides)
    parts = build_run(config)
    cohort = 6 if "schedule=all" in CASES[case] else 4
    try:
        return simulate(**{**parts, "schedule": Stopped(cohort), "run_dir": folder, "config": config, **changes})
    except Interrupted as stop:
        return stop.result


def recorded(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without times, which no two runs share."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{tag: value for tag, value in line.items() if not tag.startswith("time/")} for line in lines]


def summary(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "summary.json").read_text())
    return {tag: value for tag, value in found.items() if not tag.startswith("time/")}


def assert_scalars_are_those_of_metrics(folder: Path) -> None:
    """TensorBoard's own reader finds every round once, in order, of every tag."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    lines = recorded(folder)
    for tag in {tag for line in lines for tag in line} - {"round"}:
        written = [(line["round"], np.float32(line[tag])) for line in lines if tag in line]
        assert [(event.step, np.float32(event.value)) for event in events.Scalars(tag)] == written
    assert len(events.Images("data/split")) == 1
    files = sorted((folder / "tensorboard").iterdir())
    tags = [v.tag for file in files for event in EventFileLoader(str(file)).Load() for v in event.summary.value]
    for once in ("_hparams_/session_start_info", "_hparams_/session_end_info", "custom_scalars__config__"):
        assert tags.count(once) == 1


def assert_same(one: Path, other: Path) -> None:
    assert recorded(other) == recorded(one)
    assert summary(other) == summary(one)
    assert_scalars_are_those_of_metrics(other)


def stored(result: Result) -> list[bytes]:
    """Bits of the clients' states and links."""
    return [np.asarray(leaf).tobytes() for i in range(6) for leaf in leaves(result.stores[0].read([i]))]


@pytest.mark.parametrize("case", CASES)
def test_stopped_twice_and_resumed_is_the_uninterrupted_run(case: str, tmp_path: Path) -> None:
    keep = case in ("fedavg", "choco")
    one, other = tmp_path / "one", tmp_path / "other"
    whole = run(case, one, trajectory=keep)
    assert whole.status == "finished"
    Stopped.rounds |= {2, 5}
    stops = [run(case, other, resume=bool(i), trajectory=keep) for i in range(2)]
    assert [(stop.status, stop.summary["rounds"], len(stop.metrics)) for stop in stops] == [
        ("interrupted", 2, 3),
        ("interrupted", 5, 6),
    ]
    resumed = run(case, other, resume=True, trajectory=keep)
    assert_same(one, other)
    assert stored(resumed) == stored(whole)
    assert bool(stored(whole)) == (case not in ("fedavg", "momentum", "private"))
    if keep:
        np.testing.assert_array_equal(resumed.trajectory, whole.trajectory)
    assert [entry["after_round"] for entry in json.loads((other / "provenance.json").read_text())["resumed"]] == [2, 5]


def during_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Store.commit
    times: list[Store] = []

    def interrupted(self: Store) -> None:
        times.append(self)
        if len(times) == 3:
            signal.raise_signal(signal.SIGINT)
        commit(self)

    monkeypatch.setattr(Store, "commit", interrupted)


def during_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    append = RunFolder._append

    def interrupted(self: RunFolder, line: bytes) -> None:
        append(self, line)
        if b'"round": 3' in line:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunFolder, "_append", interrupted)


def during_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Run.evaluate
    times: list[int] = []

    def interrupted(self: Run) -> dict[str, float]:
        if self.done == 4 and len(times) < 2:  # the first resume is stopped there again
            times.append(4)
            signal.raise_signal(signal.SIGINT)
        return evaluate(self)

    monkeypatch.setattr(Run, "evaluate", interrupted)


@pytest.mark.parametrize("when", [during_the_commit, during_the_record, during_the_evaluation])
def test_ctrl_c_at_the_worst_moment_leaves_records_digest_and_checkpoint_of_one_round(
    when: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("compressed", tmp_path / "one")
    when(monkeypatch)
    other = tmp_path / "other"
    stopped = run("compressed", other)
    for _ in range(2):
        if stopped.status == "finished":
            break
        done = stopped.summary["rounds"]
        assert stopped.status == "interrupted"
        assert [line["round"] for line in recorded(other)] == list(range(done + 1))
        fewer = run("compressed", None, f"rounds={done}")
        assert stopped.summary["digest"] == fewer.summary["digest"]
        stopped = run("compressed", other, resume=True)
    assert done >= 1
    if stopped.status != "finished":
        run("compressed", other, resume=True)
    assert_same(tmp_path / "one", other)


def killed(case: str, folder: Path, lines: int) -> int:
    """The rounds that a process had recorded when it got kill -9, which comes once it has written so many lines."""
    child = os.fork()
    if child == 0:
        try:
            run(case, folder, resume=folder.exists())
        finally:
            os._exit(1)  # it should not have come to its end
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended by itself"
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    return metrics.read_bytes().count(b"\n") - 1


@pytest.mark.parametrize("case", ["compressed", "choco"])
def test_kill_9_in_different_rounds(case: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    run(case, one)
    rounds = [killed(case, other, lines) for lines in (1, 3, 6)]
    assert sorted(set(rounds)) == rounds, "the kills fell in different rounds"
    assert rounds[-1] < 7
    run(case, other, resume=True)
    assert_same(one, other)


def test_a_longer_run_is_the_run_that_was_long_from_the_start(tmp_path: Path) -> None:
    run("scaffold", tmp_path / "one", "rounds=9", "evaluate.every=1")
    run("scaffold", tmp_path / "other", "rounds=4", "evaluate.every=1")
    run("scaffold", tmp_path / "other", "rounds=9", "evaluate.every=1", resume=True)
    assert recorded(tmp_path / "other") == recorded(tmp_path / "one")
    assert summary(tmp_path / "other") == summary(tmp_path / "one")
    with pytest.raises(InputError, match="rounds must be >= 9, which are done, got 8"):
        run("scaffold", tmp_path / "other", "rounds=8", "evaluate.every=1", resume=True)


def test_without_a_good_checkpoint_the_run_begins_anew_in_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fedavg", tmp_path / "one", resume=True)  # nothing there yet
    Stopped.rounds.add(3)
    run("fedavg", tmp_path / "other", checkpoint=Checkpointing(every=100))
    for file in (tmp_path / "other/checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    run("fedavg", tmp_path / "other", resume=True)
    assert capsys.readouterr().err.count("damaged") == 1
    assert_same(tmp_path / "one", tmp_path / "other")


def test_a_damaged_checkpoint_costs_one_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("scaffold", tmp_path / "one")
    Stopped.rounds.add(5)
    run("scaffold", tmp_path / "other")
    last = max((tmp_path / "other/checkpoints").iterdir())
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    run("scaffold", tmp_path / "other", resume=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert last.name in line
    assert_same(tmp_path / "one", tmp_path / "other")


def test_what_is_refused_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    Stopped.rounds.add(3)
    run("fedavg", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"algorithm\.lr was 0\.1, is 0\.2; .*config\.yaml"):
        run("fedavg", tmp_path, "algorithm.lr=0.2", resume=True)
    with pytest.raises(InputError, match="already holds a run"):
        run("fedavg", tmp_path)
    with pytest.raises(InputError, match="run_dir must be the folder of the run to resume"):
        run("fedavg", None, resume=True)
    with RunFolder.reopen(tmp_path, {}, {}, None) as other:
        assert other.records == ()
        with pytest.raises(InputError, match="must have ended, got one that is going on"):
            run("fedavg", tmp_path, resume=True)
    del before[tmp_path / "metrics.jsonl"]
    assert {path for path in before if "checkpoints" in path.parts} <= set(tmp_path.rglob("*"))


def test_a_round_that_metrics_lack_is_named(tmp_path: Path) -> None:
    Stopped.rounds.add(3)
    run("fedavg", tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join([lines[0], lines[2]]))
    with pytest.raises(InputError, match="must hold rounds 0 to 3, got a damaged line or none for round 1"):
        run("fedavg", tmp_path, resume=True)


def test_what_comes_after_the_checkpoint_is_forgotten(tmp_path: Path) -> None:
    """A kill between two checkpoints leaves more rounds in the files than the checkpoint has, and half a line."""
    run("fedavg", tmp_path / "one")
    Stopped.rounds.add(3)
    run("fedavg", tmp_path / "other")
    late = RunFolder.reopen(tmp_path / "other", {}, {"engine": {}}, 3)
    for done in (4, 5):
        late.write({"round": done, "eval/loss": -1.0})
    late.close()
    with (tmp_path / "other/metrics.jsonl").open("ab") as metrics:
        metrics.write(b'{"round": 6, "eval')
    config = (tmp_path / "one/config.yaml").read_text()
    run("fedavg", tmp_path / "other", resume=True)
    assert_same(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "other/config.yaml").read_text() == config


RAY = [*SMALL[1:], "rounds=60", *CASES["compressed"], "schedule.cohort=4", "engine.actors=2"]


@pytest.mark.slow
def test_ray_kill_9_and_sigterm_in_different_rounds(tmp_path: Path) -> None:
    """The driver is killed, resumed, told to stop, resumed serially; with the actors gone each time."""
    metrics, rounds = tmp_path / "other/metrics.jsonl", []
    with started(tmp_path, *RAY, "hydra.run.dir=other") as first:
        wait_for(metrics, 8, first)
        kill(first)
        assert_gone(first)
    rounds.append(metrics.read_bytes().count(b"\n"))
    with started(tmp_path, "resume=other", "engine.actors=3") as second:
        wait_for(metrics, rounds[0] + 5, second)
        assert len(members(second)) > 3
        second.terminate()
        assert second.wait() == 143
        assert members(second) == {}
    rounds.append(summary(tmp_path / "other")["rounds"])
    assert rounds[0] < rounds[1] < 60
    assert completed(tmp_path, "resume=other", "engine=serial") == 0
    assert completed(tmp_path, *RAY, "engine=serial", "hydra.run.dir=one") == 0
    assert_same(tmp_path / "one", tmp_path / "other")


LINE = [*SMALL, *CASES["scaffold"], "schedule.cohort=4"]


def test_the_command_line_goes_on_after_ctrl_c(
    main: Callable[..., int],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    with signalled(tmp_path / "other", signal.SIGINT):
        assert main(*LINE, "rounds=1000000", "hydra.run.dir=other") == 130
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"fedsim resume={tmp_path / 'other'}" in captured.out.replace("\n", "")
    stopped = summary(tmp_path / "other")
    assert stopped["status"] == "interrupted"
    rounds = stopped["rounds"] + 10
    assert main("resume=other", f"rounds={rounds}", "engine.actors=3", "checkpoint.every=2") == 0
    assert main(*LINE, f"rounds={rounds}", "hydra.run.dir=one") == 0
    assert_same(tmp_path / "one", tmp_path / "other")
    before = (tmp_path / "other/summary.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main("resume=other") == 0
    assert f"has finished its {rounds} rounds; add rounds=N for more" in capsys.readouterr().out
    assert (tmp_path / "other/summary.json").stat().st_mtime_ns == before
    assert main("resume=other", f"rounds={rounds + 2}") == 0
    assert summary(tmp_path / "other")["rounds"] == rounds + 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["resume=nowhere"], "resume must be the folder of a run, got {}/nowhere/config.yaml: No such file"),
        (["resume=."], "resume must be the folder of a run, got {}/config.yaml"),
        (["resume=a", "resume=b"], "resume must be the folder of one run, got ['a', 'b']"),
        (["resume=a", "algorithm.lr=1"], "beside resume=FOLDER there may be engine=NAME, "),
        (["resume=a", "-m"], "got -m"),
        (["resume=a", "engine._target_=x.Y"], "got engine._target_=x.Y"),
        (["resume=a", "+engine.x=1"], "got +engine.x=1"),
        (["resume=run", "engine=rayy"], "unknown option engine=rayy; did you mean engine=ray?"),
        (["resume=run", "engine.actor=1"], "unknown key engine.actor (got 1); did you mean engine.actors?"),
        (["resume=run", "rounds=x"], "rounds must be an int, got 'x'"),
    ],
)
def test_one_clear_line_for_each_mistake(
    main: Callable[..., int],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    argv: list[str],
    words: str,
) -> None:
    RunFolder.create(tmp_path / "run", composed(*LINE), {}).close()
    assert main(*argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words.format(tmp_path) in line
