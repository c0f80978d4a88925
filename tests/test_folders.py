"""What lies in and around a run's folder: foreign files stay as they are, damage costs a line at most, never a run."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.image import imsave
from safetensors import safe_open
from safetensors.numpy import save_file

from fedsim.ground.interrupts import heard_signals
from fedsim.record import checkpoint
from fedsim.record.checkpoint import Checkpointing, Checkpoints
from fedsim.record.run_folder import RunFolder
from fedsim.record.tensorboard import EventFile
from fedsim.report.__main__ import main as report
from tests.stopped import late_ctrl_c_ignored, signalled
from tests.test_cli import SMALL, environment, main  # noqa: F401 - a fixture
from tests.test_resume import recorded, summary

LINE = (*SMALL, "model.hidden=[4]", "local.steps=1", "checkpoint.seconds=0", "checkpoint.keep=3")
LAST = 6
"""The rounds of a whole run."""
Command = Callable[..., int]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor pages of a PDF; they would take most of the time: matplotlib saves a pixel instead."""
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: imsave(file, np.zeros((1, 1, 3))))
    monkeypatch.setattr(PdfPages, "savefig", lambda self, figure: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``whole``, a finished run, and ``stopped``, the same run stopped after four rounds; copy before use."""
    from fedsim.assembly.configuration import build_run
    from fedsim.errors import Interrupted
    from fedsim.simulation import simulate
    from tests.test_cli import composed
    from tests.test_resume import Stopped

    home = tmp_path_factory.mktemp("made")
    config = composed(*LINE, f"rounds={LAST}", "evaluate.every=1")
    parts = build_run(config) | {"config": config}
    simulate(**parts, run_dir=home / "whole")
    Stopped.rounds.add(4)
    with pytest.raises(Interrupted):
        simulate(**parts | {"schedule": Stopped(4)}, run_dir=home / "stopped")
    return home


# Foreign files


def sprinkle(folder: Path, outside: Path) -> None:
    """Everything that somebody else may have put into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (
        "notes.txt",
        ".bashrc",
        ".notes.77.tmp",
        ".tmpAbCdEf",
        "round-notes.safetensors",
        f"round-00000001-{'a' * 63}.safetensors",
        "events.out.tfevents.1700000000.host.7.0",
        "events.out.tfevents.odd",
        "odd.json",
    ):
        (folder / name).write_text(f"of somebody else, {name}")
    for hidden in (".ipynb_checkpoints", ".config.yaml.77.tmp", "below"):
        (folder / hidden).mkdir()
        (folder / hidden / "file").write_text("of somebody else")
    (folder / "link").symlink_to(outside / "file")
    (folder / ".summary.json.77.tmp").symlink_to(outside / "file")
    (folder / ".round-00000001.77.tmp").symlink_to(outside)
    (folder / "folder").symlink_to(outside)
    (folder / "dangling").symlink_to(outside / "nowhere")


def content(folder: Path) -> dict[str, str]:
    """What there is, links by what they name and files by their bytes."""
    found: dict[str, str] = {}
    for place, below, files in os.walk(folder):
        for name in (*below, *files):
            path = Path(place, name)
            kind = os.readlink(path) if path.is_symlink() else "folder"
            plain = path.is_file() and not path.is_symlink()
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if plain else kind
    return found


def test_nothing_foreign_changes(main: Command, tmp_path: Path) -> None:  # noqa: F811
    outside = tmp_path / "outside"
    (outside / "below").mkdir(parents=True)
    for name in ("file", "below/file", ".hidden"):
        (outside / name).write_text("outside")
    for folder in ("out", "out/checkpoints", "out/tensorboard", "out/report", "out/report/tensorboard"):
        sprinkle(tmp_path / folder, outside)
    for folder in ("sweep", "sweep/jobs", "sweep/lr0.1", "sweep/lr0.1/checkpoints"):
        sprinkle(tmp_path / folder, outside)
    before = content(tmp_path)
    assert len(before) > 100

    def unchanged(after: str) -> None:
        now = content(tmp_path)
        assert {name: now.get(name) for name in before} == before, after

    with late_ctrl_c_ignored(), signalled(tmp_path / "out", signal.SIGINT):
        assert main(*LINE, "rounds=5000", "evaluate.every=5000", "hydra.run.dir=out") == 130
    unchanged("a run that was stopped")
    done = int(summary(tmp_path / "out")["rounds"])
    (tmp_path / "out/checkpoints/.round-00000001.78.tmp").write_text("of a killed run")
    (tmp_path / "out/.config.yaml.78.tmp").write_text("of a killed run")
    assert main("resume=out", f"rounds={done + 2}") == 0
    assert not [name for name in content(tmp_path) if ".78.tmp" in name]
    unchanged("a run that was resumed")
    assert main("replay", "out", f"round={done + 1}", "client=0") == 0
    unchanged("a replay")
    assert report([str(tmp_path / "out")]) == 0
    assert report([str(tmp_path / "out")]) == 0
    unchanged("two reports")
    for file in (tmp_path / "out/checkpoints").glob("round-*-*.safetensors"):
        if str(file.relative_to(tmp_path)) not in before:
            file.write_bytes(b"damaged")
    (tmp_path / "out/summary.json").unlink()
    assert main("resume=out", f"rounds={done + 2}") == 0
    unchanged("a run that began anew")
    assert main("-m", *LINE, "algorithm.lr=0.1,0.2", "hydra.sweep.dir=sweep", "hydra/launcher=basic") == 0
    assert len(list((tmp_path / "sweep/jobs").glob("*.json"))) == 3  # two states and odd.json
    unchanged("a sweep")


def test_a_report_into_a_runs_folder_leaves_its_curves(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "whole", tmp_path / "run")
    before = content(tmp_path / "run/tensorboard")
    assert report([str(tmp_path / "run"), "--out", str(tmp_path / "run")]) == 0
    now = content(tmp_path / "run/tensorboard")
    assert {name: now.get(name) for name in before} == before
    assert len(now) == len(before) + 1


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "metrics.jsonl"])
@pytest.mark.parametrize("of", ["stopped", "new"])
def test_what_a_run_writes_into_is_no_link(
    main: Command,  # noqa: F811
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    of: str,
) -> None:
    shutil.copytree(made / "stopped", tmp_path / "other")
    run = tmp_path / "run"
    if of == "stopped":
        shutil.copytree(made / "stopped", run)
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    else:
        run.mkdir()
    (run / name).symlink_to(tmp_path / "other" / name)
    before = content(tmp_path / "other")
    assert main(*(["resume=run"] if of == "stopped" else [*LINE, "hydra.run.dir=run"])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"run/{name} must lie in the run's folder itself, got 'a link'" in line
    assert content(tmp_path / "other") == before


# Damage


def cut(path: Path, left: int = 20) -> None:
    path.write_bytes(path.read_bytes()[:left])


def link_to_nothing(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(path.parent / "nowhere")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("a file")


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """A JSON file with other content, which is JSON too."""
    return lambda run: (run / name).write_text(json.dumps(change(json.loads((run / name).read_text())))) and None


def of_file(name: str, damage: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda run: damage(run / name) and None


def config_without(key: str, text: str = "") -> Callable[[Path], None]:
    """config.yaml with another value of a key, or without it."""

    def damage(run: Path) -> None:
        import yaml

        config = yaml.safe_load((run / "config.yaml").read_text())
        del config[key]
        (run / "config.yaml").write_text(yaml.safe_dump(config | (yaml.safe_load(text) if text else {})))

    return damage


def metrics(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    """metrics.jsonl with other lines."""

    def damage(run: Path) -> None:
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(change(lines)))

    return damage


def newest(run: Path) -> Path:
    return max(path for path in (run / "checkpoints").iterdir() if path.name.startswith("round-"))


def forged(change: Callable[[dict[str, np.ndarray], dict[str, Any]], Any]) -> Callable[[Path], None]:
    """The newest checkpoint with other content, and the digest of that."""

    def damage(run: Path) -> None:
        path = newest(run)
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["fedsim"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        header = change(arrays, header) or header
        save_file(arrays, path, {"fedsim": header if isinstance(header, str) else json.dumps(header)})
        named(path)

    return damage


def named(path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(path.with_name(f"{path.name[:14]}-{digest}.safetensors"))


def garbage(run: Path) -> None:
    path = newest(run)
    path.write_bytes(b"garbage" * 100)
    named(path)


def odd_event_files(run: Path) -> None:
    for name in ("events.out.tfevents.", "events.out.tfevents.x", "events.out.tfevents.99999999999999999999.h.1.0"):
        (run / "tensorboard" / name).write_bytes(b"odd")
    (run / "tensorboard/events.out.tfevents.1700000000.a.folder").mkdir()


class Case(NamedTuple):
    damage: Callable[[Path], None]
    resumes: bool | None = True  # to the whole run's end; None: either way, by what the damage made of it
    about: str = ""  # a word of what is said, if anything must be
    late: bool = (
        False  # seen only when the run is put together, with its folder open: how it ended is forgotten by then
    )


DEEP = "[" * 100_000
CASES = {
    "no damage": Case(lambda run: None),
    "summary empty": Case(of_file("summary.json", lambda path: path.write_bytes(b""))),
    "summary cut": Case(of_file("summary.json", cut)),
    "summary binary": Case(of_file("summary.json", lambda path: path.write_bytes(bytes(range(256))))),
    "summary a list": Case(of_file("summary.json", lambda path: path.write_text("[1]"))),
    "summary without keys": Case(of_file("summary.json", lambda path: path.write_text("{}"))),
    "summary of other kinds": Case(changed("summary.json", lambda s: {key: [None] for key in s})),
    "summary deep": Case(of_file("summary.json", lambda path: path.write_text(DEEP))),
    "summary gone": Case(of_file("summary.json", Path.unlink)),
    "summary dangling": Case(of_file("summary.json", link_to_nothing)),
    "summary a folder": Case(of_file("summary.json", a_folder), resumes=False, about="summary.json"),
    "provenance gone": Case(of_file("provenance.json", Path.unlink), about="provenance.json"),
    "provenance cut": Case(of_file("provenance.json", cut), about="provenance.json"),
    "provenance a list": Case(of_file("provenance.json", lambda path: path.write_text("[1]")), about="provenance.json"),
    "provenance of other kinds": Case(changed("provenance.json", lambda p: dict.fromkeys(p, "x"))),
    "provenance dangling": Case(of_file("provenance.json", link_to_nothing), about="provenance.json"),
    "provenance deep": Case(of_file("provenance.json", lambda path: path.write_text(DEEP)), about="provenance.json"),
    "metrics gone": Case(of_file("metrics.jsonl", Path.unlink), resumes=False, about="metrics.jsonl"),
    "metrics empty": Case(metrics(lambda lines: []), resumes=False, about="metrics.jsonl"),
    "metrics dangling": Case(of_file("metrics.jsonl", link_to_nothing), resumes=False, about="metrics.jsonl"),
    "metrics a folder": Case(of_file("metrics.jsonl", a_folder), resumes=False, about="metrics.jsonl"),
    "metrics cut in the last line": Case(metrics(lambda lines: [*lines[:-1], lines[-1][:9]]), about="metrics.jsonl"),
    "metrics without the last line": Case(metrics(lambda lines: lines[:-1]), about="metrics.jsonl"),
    "metrics binary": Case(
        of_file("metrics.jsonl", lambda path: path.write_bytes(bytes(range(256)))), resumes=False, about="metrics.jsonl"
    ),
    "metrics with a list": Case(metrics(lambda lines: [*lines[:-1], "[1]\n"]), about="metrics.jsonl"),
    "metrics with text": Case(
        metrics(lambda lines: [lines[0].replace("{", '{"eval/x": "y", '), *lines[1:]]), resumes=False
    ),
    "metrics deep": Case(metrics(lambda lines: [*lines[:-1], f"{DEEP}\n"]), about="metrics.jsonl"),
    "config gone": Case(of_file("config.yaml", Path.unlink), resumes=False, about="config.yaml"),
    "config binary": Case(
        of_file("config.yaml", lambda path: path.write_bytes(bytes(range(256)))), resumes=False, about="config.yaml"
    ),
    "config empty": Case(of_file("config.yaml", lambda path: path.write_text("")), resumes=False, about="config.yaml"),
    "config cut": Case(of_file("config.yaml", lambda path: cut(path, 200)), resumes=False),
    "config deep": Case(of_file("config.yaml", lambda path: path.write_text(DEEP)), resumes=False, about="config.yaml"),
    "config dangling": Case(of_file("config.yaml", link_to_nothing), resumes=False, about="config.yaml"),
    "config a folder": Case(of_file("config.yaml", a_folder), resumes=False, about="config.yaml"),
    **{
        f"config without {key}": Case(config_without(key), resumes=False)
        for key in ("algorithm", "data", "partition", "model", "rounds", "engine", "checkpoint")
    },
    "config without seed": Case(config_without("seed"), resumes=None),
    "config: seed: abc": Case(config_without("seed", "seed: abc"), resumes=None),
    **{
        f"config: {text}": Case(config_without(text.partition(":")[0], text), resumes=False)
        for text in ("algorithm: null", "algorithm: 3", "engine: 3", "rounds: abc", "rounds: [1]")
    },
    "no checkpoints": Case(of_file("checkpoints", shutil.rmtree)),
    "checkpoints a file": Case(of_file("checkpoints", a_file), resumes=False, about="checkpoints"),
    "checkpoints dangling": Case(of_file("checkpoints", link_to_nothing), resumes=False, about="checkpoints"),
    "checkpoint empty": Case(lambda run: newest(run).write_bytes(b"") and None, about="damaged"),
    "checkpoint dangling": Case(lambda run: link_to_nothing(newest(run)), about="cannot be read"),
    "checkpoint a folder": Case(lambda run: a_folder(newest(run)), about="cannot be read"),
    "checkpoint garbage": Case(garbage, about="no checkpoint"),
    "checkpoint without a header": Case(forged(lambda arrays, header: "{}"), about="no checkpoint"),
    "checkpoint, a list": Case(forged(lambda arrays, header: "[1]"), about="no checkpoint"),
    "checkpoint, deep": Case(forged(lambda arrays, header: DEEP), about="no checkpoint"),
    "checkpoint of another round": Case(forged(lambda arrays, header: header | {"round": 99}), about="another round"),
    "checkpoint of another format": Case(
        forged(lambda arrays, header: header | {"format": 99}), resumes=False, about="format"
    ),
    "checkpoint without notes": Case(forged(lambda arrays, header: header | {"notes": {}}), about="not of a run"),
    "checkpoint of numbers that are text": Case(
        forged(lambda arrays, header: header | {"numbers": dict.fromkeys(header["numbers"], "x")}), False, late=True
    ),
    "checkpoint without arrays": Case(forged(lambda arrays, header: arrays.clear()), False, "checkpoint", late=True),
    "event files of odd names": Case(odd_event_files),
    "tensorboard a file": Case(of_file("tensorboard", a_file), resumes=False, about="tensorboard"),
    "tensorboard dangling": Case(of_file("tensorboard", link_to_nothing), resumes=False, about="tensorboard"),
    "no tensorboard": Case(of_file("tensorboard", shutil.rmtree)),
}


@pytest.mark.parametrize("kind", ["stopped", "whole"])
@pytest.mark.parametrize("case", CASES)
def test_damage_costs_a_line_at_most(
    main: Command,  # noqa: F811
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
    kind: str,
) -> None:
    """An exception here is a traceback there."""
    for name in ("one", "other"):
        shutil.copytree(made / kind, tmp_path / name, symlinks=True)
        CASES[case].damage(tmp_path / name)
    before = content(tmp_path)
    for command in (
        lambda: main("replay", "one", "round=3", "client=0"),
        lambda: report([str(tmp_path / "one"), "--no-figures"]),
    ):
        code = command()
        said = capsys.readouterr()
        assert code in (0, 2)
        assert len(said.err.splitlines()) == 1 if code else all("passed over" in line for line in said.err.splitlines())
    now = content(tmp_path)
    assert {name: now.get(name) for name in before} == before
    code = main("resume=other")
    lines = capsys.readouterr().err.splitlines()
    if CASES[case].resumes is not None:
        unread = kind == "whole" and "summary" not in case and "config" not in case
        assert (code == 0) == (CASES[case].resumes or unread), lines
    if code == 0:
        assert all("passed over" in line or "warning" in line for line in lines)
        assert summary(tmp_path / "other")["status"] == "finished"
        assert kind == "whole" or len(recorded(tmp_path / "other")) == LAST + 1  # a finished run is left as it is
        assert digest(tmp_path / "other") == digest(made / "whole")
    else:
        assert code == 2
        assert len([line for line in lines if "warning" not in line]) == 1
        opened = ("other/summary.json", "other/provenance.json") if CASES[case].late else ()
        kept = {name: mark for name, mark in before.items() if name.startswith("other") and name not in opened}
        assert {name: content(tmp_path).get(name) for name in kept} == kept, "what is refused is left as it is"
    if CASES[case].about and kind == "stopped":
        assert CASES[case].about in "\n".join(lines)


def digest(folder: Path) -> str:
    return str(summary(folder)["digest"])


# Disks that fail


def failing_metrics(fail: Callable[..., Any], patch: pytest.MonkeyPatch) -> None:
    write = RunFolder.write

    def then(self: RunFolder, record: Any) -> None:
        if record["round"] >= 3:
            self._metrics = Broken(self._metrics, fail)
        write(self, record)

    patch.setattr(RunFolder, "write", then)


class Broken:
    """A file of which every write fails; everything else is the file's."""

    def __init__(self, file: Any, fail: Callable[..., Any]) -> None:
        self._file, self.write = file, fail

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def failing_events(fail: Callable[..., Any], patch: pytest.MonkeyPatch) -> None:
    scalars = EventFile.scalars
    patch.setattr(EventFile, "scalars", lambda self, values, step: fail() if step >= 3 else scalars(self, values, step))


def failing(owner: Any, name: str) -> Callable[[Callable[..., Any], pytest.MonkeyPatch], None]:
    """A function that fails from the third round on, whoever calls it."""

    def break_(fail: Callable[..., Any], patch: pytest.MonkeyPatch) -> None:
        write, sound, broken = RunFolder.write, getattr(owner, name), []

        def then(self: RunFolder, record: Any) -> None:
            write(self, record)
            broken.extend([True] * (record["round"] >= 3))

        patch.setattr(RunFolder, "write", then)
        patch.setattr(owner, name, lambda *args, **options: fail() if broken else sound(*args, **options))

    return break_


PLACES = {
    "a record": failing_metrics,
    "an event": failing_events,
    "fsync": failing(os, "fsync"),
    "replace": failing(os, "replace"),
    "a checkpoint": failing(checkpoint, "save_file"),
    "chmod": failing(Path, "chmod"),
}
ERRORS = ("EIO", "EROFS", "EMFILE", "EFBIG", "ENOSPC", "EDQUOT")


@pytest.mark.parametrize(
    ("place", "name"),
    [(place, ERRORS[i % len(ERRORS)]) for i, place in enumerate(PLACES)] + [("a record", name) for name in ERRORS[1:]],
)
def test_a_disk_that_fails_ends_a_run_with_one_line_and_nothing_lost(
    main: Command,  # noqa: F811
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    place: str,
    name: str,
) -> None:
    number = getattr(errno, name)

    def fail(*args: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    line = (*LINE, f"rounds={LAST}", "evaluate.every=1", "hydra.run.dir=out")
    with pytest.MonkeyPatch.context() as patch:
        PLACES[place](fail, patch)
        assert main(*line) == 1
    *warned, last = capsys.readouterr().err.splitlines()
    assert os.strerror(number) in last
    assert last.endswith(
        f"the run in {tmp_path / 'out'} stopped; what it wrote is kept: fedsim resume={tmp_path / 'out'}"
    )
    assert len(warned) <= 1
    assert all("no checkpoint after round" in line for line in warned)
    assert main("resume=out") == 0
    assert digest(tmp_path / "out") == digest(made / "whole")
    assert [r["round"] for r in recorded(tmp_path / "out")] == list(range(LAST + 1))


def test_a_disk_that_is_full_before_a_run_begins_is_one_line(
    main: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Hydra's notes are a run's first files; an error while writing, unlike one of opening, has no file's name."""

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hydra.core.utils._save_config", fail)
    assert main(*LINE, "hydra.run.dir=out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the run's folder must be writable, got No space left on device; choose another")


def test_a_stopped_run_whose_checkpoint_fails_says_so(
    main: Command,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with late_ctrl_c_ignored(), signalled(tmp_path / "out", signal.SIGINT):
        assert main(*LINE, "rounds=5000", "evaluate.every=5000", "hydra.run.dir=out") == 1
    warned, last = capsys.readouterr().err.splitlines()
    assert "no checkpoint after round 1" in warned
    assert "no checkpoint after round" in last
    assert summary(tmp_path / "out")["status"] == "interrupted"


# A closed terminal


def at_a_terminal() -> None:
    """In the child: its input is its terminal, and SIGHUP is heard even where the tests run under nohup."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_a_closed_terminal_saves_what_the_run_has(tmp_path: Path) -> None:
    """The master side of a pseudo-terminal is closed: SIGHUP comes, and every write to the terminal fails from then."""
    command = [sys.executable, "-m", "fedsim", *LINE, "rounds=100000", "evaluate.every=100000", "hydra.run.dir=out"]
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(tmp_path, "ray"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=at_a_terminal,
    )
    os.close(theirs)
    metrics = tmp_path / "out/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") > 2):
        if select.select([ours], [], [], 0.05)[0]:
            os.read(ours, 2**16)
    os.close(ours)
    assert process.wait() == 129
    found = summary(tmp_path / "out")
    assert (found["status"], found["message"]) == ("interrupted", f"KeyboardInterrupt after round {found['rounds']}")
    saved = Checkpoints(tmp_path / "out/checkpoints", Checkpointing()).newest()
    assert saved is not None
    assert saved.done == found["rounds"] >= 2


def test_a_run_that_was_begun_to_outlive_its_terminal_does() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in heard_signals()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signal.SIGHUP in heard_signals()
    finally:
        signal.signal(signal.SIGHUP, before)
