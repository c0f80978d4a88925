"""Provenance names the commit it ran from, and never fails for want of git."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from fedsim.record.provenance import git_state, provenance

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


@needs_git
def test_commit_and_dirty_flag(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout / "code.py") == {"commit": head, "dirty": False}
    (checkout / "code.py").write_text("x = 2\n")
    assert git_state(checkout / "code.py") == {"commit": head, "dirty": True}


@needs_git
def test_a_repository_that_only_contains_the_file_is_not_named(checkout: Path) -> None:
    """An environment installed inside someone's project is not a checkout of fedsim."""
    (checkout / "installed.py").write_text("")
    assert git_state(checkout / "installed.py") is None


@needs_git
def test_no_repository_and_no_commit_yet(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("")
    assert git_state(tmp_path / "code.py") is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "code.py")
    assert git_state(tmp_path / "code.py") is None


def test_without_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_state(checkout / "code.py") is None


def test_what_a_reader_needs_is_there() -> None:
    found = provenance(partition={"digest": "ab"})
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["torch"] == version("torch")
    assert all(found["versions"][name] for name in ("fedsim", "numpy", "ray", "hydra-core"))
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu"]["model"]
    assert found["cpu"]["capability"]
    assert found["command"] == sys.argv
    assert found["device"] == "cpu"
    assert found["partition"] == {"digest": "ab"}
    assert datetime.fromisoformat(found["started"]).utcoffset() == timedelta(0)


def test_extra_facts_win() -> None:
    assert provenance(threads=7)["threads"] == 7
