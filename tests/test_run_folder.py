"""What a run writes is there, whole, exact, and never overwritten."""

from __future__ import annotations

import errno
import json
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedsim.errors import InputError
from fedsim.ground.files import atomic_file, of_the_disk
from fedsim.record.run_folder import RunFolder, run_summary

CONFIG = {"seed": 3, "algorithm": {"_target_": "fedsim.algorithms.FedAvg", "lr": 1e-5}, "betas": (0.5, math.inf)}
RECORDS = [
    {"round": 0, "eval/accuracy": 0.1, "eval/loss": 2.5},
    {"round": 1, "train/loss": 0.1 + 0.2, "comm/uplink_bytes": 2**53 - 1},
    {"round": 2, "train/loss": math.nan, "eval/accuracy": np.float32(0.5), "eval/loss": math.inf},
]


def lines(path: Path) -> list[dict[str, float]]:
    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_exact_and_visible_at_once_and_non_finite_numbers_are_null(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "a" / "run", CONFIG, {}) as folder:
        for done, record in enumerate(RECORDS, 1):
            folder.write(record)
            assert len(lines(folder.path)) == done  # before anything is closed
    assert lines(folder.path) == [
        RECORDS[0],
        RECORDS[1],
        {"round": 2, "train/loss": None, "eval/accuracy": 0.5, "eval/loss": None},
    ]


def test_config_and_provenance_are_read_back(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, {"git": None, "threads": np.int64(2), "where": tmp_path}):
        pass
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config == {**CONFIG, "betas": [0.5, math.inf]}
    assert list(config) == list(CONFIG)
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance == {"git": None, "threads": 2, "where": str(tmp_path)}


def test_a_folder_that_holds_a_run_is_refused_and_kept(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG, {}) as folder:
        folder.write(RECORDS[0])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"already holds a run .*choose another"):
        RunFolder.create(tmp_path, {"seed": 4}, {})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_with_other_files_is_used(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    with RunFolder.create(tmp_path, CONFIG, {}) as folder:
        folder.write(RECORDS[0])
    assert lines(tmp_path) == RECORDS[:1]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        RunFolder.create(tmp_path / "run", CONFIG, {})
    with pytest.raises(InputError, match="must be writable"):
        RunFolder.create(tmp_path / "run" / "below", CONFIG, {})


def test_an_exception_loses_nothing_and_leaves_no_summary(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, CONFIG, {})

    def interrupted() -> None:
        with folder:
            folder.write(RECORDS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert lines(tmp_path) == RECORDS[:1]
    assert not (tmp_path / "summary.json").exists()
    with pytest.raises(ValueError, match="closed"):
        folder.write(RECORDS[1])


def test_trajectory_and_summary(tmp_path: Path) -> None:
    points, t = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32), np.arange(4.0)
    with RunFolder.create(tmp_path, CONFIG, {}) as folder:
        folder.trajectory(points, t=t)
        folder.finish({"status": "diverged", "eval/loss": {"last": math.nan, "best": 1.5, "best_round": 1}})
    with np.load(tmp_path / "trajectory.npz") as read:
        assert sorted(read) == ["t", "x"]
        np.testing.assert_array_equal(read["x"], points)
        assert read["x"].dtype == np.float32
        np.testing.assert_array_equal(read["t"], t)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {"status": "diverged", "eval/loss": {"last": None, "best": 1.5, "best_round": 1}}
    assert not list(tmp_path.glob(".*.tmp"))


def test_an_atomic_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def failing() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise OSError("on purpose")

    with pytest.raises(OSError, match="on purpose"):
        failing()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_raises_and_leaves_whole_lines(tmp_path: Path) -> None:
    """A limit on file sizes stands in for the full disk: both make ``write`` come back short."""
    script = """
        import resource, sys
        from fedsim.record.run_folder import RunFolder

        with RunFolder.create(sys.argv[1], {}, {}) as folder:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
            try:
                for r in range(1000):
                    folder.write({"round": r, "padding": "x" * 300})
            except OSError as error:
                sys.exit(0 if "metrics.jsonl" in str(error) else 4)
        sys.exit(3)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], check=False)
    assert run.returncode == 0
    written = lines(tmp_path)
    assert [record["round"] for record in written] == list(range(len(written)))
    assert len(written) > 10


def test_importing_loads_neither_tensorboard_nor_matplotlib() -> None:
    modules = "fedsim.record.run_folder, fedsim.record.tensorboard, fedsim.record.provenance, fedsim.ground.console"
    code = f"import sys, {modules}; sys.exit(str({{'tensorboard', 'matplotlib', 'ray'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.strip() == "set()"


def test_summary_of_hand_made_records() -> None:
    records = [
        {"round": 0, "eval/accuracy": 0.1, "eval/loss": 2.0, "eval/client_accuracy_std": 0.3},
        {"round": 1, "comm/uplink_bytes": 10, "comm/uplink_total_bytes": 10, "train/loss": 1.5, "privacy/epsilon": 0.5},
        {"round": 2, "eval/accuracy": 0.9, "eval/loss": 0.5, "comm/uplink_bytes": 12, "comm/uplink_total_bytes": 22},
        {"round": 3, "eval/accuracy": 0.9, "eval/loss": 0.7, "eval/client_accuracy_std": 0.4, "privacy/epsilon": 0.9},
    ]
    assert run_summary(records, "finished", "ab", 12.5) == {
        "status": "finished",
        "rounds": 3,
        "eval/accuracy": {"last": 0.9, "best": 0.9, "best_round": 2},
        "eval/loss": {"last": 0.7, "best": 0.5, "best_round": 2},
        "eval/client_accuracy_std": {"last": 0.4, "best": 0.3, "best_round": 0},
        "comm/uplink_bytes": 22,
        "privacy/epsilon": 0.9,
        "time/wall_s": 12.5,
        "digest": "ab",
    }


@pytest.mark.parametrize(("tag", "best"), [("eval/mse", 0), ("eval/client_loss_worst10", 0), ("eval/auc", 1)])
def test_best_is_the_smallest_for_losses_and_the_largest_for_scores(tag: str, best: int) -> None:
    summary = run_summary([{"round": 0, tag: 1.0}, {"round": 1, tag: 2.0}], "finished", "", 0.0)
    assert summary[tag]["best_round"] == best


def test_non_finite_values_are_last_but_never_best() -> None:
    records = [{"round": 0, "eval/loss": 3.0, "eval/mse": math.nan}, {"round": 1, "eval/loss": math.nan}]
    summary = run_summary(records, "diverged", "", 0.0)
    assert math.isnan(summary["eval/loss"]["last"])
    assert (summary["eval/loss"]["best"], summary["eval/loss"]["best_round"]) == (3.0, 0)
    assert (summary["eval/mse"]["best"], summary["eval/mse"]["best_round"]) == (None, None)


def test_a_run_without_rounds_has_a_summary() -> None:
    assert run_summary([], "failed", "", 1.0) == {"status": "failed", "rounds": 0, "time/wall_s": 1.0, "digest": ""}


@pytest.mark.parametrize(
    ("number", "about", "ours"),
    [
        (errno.EACCES, "run/summary.json", True),
        (errno.EACCES, "run", True),
        (errno.EACCES, "run2/summary.json", False),
        (errno.EACCES, None, False),
        (errno.ENOSPC, "elsewhere", True),
    ],
)
@pytest.mark.parametrize("typed", [Path, lambda name: Path(name).absolute()], ids=["relative", "absolute"])
def test_an_error_of_the_disk_is_told_from_one_of_a_users_own_code(
    number: int, about: str | None, ours: bool, typed: Callable[[str], Path]
) -> None:
    """However the folder was typed: a run names its files in full."""
    error = OSError(number, "no", about and str(Path(about).absolute()))
    assert of_the_disk(error, typed("run")) == ours
