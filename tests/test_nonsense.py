"""Typed nonsense: one line and exit code 2 before anything is spawned or written; null where nothing may be chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.cli.argv import with_own_classes
from fedsim.record.run_folder import RunFolder
from tests.test_cli import SMALL, composed
from tests.test_cli import main as main

GROUPS = ("aggregate", "algorithm", "data", "engine", "model", "partition", "schedule")
TYPED = {
    **{f"{group}=null": f"{group} must be one of its options, got {group}=null" for group in GROUPS},
    "algorithm=1": "algorithm must be one of its options, got algorithm=1",
    "algorithm={a:1}": "algorithm must be one of its options",
    "channel=[null]": "channel must be one of its options, got channel=[null]",
    "downlink=[null]": "downlink must be one of its options",
    "channel=[[topk]]": "channel must be one of its options, got channel=[[topk]]",
    "channel=[{a:1}]": "channel must be one of its options",
    "channel=[1]": "channel must be one of its options",
    "rounds=[1]": "rounds must be an int, got [1]",
    "checkpoint.every=[": "an argument must be KEY=VALUE, got 'checkpoint.every=['",
    "checkpoint=null": "checkpoint must be a mapping",
    "local=null": "local must be a mapping",
    "model._target_=builtins.dict": "model._target_ must be",
    "schedule._target_=time.sleep": "schedule._target_ must be",
    "algorithm._target_=null": "algorithm._target_ must be the dotted path",
    "algorithm._target_=[1]": "algorithm._target_ must be the dotted path",
    "algorithm.lr=${nope}": "Interpolation key 'nope' not found",
    "hydra.run.dir=${nope}": "hydra.run.dir must have a value, got none: Interpolation key 'nope' not found",
    "hydra.run.dir=": "hydra.run.dir must be a folder, got ''",
    "hydra.run.dir=''": "hydra.run.dir must be a folder, got ''",
    "hydra.run.dir=null": "hydra.run.dir",
    "hydra.job.name=${nope}": "hydra.job.name must have a value",
    "hydra.output_subdir=/tmp": "hydra.output_subdir must be a folder inside the run's, got '/tmp'",
    "hydra.output_subdir=../x": "hydra.output_subdir must be a folder inside the run's",
    "hydra=null": "hydra must be one of its options",
}


@pytest.mark.parametrize("typed", TYPED)
def test_one_line_and_nothing_written(
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    typed: str,
) -> None:
    others = [text for text in SMALL if text.partition("=")[0].partition(".")[0] != typed.partition("=")[0]]
    assert main(*others, typed) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert TYPED[typed] in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("rounds=abc", "rounds must be an int, got 'abc'"),
        ("rounds=[1]", "rounds must be an int, got [1]"),
        ("rounds=", "rounds must be an int, got None"),
        ("rounds=-1", "rounds must be >= 1, got -1"),
        ("rounds=1.5", "rounds must be an int, got 1.5"),
        ("checkpoint.every=[", "an argument must be KEY=VALUE, got 'checkpoint.every=['"),
        ("checkpoint.every=null", "checkpoint.every must be an int, got None"),
        ("engine.foo=1", "unknown key engine.foo (got 1)"),
        ("engine.threads={}", "engine.threads must be an int, got {}"),
        ("engine=", "unknown option engine="),
    ],
)
def test_a_finished_run_checks_what_is_typed(
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    typed: str,
    words: str,
) -> None:
    RunFolder.create(tmp_path / "done", composed(*SMALL), {}).close()
    (tmp_path / "done" / "summary.json").write_text(json.dumps({"status": "finished", "rounds": 2}))
    before = sorted(path.name for path in (tmp_path / "done").iterdir())
    assert main("resume=done", typed) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert sorted(path.name for path in (tmp_path / "done").iterdir()) == before


def test_null_chooses_nothing_where_nothing_may_be_chosen() -> None:
    typed = ["privacy=null", "topology=NULL", "channel=null", "downlink=null", "experiment=null", "sweep=null"]
    meant = ["privacy=none", "topology=none", "channel=[]", "channel@downlink=[]"]
    assert with_own_classes(typed) == meant
    assert composed(*meant) == composed()
    assert with_own_classes(["privacy=null,own"]) == ["privacy=none,own"]
    assert with_own_classes(["channel.topk.k=null", "algorithm.lr=null"]) == [
        "channel.topk.k=null",
        "algorithm.lr=null",
    ]
