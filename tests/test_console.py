"""What a user sees: in a terminal of any width, in a pipe, in a file."""

from __future__ import annotations

import errno
import io
import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from rich.console import Console

from fedsim.ground.console import Progress, error, headline, megabytes, number, report
from fedsim.ground.later import importing

SUMMARY = {
    "status": "finished",
    "rounds": 40,
    "eval/accuracy": {"last": 0.84471, "best": 0.91, "best_round": 37},
    "eval/loss": {"last": 0.2888, "best": 0.2888, "best_round": 40},
    "comm/uplink_bytes": 28_800_000,
    "comm/downlink_bytes": 512,
    "time/wall_s": 80.0,
    "digest": "0123456789abcdef" * 4,
    "cpu_capability": "AVX512",
}
FOLDER = "/data/experiments/a long name/" + "x" * 80 + "/2026-11-21_00-00-00"

RUN = """
    from fedsim.ground.console import Progress, report
    with Progress(20) as bar:
        bar.status("setting up: starting 2 Ray actors")
        for r in range(21):
            bar.update({"round": r, "eval/accuracy": r / 40, "eval/loss": 1 / (1 + r)})
    report({"status": "finished", "rounds": 20, "time/wall_s": 1.0, "digest": "ab"}, "/the/folder")
"""


def printed(width: int) -> str:
    out = io.StringIO()
    report(SUMMARY, FOLDER, extra={"algorithm": "fedavg [mu]"}, console=Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 200])
def test_the_report_says_everything_at_any_width(width: int) -> None:
    text = printed(width)
    for fact in ("fedavg [mu]", "finished", "0.8447  (best 0.9100 at round 37)", "0.2888", "28.800 MB (1e6 bytes)"):
        assert fact in text
    for fact in ("0.000512 MB", "80.0 s  (2 s per round)", "0123456789abcdef  (CPU capability AVX512)"):
        assert fact in text
    table = [line for line in text.splitlines() if not line.startswith(("folder", "curves"))]
    assert max(map(len, table)) <= 60
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [20, 60, 200])
def test_folder_and_command_can_be_copied(width: int) -> None:
    text = printed(width).splitlines()
    assert f"folder  {FOLDER}" in text
    assert f"curves  tensorboard --logdir '{FOLDER}'" in text


def test_tensorboard_may_be_pointed_at_the_parent() -> None:
    out = io.StringIO()
    report(SUMMARY, "/runs/a/3", logdir="/runs/a", console=Console(file=out))
    assert "folder  /runs/a/3\n" in out.getvalue()
    assert "tensorboard --logdir /runs/a\n" in out.getvalue()


def test_a_run_that_came_to_nothing_is_reported() -> None:
    out = io.StringIO()
    summary = {"status": "diverged", "rounds": 0, "time/wall_s": 0.5, "digest": ""}
    nan = {"eval/mse": {"last": float("nan"), "best": None, "best_round": None}, "privacy/epsilon": 3.25}
    report(summary | nan, "/f", console=Console(file=out))
    assert "diverged" in out.getvalue()
    assert re.search(r"mse +│ nan +│", out.getvalue())
    assert re.search(r"epsilon +│ 3.25 +│", out.getvalue())


def lines(rounds: int) -> list[str]:
    out = io.StringIO()
    with Progress(rounds, Console(file=out, width=30)) as bar:
        bar.status("setting up")
        for r in range(rounds + 1):
            bar.update({"round": r, "eval/loss": 2.0, "eval/accuracy": 0.5} if r == 0 else {"round": r})
    return out.getvalue().splitlines()


@pytest.mark.parametrize(("rounds", "shown"), [(1, [1]), (3, [1, 2, 3]), (20, list(range(2, 21, 2))), (1234, None)])
def test_without_a_terminal_about_ten_plain_lines(rounds: int, shown: list[int] | None) -> None:
    said = lines(rounds)
    at = [
        int(re.match(rf"round (\d+)/{rounds}  accuracy 0.5000  loss 2.0000  elapsed 0:0\d", line)[1]) for line in said
    ]
    assert at == shown or (shown is None and len(at) == 10)
    assert at[-1] == rounds
    assert "eta" not in said[-1]


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_says_what_is_imported_for_the_first_time_and_a_pipe_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    said, again, piped = Tty(), Tty(), io.StringIO()
    with importing("no.such.module", "importing it", said):
        assert said.getvalue() == "\rimporting it"
    assert said.getvalue() == "\rimporting it\r\x1b[2K"
    for stream, module in ((again, "os"), (piped, "no.such.module")):
        with importing(module, "importing it", stream):
            pass
        assert stream.getvalue() == ""


def test_headline_prefers_accuracy_and_skips_training_loss() -> None:
    assert headline({"round": 1, "eval/client_accuracy_std": 1, "eval/loss": 2, "eval/accuracy": 3}) == {
        "accuracy": 3,
        "loss": 2,
    }
    assert headline({"round": 1, "eval/loss": 2, "eval/mse": 4}) == {"mse": 4, "loss": 2}
    assert headline({"round": 1, "train/loss": 2}) == {}


def test_numbers() -> None:
    assert [number(x) for x in (0.5, 0.0, 3.1e-7, 12345.6, float("nan"))] == [
        "0.5000",
        "0",
        "3.1e-07",
        "1.235e+04",
        "nan",
    ]
    assert [megabytes(b) for b in (0, 800, 12_345_678, 5e9)] == [
        f"{size} MB (1e6 bytes)" for size in ("0", "0.0008", "12.346", "5,000.000")
    ]


def test_an_error_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    message = "partition.alpha must be > 0, got [-1]; " + "read on " * 30
    error(message)
    assert capsys.readouterr() == ("", f"error: {message}\n")


def in_a_terminal(tmp_path: Path, width: int, **environment: str) -> str:
    """The output of RUN in a real pseudo-terminal."""
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(RUN))
    ours, theirs = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"}}
    env |= {"TERM": "xterm-256color", "COLUMNS": str(width), "PYTHONPATH": os.pathsep.join(sys.path)} | environment
    with subprocess.Popen([sys.executable, str(script)], stdin=theirs, stdout=theirs, stderr=theirs, env=env) as run:
        os.close(theirs)
        out = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError as e:  # how Linux says that the other side is closed
                assert e.errno == errno.EIO  # noqa: PT017
                break
            if not chunk:
                break
            out += chunk
    os.close(ours)
    assert run.returncode == 0
    return out.decode()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize("width", [60, 200])
def test_a_terminal_shows_a_bar_that_fits(tmp_path: Path, width: int) -> None:
    out = in_a_terminal(tmp_path, width)
    assert "\x1b[" in out
    text = plain(out)
    assert re.search(r"round 20/20 ━+ accuracy 0\.5000", text)
    assert "…" not in text
    assert ("loss" in text) == (width == 200)
    assert max(len(line) for line in re.split(r"[\r\n]+", text)) <= width
    assert "curves  tensorboard --logdir /the/folder" in text


def test_no_color_is_respected(tmp_path: Path) -> None:
    codes = {
        code
        for match in re.findall(r"\x1b\[([0-9;]*)m", in_a_terminal(tmp_path, 80, NO_COLOR="1"))
        for code in match.split(";")
    }
    assert codes <= {"", "0", "1", "2"}  # reset, bold, dim
    coloured = re.findall(r"\x1b\[([0-9;]*)m", in_a_terminal(tmp_path, 80))
    assert {"1;32"} <= set(coloured)  # the status, bold green


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    out = in_a_terminal(tmp_path, 80, TERM="dumb")
    assert "\x1b" not in out
    assert "round 4/20  accuracy" in out


def test_a_run_survives_the_reader_of_its_pipe(tmp_path: Path) -> None:
    done = tmp_path / "done"
    script = textwrap.dedent(RUN) + f"\nopen({str(done)!r}, 'w').close()\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout
        assert run.stderr
        run.stdout.close()  # as `| head` does
        complaint = run.stderr.read()
    assert (run.returncode, complaint) == (0, b"")
    assert done.exists()


def test_an_ascii_pipe_gets_ascii() -> None:
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(RUN)], env=env, capture_output=True, check=True)
    assert b"| finished" in run.stdout
    assert b"\x1b" not in run.stdout
