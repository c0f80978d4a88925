"""What is read from folders, whole, half-written and odd."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from fedsim.errors import InputError
from fedsim.report.axes import AXES, spent_until
from fedsim.report.runs import find_runs, read_run
from tests.report.folders import config, records, rising, write_run

BY_NAME = {axis.name: axis for axis in AXES}


def test_runs_are_found_at_any_depth_once_and_other_files_are_passed_over(tmp_path: Path) -> None:
    for name in ("b/x", "a", "b/y/z"):
        write_run(tmp_path / name, config(), records([0.1]))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "metrics.jsonl").write_text("not a run's\n")
    found = find_runs([tmp_path, tmp_path / "b"])
    assert [str(path.relative_to(tmp_path.resolve())) for path in found] == ["a", "b/x", "b/y/z"]


def test_a_folder_without_runs_and_a_missing_one_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got none below"):
        find_runs([tmp_path])
    with pytest.raises(InputError, match="which is no folder"):
        find_runs([tmp_path / "absent"])


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", config(), records(rising(0.9)), status=None)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 11, "eval/accu')
    run = read_run(path)
    assert run.rounds.tolist() == list(range(11))
    assert run.status == "unfinished"


def test_null_and_missing_values_are_nan_and_the_last_of_two_records_of_a_round_counts(tmp_path: Path) -> None:
    rows = [*records([0.1, None, 0.3]), {"round": 2, "eval/accuracy": 0.4}, {"round": 1, "train/loss": 7}]
    run = read_run(write_run(tmp_path / "run", config(), rows))
    np.testing.assert_array_equal(run.series("eval/accuracy"), [0.1, math.nan, 0.4])
    np.testing.assert_array_equal(run.series("train/loss"), [math.nan, 7, math.nan])
    np.testing.assert_array_equal(run.series("eval/f1"), [math.nan] * 3)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("metrics.jsonl", "hello\n{}\n", "line 1"),
        ("metrics.jsonl", '{"step": 1}\n', "no round"),
        ("metrics.jsonl", "", "no round yet"),
        ("config.yaml", "a: [1,\n", "not YAML"),
        ("config.yaml", "- 1\n", "no configuration"),
        ("summary.json", "{", "not JSON"),
        ("provenance.json", "[]", "no JSON object"),
    ],
)
def test_files_that_no_run_writes_are_named(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = write_run(tmp_path / "run", config(), records([0.1, 0.2]))
    (path / name).write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        read_run(path)
    assert name in str(caught.value)


def test_axes_add_up_what_every_round_cost(tmp_path: Path) -> None:
    more = {"privacy__epsilon": [0.0, None, 1.5, None], "time__virtual_s": [None, 2.0, 4.0, 6.5]}
    run = read_run(write_run(tmp_path / "run", config(), records([0.1, 0.2, 0.3, 0.4], **more)))
    assert BY_NAME["rounds"].values(run).tolist() == [0, 1, 2, 3]
    assert BY_NAME["MB"].values(run).tolist() == [0, 3, 6, 9]
    assert BY_NAME["seconds"].values(run).tolist() == [0, 0.5, 1, 1.5]
    assert BY_NAME["epsilon"].values(run).tolist() == [0, 0, 1.5, 1.5]
    assert BY_NAME["virtual time"].values(run).tolist() == [0, 2, 4, 6.5]


def test_edges_count_as_megabytes_too(tmp_path: Path) -> None:
    rows = [{"round": 0}, *({"round": t, "comm/edge_bytes": 500_000, "comm/edge_total_bytes": 1} for t in (1, 2))]
    run = read_run(write_run(tmp_path / "run", config(), rows))
    assert BY_NAME["MB"].values(run).tolist() == [0, 0.5, 1]


def test_a_target_costs_what_its_first_reaching_took(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", config(), records([0.1, 0.5, 0.8, 0.7, 0.9])))
    cost = spent_until(run, "eval/accuracy", 0.75)
    assert cost is not None
    assert (cost["rounds"], cost["MB"], cost["seconds"], math.isnan(cost["epsilon"])) == (2, 6, 1, True)
    loss = spent_until(run, "eval/loss", 1.0)
    assert loss is not None
    assert loss["rounds"] == 1
    assert spent_until(run, "eval/accuracy", 0.95) is None
    assert spent_until(run, "eval/f1", 0.5) is None


def test_what_a_real_run_writes_is_read(tmp_path: Path) -> None:
    from fedsim.record.run_folder import RunFolder, run_summary

    rows = records([0.1, math.inf, 0.3])
    with RunFolder.create(tmp_path / "run", config(), {"threads": 1}) as folder:
        for row in rows:
            folder.write(row)
        folder.finish(run_summary(rows, "finished", "ff", 1.0))
    run = read_run(find_runs([tmp_path])[0])
    assert (run.status, run.seed, run.provenance["threads"]) == ("finished", 0, 1)
    np.testing.assert_array_equal(run.series("eval/accuracy"), [0.1, math.nan, 0.3])
    assert json.loads((run.path / "summary.json").read_text())["digest"] == "ff"
