"""Sweeps on machines that fail: disks, killed jobs, stopped searches. What is done stays; the same command goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.record.run_folder import RunFolder
from fedsim.sweep import side_by_side, state
from fedsim.sweep.state import State, SweepFolder
from tests.test_folders import Broken, _no_pictures  # noqa: F401 - a fixture
from tests.test_sweep import digests, environment, files, main  # noqa: F401 - a fixture

Command = Callable[..., int]
TINY = ("-m", "engine=serial", "data=quadratic", "schedule=all", "rounds=3", "checkpoint.seconds=0")
SWEEP = (*TINY, "seed=0,1,2", "hydra.sweep.dir=out", "hydra.launcher.jobs=1")
UNDISTURBED: dict[tuple[str, ...], dict[str, str]] = {}


def found(folder: Path = Path("out")) -> dict[str, State]:
    return {one.name: one for one in SweepFolder(folder).states()}


def whole(main: Command, command: tuple[str, ...]) -> dict[str, str]:  # noqa: F811
    """The digests of a sweep that nothing disturbs, which is run once."""
    if command not in UNDISTURBED:
        assert main(*command) == 0
        UNDISTURBED[command] = digests(Path("out"))
        shutil.rmtree("out")
    return UNDISTURBED[command]


def assert_whole(main: Command, command: tuple[str, ...]) -> None:  # noqa: F811
    """The command, given again, ends as the undisturbed sweep, and what had finished is not touched."""
    done = files(Path("out")) if Path("out", "jobs").exists() else {}
    assert main(*command) == 0
    assert files(Path("out")).items() >= done.items()
    assert digests(Path("out")) == whole_of(command)
    for path in Path("out").glob("*/metrics.jsonl"):
        assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]
    assert [path.name for path in Path("out").rglob(".*.tmp")] == []


def whole_of(command: tuple[str, ...]) -> dict[str, str]:
    return UNDISTURBED[command]


# Disks that fail


Fail = Callable[..., Any]
HERE = os.getpid()


def published(name: Callable[[Path], bool]) -> Callable[[Fail, pytest.MonkeyPatch], None]:
    """A file that cannot be given its name."""

    def break_(fail: Fail, patch: pytest.MonkeyPatch) -> None:
        replace = os.replace
        patch.setattr(os, "replace", lambda a, b: fail() if name(Path(b)) else replace(a, b))

    return break_


def in_a_job(path: Path) -> bool:
    return os.getpid() != HERE


def is_state(path: Path) -> bool:
    return path.parent.name == "jobs"


def ended_state(fail: Fail, patch: pytest.MonkeyPatch) -> None:
    """The state of a job that has come to its end."""
    write = SweepFolder.write
    patch.setattr(SweepFolder, "write", lambda self, one: fail() if one.status == "finished" else write(self, one))


def output(fail: Fail, patch: pytest.MonkeyPatch) -> None:
    """The file of what a job prints."""
    opened = os.open
    patch.setattr(os, "open", lambda path, *how: fail() if str(path).endswith("output.log") else opened(path, *how))


def metrics(fail: Fail, patch: pytest.MonkeyPatch) -> None:
    """The second round of the second job."""
    write = RunFolder.write

    def then(self: RunFolder, record: Any) -> None:
        if record["round"] == 2 and self.path.name == "seed1":
            self._metrics = Broken(self._metrics, fail)
        write(self, record)

    patch.setattr(RunFolder, "write", then)


def beginning(fail: Fail, patch: pytest.MonkeyPatch) -> None:
    """The first file of a job's run."""
    opened = Path.open
    patch.setattr(
        Path,
        "open",
        lambda path, *how, **more: (fail if how[:1] == ("xb",) and path.name == "metrics.jsonl" else opened)(
            path, *how, **more
        ),
    )


def read_state(fail: Fail, patch: pytest.MonkeyPatch) -> None:
    """What the sweep reads of a job that has finished."""
    read = state._read

    def then(path: Path) -> State:
        one = read(path)
        return fail() if one.status == "finished" and os.getpid() == HERE else one  # type: ignore[no-any-return]

    patch.setattr(state, "_read", then)


def no_process(fail: Fail, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "fork", fail)


PLACES: dict[str, tuple[Callable[[Fail, pytest.MonkeyPatch], None], tuple[str, ...]]] = {
    "sweep.json": (published(lambda path: path.name == "sweep.json"), ("ENOSPC", "EROFS")),
    "the list of jobs": (published(lambda path: is_state(path) and not in_a_job(path)), ("EIO", "EMFILE")),
    "a job's state": (published(lambda path: is_state(path) and in_a_job(path)), ("EDQUOT", "EIO")),
    "a job's end": (ended_state, ("ENOSPC", "EROFS")),
    "a job's output": (output, ("EMFILE", "EROFS")),
    "a job's beginning": (beginning, ("EROFS", "ENOSPC")),
    "a job's metrics": (metrics, ("ENOSPC", "EFBIG", "EIO")),
    "a job's summary": (published(lambda path: path.name == "summary.json"), ("EIO", "ENOSPC")),
    "what a job left": (read_state, ("EIO", "EMFILE")),
    "a process": (no_process, ("EMFILE", "EAGAIN", "ENOMEM")),
}
CASES = [
    pytest.param(place, name, marks=() if i == 0 else pytest.mark.slow)
    for place, (_, names) in PLACES.items()
    for i, name in enumerate(names)
]


@pytest.mark.parametrize(("place", "name"), CASES)
def test_a_disk_that_fails_stops_a_sweep_with_one_line_and_nothing_lost(
    main: Command,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    place: str,
    name: str,
) -> None:
    break_, _ = PLACES[place]
    number = getattr(errno, name)

    def fail(*args: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    whole(main, SWEEP)
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        break_(fail, patch)
        assert main(*SWEEP) == 1
    err = capsys.readouterr().err
    where = Path("out").absolute()
    assert err.endswith(f"the sweep in {where} stopped; what it wrote is kept: fedsim {' '.join(SWEEP)}\n")
    (line,) = [line for line in err.splitlines() if not line.startswith("warning: no checkpoint")]
    assert os.strerror(number) in line
    assert "None" not in line
    assert not any("Traceback" in path.read_text() for path in where.rglob("output.log"))
    assert {one.status for one in found().values()} <= {"pending", "running", "interrupted", "finished"}
    assert_whole(main, SWEEP)


@pytest.mark.parametrize("name", ["ENOSPC", "EROFS", "EIO", "EACCES"])
def test_a_sweep_whose_folder_cannot_be_made_is_one_line(
    main: Command,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    number, mkdir = getattr(errno, name), os.mkdir

    def fail(path: Any, *how: Any) -> None:
        if Path(path).name == "out":
            raise OSError(number, os.strerror(number), path)
        mkdir(path, *how)

    monkeypatch.setattr(os, "mkdir", fail)
    assert main(*SWEEP) == 2
    (line,) = capsys.readouterr().err.splitlines()
    must = f"the sweep's folder must be writable, got {Path('out').absolute()}: {os.strerror(number)}"
    assert line == f"error: {must}; choose another with hydra.sweep.dir=FOLDER"


def test_jobs_one_after_the_other_stop_too(
    main: Command,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = tuple("hydra/launcher=basic" if "launcher" in text else text for text in SWEEP)

    def fail(*args: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole(main, sweep)
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        metrics(fail, patch)
        assert main(*sweep) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {os.strerror(errno.ENOSPC)}, the sweep in {Path('out').absolute()} stopped")
    assert line.endswith(f"fedsim {' '.join(sweep)}")
    assert_whole(main, sweep)


NAMESPACE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]


@pytest.fixture
def tmpfs() -> None:
    made = [*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(made, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")


@pytest.mark.slow
@pytest.mark.parametrize("kib", [4, 40, 100])
def test_a_full_file_system(main: Command, tmp_path: Path, tmpfs: None, kib: int) -> None:  # noqa: F811
    """A sweep in a file system of so many kB, and again after it has grown; the whole takes about 150 kB."""
    sweep = ["-m", "fedsim", *SWEEP]
    script = f"""
        mount -t tmpfs -o size={kib}k none full && cd full
        "$@"; echo $? > ../code; rm -rf ../before; cp -r out ../before
        mount -o remount,size=100m . && "$@" 2> ../err; echo $? > ../code2; cp -r out ../after
    """
    (tmp_path / "full").mkdir()
    run = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True, "timeout": 300}
    got = subprocess.run([*NAMESPACE, "sh", "-c", script, "sh", sys.executable, *sweep], check=False, **run)
    code = int((tmp_path / "code").read_text())
    assert code in (1, 2), got.stderr
    (line,) = [line for line in got.stderr.splitlines() if not line.startswith(("warning: no checkpoint", "cp:"))]
    assert os.strerror(errno.ENOSPC) in line
    assert str(tmp_path / "full" / "out") in line
    assert "None" not in line
    assert code == 2 or line.endswith(f"stopped; what it wrote is kept: fedsim {' '.join(SWEEP)}")
    assert ((tmp_path / "code2").read_text(), (tmp_path / "err").read_text()) == ("0\n", "")
    assert digests(tmp_path / "after") == whole(main, SWEEP)


# Jobs that die


BRITTLE = """
import os, signal
from dataclasses import dataclass
from pathlib import Path
from fedsim.algorithms.fedavg import FedAvg

@dataclass(frozen=True)
class Brittle(FedAvg):
    what: str = "none"  # a file; a word in each line: what happens when the job is at its second round for that time

    def server(self, server, received, rnd):
        if rnd.index == 1 and len(rnd.clients) > 1 and Path(self.what).exists():  # at work, not rehearsed
            word, *rest = Path(self.what).read_text().split() or [""]
            Path(self.what).write_text(" ".join(rest))
            if word in ("KILL", "SEGV", "TERM"):
                os.kill(os.getpid(), getattr(signal, f"SIG{word}"))
            if word == "stop":
                os.kill(os.getppid(), signal.SIGINT)
                signal.pause()
            if word == "exit":
                os._exit(3)
        return super().server(server, received, rnd)
"""
DYING = (*TINY, "algorithm._target_=brittle.Brittle", "algorithm.what=a,b,c", "hydra.sweep.dir=out")


def brittle(*plan: str) -> None:
    """What happens to jobs a, b, ...; each time that one comes to its second round, one word."""
    Path("brittle.py").write_text(BRITTLE)
    for name, words in zip("abc", plan, strict=False):
        Path(name).write_text(words)


def test_a_killed_job_is_run_again_and_in_the_end_given_up(
    main: Command,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = (*DYING, "algorithm.lr=0.1")
    brittle("KILL", "KILL " * 3)
    assert main(*sweep) == 1
    lines = capsys.readouterr().err.splitlines()
    why = "its process was ended by SIGKILL"
    assert sorted(lines) == sorted(
        [
            f"warning: ++algorithm.what=a: {why}; it is run again after the others (1 of 2)",
            f"warning: ++algorithm.what=b: {why}; it is run again after the others (1 of 2)",
            f"warning: ++algorithm.what=b: {why}; it is run again after the others (2 of 2)",
            f"error: ++algorithm.what=b: {why}, 3 times; if memory was short, a smaller engine.block takes less",
        ]
    )
    assert {name[-1]: (one.status, one.attempts) for name, one in found().items()} == {
        "a": ("finished", 2),
        "b": ("failed", 3),
        "c": ("finished", 1),
    }
    assert why in found()["++algorithm.what=b"].message
    done = files(Path("out"))
    assert main(*sweep) == 1  # nothing is left to do but what has failed
    assert files(Path("out")) == done
    assert found()["++algorithm.what=b"].attempts == 3
    assert "sweep.retry=true" in capsys.readouterr().out
    assert main(*sweep, "sweep.retry=true") == 0
    assert files(Path("out")).items() >= done.items()
    assert len(set(digests(Path("out")).values())) == 1, "of the same mathematics"
    lines = {path.parent.name: path.read_text().count("\n") for path in Path("out").glob("*/metrics.jsonl")}
    assert lines == {"what_a": 4, "what_b": 4, "what_c": 4}


@pytest.mark.slow
@pytest.mark.parametrize(("word", "why"), [("exit", "exited (3)"), ("SEGV", "ended by SIGSEGV")])
def test_jobs_end_in_other_ways(
    main: Command,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
    word: str,
    why: str,
) -> None:
    brittle(word)
    assert main(*DYING, "algorithm.lr=0.1", "hydra.launcher.retries=0") == 1
    assert {name[-1]: one.status for name, one in found().items()} == {"a": "failed", "b": "finished", "c": "finished"}
    assert found()["++algorithm.what=a"].message == f"its process {'was ' * (word == 'SEGV')}{why}"


def test_a_worker_that_is_killed_while_it_waits_costs_nothing(
    main: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole(main, SWEEP)
    start = side_by_side._Pool.start

    def then(self: Any, task: Any) -> None:
        for worker in self.idle:
            os.kill(worker._process.pid, signal.SIGKILL)
            worker._process.join()
        start(self, task)

    monkeypatch.setattr(side_by_side._Pool, "start", then)
    assert main(*SWEEP) == 0
    assert digests(Path("out")) == whole_of(SWEEP)


def test_jobs_that_diverge_stop_nobody(
    main: Command,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = (*TINY, "algorithm.lr=0.1,1.5e30,0.2", "hydra.sweep.dir=out")
    assert main(*sweep) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: algorithm.lr=1.5e+30: the run diverged: ")
    assert [one.status for one in found().values()] == ["finished", "diverged", "finished"]
    assert found()["algorithm.lr=1.5e+30"].message in line
    before = {
        path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file() and path.name != "sweep.json"
    }
    assert main(*sweep, "sweep.retry=true") == 1  # it would diverge again
    assert {path: path.read_bytes() for path in before} == before


# Searches


SEARCH = (
    *(*TINY, "hydra.sweep.dir=out", "algorithm.lr=tag(log,interval(0.001,1e12))", "hydra.launcher.jobs=1"),
    *("sweep.search.sampler=tpe", "sweep.search.trials=6", "sweep.search.batch=2"),
)
"""Six trials, two drawn, four learned; some of them diverge."""
TRIALS: dict[tuple[str, ...], list[tuple[str, str, str, int]]] = {}


def trials(folder: Path = Path("out")) -> list[tuple[str, str, str, int]]:
    """Every job of a search: its name, how it ended, in which bits, after how many rounds."""
    return [
        (one.name, one.status, (one.summary or {}).get("digest", ""), one.rounds)
        for one in SweepFolder(folder).states()
    ]


def undisturbed_search(main: Command, *more: str) -> list[tuple[str, str, str, int]]:  # noqa: F811
    if more not in TRIALS:
        main(*SEARCH, *more)
        TRIALS[more] = trials()
        shutil.rmtree("out")
        assert {status for _, status, _, _ in TRIALS[more]} == {"finished", "diverged"}
    return TRIALS[more]


BRITTLE_SEARCH = ("algorithm._target_=brittle.Brittle", "algorithm.what=a")


@pytest.mark.parametrize("word", ["stop", *(pytest.param(word, marks=pytest.mark.slow) for word in ("TERM", "KILL"))])
def test_a_search_that_is_stopped_and_continued_has_the_trials_of_the_undisturbed_one(
    main: Command,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    word: str,
) -> None:
    """Ctrl-C, a job that somebody terminates, a job that is killed."""
    brittle()
    want = undisturbed_search(main, *BRITTLE_SEARCH)
    Path("a").write_text(f"none {word}")  # in the second trial
    code = main(*SEARCH, *BRITTLE_SEARCH)
    assert code == (130 if word == "stop" else 1)
    assert Path("a").read_text() == ""
    if word != "KILL":
        assert [status for _, status, _, _ in trials()].count("interrupted") == 1
        assert len(trials()) == 2, "nothing is proposed before what is missing is known"
        assert main(*SEARCH, *BRITTLE_SEARCH) == 1  # for those that diverge
    assert trials() == want
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("halving", [(), ("sweep.search.first=1", "sweep.search.factor=2")], ids=["whole", "halving"])
def test_a_search_killed_again_and_again_has_the_trials_of_the_undisturbed_one(
    main: Command,  # noqa: F811
    tmp_path: Path,
    halving: tuple[str, ...],
) -> None:
    command = [sys.executable, "-m", "fedsim", *SEARCH, *halving]
    quiet = {"cwd": tmp_path, "env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    want = undisturbed_search(main, *halving)
    stood = []
    for begun in (1, 3, 5):  # jobs before the last
        process = subprocess.Popen(command, start_new_session=True, **quiet)
        while process.poll() is None and sum(status != "pending" for _, status, _, _ in now_()) <= begun:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        stood.append(now_())
    assert len({len([one for one in each if one[2]]) for each in stood}) > 1, "the kills fell at different times"
    assert subprocess.run(command, check=False, timeout=300, **quiet).returncode == 1  # for those that diverge
    assert trials() == want


def now_() -> list[tuple[str, str, str, int]]:
    return trials() if Path("out", "jobs").exists() else []
