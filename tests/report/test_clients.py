"""How a metric is distributed over clients, in a report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.record.clients_file import CLIENTS
from fedsim.report import clients
from fedsim.report.__main__ import main
from fedsim.report.sweeps import read_runs
from tests.report.folders import FEDAVG, FEDPROX, config, records, write_run

pyarrow: Any = pytest.importorskip("pyarrow")
parquet: Any = pytest.importorskip("pyarrow.parquet")


def write_clients(folder: Path, last: list[float | None]) -> None:
    """Values at the last of two evaluations; at the first all have 0.1."""
    n = len(last)
    columns = {"round": [0] * n + [3] * n, "client": [*range(n)] * 2, "samples": [5] * 2 * n}
    parquet.write_table(pyarrow.table(columns | {"accuracy": [0.1] * n + last}), folder / CLIENTS)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    rows = records([0.1, 0.4, 0.5, 0.6])
    for seed in (0, 1):
        for name, algorithm in (("fedavg", FEDAVG), ("fedprox", FEDPROX)):
            write_run(tmp_path / f"{name}-{seed}", config(algorithm, seed), rows)
    write_clients(tmp_path / "fedavg-0", [0.2, 0.4, 0.6, 0.8, 1.0, None])
    write_clients(tmp_path / "fedavg-1", [0.3, 0.5, 0.7, 0.9, 0.0])
    return tmp_path


def text(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """HTML and Markdown of a report."""
    assert main([str(folder), "--no-figures"]) == 0
    capsys.readouterr()
    return (folder / "report" / "report.html").read_text(), (folder / "report" / "report.md").read_text()


def test_the_clients_of_all_seeds_at_the_last_evaluation(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten values 0, 0.2, 0.3, ..., 1: by numpy's linear interpolation the quantiles are those below."""
    html, markdown = text(runs, capsys)
    _, rest = markdown.split("### Accuracy over clients, at the last evaluation\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rest.splitlines()[:3]]
    values = [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    quantiles = [f"{float(np.quantile(values, q)):.4g}" for q in (0.1, 0.5, 0.9)]
    assert rows[0] == ["method", "clients", "worst", "worst tenth up to", "median", "best tenth from", "best"]
    assert rows[2] == ["FedAvg", "10", "0", *quantiles, "1"]
    assert not rest.splitlines()[3].startswith("|"), "a method without the file has no row"
    (drawn,) = re.findall(r'<svg[^>]*aria-label="share of clients[^"]*".*?</svg>', html)
    assert 'aria-label="share of clients with at most this against accuracy of a client: FedAvg"' in drawn
    assert "Where the metric shall be large, a curve further right is better" in html


def test_where_small_is_good_the_worst_are_the_largest(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = parquet.read_table(runs / "fedavg-0" / CLIENTS)
    parquet.write_table(table.rename_columns(["round", "client", "samples", "loss"]), runs / "fedavg-0" / CLIENTS)
    assert main([str(runs), "--no-figures", "--metric", "loss"]) == 0
    row = next(
        line
        for line in (runs / "report" / "report.md").read_text().split("### Loss over clients")[1].splitlines()
        if line.startswith("| FedAvg")
    )
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["5", "1", "0.92", "0.6", "0.28", "0.2"]


def test_a_report_without_such_files_says_nothing_of_clients(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in runs.rglob(CLIENTS):
        path.unlink()
    html, markdown = text(runs, capsys)
    assert "over clients" not in html + markdown


def test_what_cannot_be_read_is_said(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs / "fedavg-1" / CLIENTS).write_bytes(b"no parquet <b>")
    html, markdown = text(runs, capsys)
    assert f"fedavg-1/{CLIENTS} cannot be read: " in markdown
    assert f"fedavg-1/{CLIENTS} cannot be read: " in html
    assert "| FedAvg | 5 |" in markdown, "of the other run they are there"
    (found,), _ = read_runs([runs / "fedavg-0"])
    assert clients.spread_over_clients([(found, 3)], "f1") == (None, {}), "a metric that was not kept"
    monkeypatch.setattr(clients, "find_spec", lambda name: None)
    assert "is there, but not read: it needs pyarrow; pip install 'fedsim-ray[report]'" in text(runs, capsys)[1]
