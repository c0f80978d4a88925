"""docs/channel.md works as written: its commands, its layer and its table of sizes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from fedsim.assembly.nodes import build_channel
from fedsim.channel.channel import noises

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/channel.md").read_text()
FILES = dict(re.findall(r"^File `([\w./]+)`:\n\n```\w+\n(.*?)```", PAGE, re.S | re.M))
COMMANDS = re.findall(r"^(fedsim|python) (.*)$", "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)), re.M)
SIZES = re.findall(r"^\| (?:`([\w,]+)`|none) \| ([\d,]+) \| ([\d.]+) \|", PAGE, re.M)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def typed(folder: Path, program: str, arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the page in the folder, with the console script that is installed beside this Python."""
    own = {"fedsim": str(Path(sys.executable).parent / "fedsim"), "python": sys.executable}
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    command = [own[program], *shlex.split(arguments)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_the_page_holds_what_is_tested_here() -> None:
    assert sorted(FILES) == ["conf/channel/window.yaml", "test_window.py", "window.py"]
    assert [program for program, _ in COMMANDS] == ["fedsim", "fedsim", "fedsim", "python"]
    assert len(SIZES) >= 14


@pytest.mark.parametrize("number", range(3))
def test_its_runs(number: int, folder: Path) -> None:
    out = typed(folder, *COMMANDS[number])
    assert out.returncode == 0, out.stderr
    (path,) = folder.glob("outputs/*/*/summary.json")
    summary = json.loads(path.read_text())
    assert summary["status"] == "finished"
    last = json.loads((path.parent / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["comm/uplink_ratio"] > 2


def test_its_own_test_passes_and_notices_a_wrong_layer(folder: Path) -> None:
    out = typed(folder, *COMMANDS[3])
    assert out.returncode == 0, out.stdout
    right = FILES["window.py"]
    for wrong in (
        right.replace("begin.tensor, d), values", "begin.tensor + 1, d), values"),
        right.replace("0, d - 1)", "0, 255)"),
    ):
        assert wrong != right
        (folder / "window.py").write_text(wrong)
        program, arguments = COMMANDS[3]
        assert typed(folder, program, f"{arguments} -k arrives").returncode == 1


@pytest.mark.parametrize(("layers", "size", "bits"), SIZES)
def test_its_sizes(layers: str, size: str, bits: str) -> None:
    """Counted and really encoded."""
    node: dict[str, object] = {}
    for name in filter(None, layers.split(",")):
        node |= yaml.safe_load((ROOT / f"configs/channel/{name}.yaml").read_text())
    v = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    for encode in (False, True):
        channel = build_channel({"encode": encode, **node}, "channel")
        noise = noises(0, "uplink", 0, torch.tensor(0))
        _, _, sent = channel.send({"update": v}, channel.init({"update": v}), noise, (len(v),))
        assert f"{int(sent):,}" == size
        assert f"{8 * int(sent) / len(v):.2f}" == bits


@pytest.mark.parametrize("link", ["channel", "downlink"])
def test_a_field_that_no_message_has_is_refused(link: str, folder: Path) -> None:
    out = typed(folder, "fedsim", f"{link}=[topk] {link}.topk.fields=[updte] engine=serial rounds=1")
    known = {"channel": "update", "downlink": "x"}[link]
    must = f"name fields that the messages of the first three rounds or the last have ({known})"
    assert out.stderr == f"error: {link}.topk.fields must {must}, got 'updte'\n"
    assert out.returncode == 2
