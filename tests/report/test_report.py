"""The whole report: what ``fedsim-report`` writes."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from fedsim.record.figures import PALETTE
from fedsim.report.__main__ import main
from fedsim.report.charts import LABELS, POINTS, WIDTH, Line, Scale, chart
from fedsim.report.page import STYLES
from tests.report.folders import FEDAVG, config, records, rising, sweep, write_run

VOID = {"meta", "input", "br"}


class Checked(HTMLParser):
    """Every element is closed in order; ids, labels and all attributes are noted."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID and tag != "p":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag != "p":
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, three seeds, half of one run; and the report on them."""
    path = sweep(tmp_path_factory.mktemp("sweep"), {"fedavg": [0.80, 0.84, 0.82], "fedprox": [0.85, 0.90]})
    write_run(path / "running", config(FEDAVG | {"lr": 0.5}, 0), records(rising(0.3, 4)), status=None)
    (path / "broken").mkdir()
    (path / "broken" / "config.yaml").write_text("a: 1")
    (path / "broken" / "metrics.jsonl").write_text("nothing\n\n")
    assert main([str(path), "--target", "accuracy=0.8", "--title", "A <b> & c"]) == 0
    return path / "report"


def test_the_page_is_well_formed_and_requests_nothing(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Checked(text)
    tags = {tag for tag, _ in page.seen}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    assert not {name for _, attrs in page.seen for name in attrs} & {"src", "href", "style", "onclick"}
    assert "url(" not in text.partition("</style>")[0]
    assert "@import" not in text
    addresses = re.findall(r"https?://[^\s}]*", text)
    assert addresses
    assert all(address.startswith("https://arxiv.org/abs/") for address in addresses)
    ids = [attrs["id"] for _, attrs in page.seen if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["for"] for tag, attrs in page.seen if tag == "label"} == set(ids)
    assert "A &lt;b&gt; &amp; c" in text


def test_the_page_says_what_a_reader_must_know(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert "Smoothed:" not in text
    for part in (
        "6 runs (5 finished, 1 unfinished): 3 methods, 3 seeds.",
        "1 run without a summary: still running, or killed.",
        "fedsim -m algorithm=fedavg rounds=10 seed=0,1,2",
        "FedAvg, lr=0.5",
        "Cost of accuracy 0.8",
        "3 of 3",
        "mcmahan2017communication",
        "2.13.0",
    ):
        assert part in text, part


def test_every_drawing_is_xml_and_each_axis_has_its_own(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    drawings = re.findall(r'<div class="drawing ([^"]*)">(<svg.*?</svg>)</div>', text)
    axes = ["axis-rounds", "axis-mb", "axis-mb-log", "axis-seconds"]
    expected = axes + [f"{axis} {kind}" for axis in axes for kind in ("linear", "log")]
    assert [classes for classes, _ in drawings] == sorted(expected, key=lambda c: (" " in c, expected.index(c)))
    for _, svg in drawings:
        root = ElementTree.fromstring(svg)
        lines = [path for path in root.iter("path") if (path.get("class") or "").startswith("line ")]
        assert len(lines) == 3
        behind = [path for path in root.iter("path") if (path.get("class") or "").startswith("seed ")]
        assert sorted((path.get("d") or "").count("M") for path in behind) == [2, 3]  # not behind the single run
        for path in lines:
            numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.get("d") or "")]
            assert all(0 <= x <= WIDTH for x in numbers[::2])


def test_tables_for_other_programs(folder: Path) -> None:
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    by_key = {(row["method"], row["seed"]): row for row in rows}
    row = by_key["FedProx", "1"]
    assert (float(row["eval/accuracy"]), row["status"], row["rounds"]) == (0.9, "finished", "10")
    assert (float(row["spent/MB"]), float(row["target/rounds"]), float(row["target/MB"])) == (30, 9, 27)
    assert row["command"] == "fedsim algorithm=fedprox rounds=10 seed=1"
    assert row["config/algorithm.mu"] == "0.01"
    late = next(row for row in rows if row["status"] == "unfinished")
    assert (late["target/rounds"], late["digest"]) == ("", "")


def test_markdown_latex_and_bibtex_are_there(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert "| FedProx | 2 | **0.85, 0.9** |" in text
    assert "```bash\nfedsim -m algorithm=fedprox rounds=10 seed=0,1\n```" in text
    assert r"FedProx & 2 & \textbf{0.85, 0.9}" in (folder / "table.tex").read_text()
    assert "@inproceedings{li2020federated," in (folder / "papers.bib").read_text()
    assert (folder / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_tensorboard_shows_the_comparison_and_no_further_run(folder: Path) -> None:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert set(events.Tags()["images"]) == {"comparison/accuracy", "comparison/loss"}
    assert metadata.SESSION_START_INFO_TAG not in events.summary_metadata


def test_a_second_report_replaces_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", config(), [{"round": 0, "eval/loss": 2.0}, {"round": 1, "eval/loss": 1.0}])
    found = []
    for _ in range(2):
        assert main([str(tmp_path)]) == 0
        assert "1 run (1 finished)" in (tmp_path / "report" / "report.html").read_text()
        found.append({path.name: path.read_bytes() for path in (tmp_path / "report").iterdir() if path.is_file()})
    assert found[0] == found[1]
    assert len(list((tmp_path / "report" / "tensorboard").iterdir())) == 1
    assert "wrote" in capsys.readouterr().out


def test_broken_folders_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder.parent), "--out", str(folder.parent / "again"), "--no-figures"]) == 0
    assert "left out: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "accuracy"], "--target must be METRIC=VALUE"),
        (["--baseline", "FedSpeed"], "--baseline must be one of the methods, got 'FedSpeed'; methods: "),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder.parent), "--no-figures", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_no_runs_is_a_mistake_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "got none below" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_all_but_parquet_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(tmp_path / "runs", {"fedavg": [0.8]})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pyarrow" else pytest.fail(name))
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--no-figures"]) == 0
    assert "it needs pyarrow; pip install" in capsys.readouterr().out.replace("\n", " ")
    names = {"report.html", "report.md", "table.tex", "papers.bib", "results.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_parquet_holds_what_csv_holds(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `report` is not installed")
    sweep(tmp_path / "runs", {"fedavg": [0.8, 0.9], "fedprox": [0.85, 0.7]})
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path), "--no-figures"]) == 0
    rows = parquet.read_table(tmp_path / "results.parquet").to_pylist()
    with (tmp_path / "results.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [{key: "" if v is None else str(v) for key, v in row.items()} for row in rows] == written


def test_one_run_of_one_seed_makes_a_report(tmp_path: Path) -> None:
    write_run(tmp_path / "run", config(), records([0.1]), status=None)
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--no-figures"]) == 0
    Checked((tmp_path / "out" / "report.html").read_text())


def test_a_report_costs_no_torch(tmp_path: Path) -> None:
    sweep(tmp_path, {"fedavg": [0.8]})
    code = (
        "import sys; from fedsim.report.__main__ import main; import fedsim.report.curve_files; "
        f"assert main([{str(tmp_path)!r}, '--no-figures']) == 0; "
        "assert not {'torch', 'ray', 'hydra'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_ticks_are_round_and_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        low = float(rng.normal() * 10 ** rng.uniform(-4, 5))
        high = low + float(10 ** rng.uniform(-4, 5))
        ticks = Scale(low, high, 0, 100, False).ticks(6)
        assert 2 <= len(ticks) <= 8
        assert all(low - 1e-9 * (high - low) <= tick <= high + 1e-9 * (high - low) for tick in ticks)
        assert np.ptp(np.diff(ticks)) < 1e-6 * (high - low)
        low = float(10 ** rng.uniform(-9, 3))
        high = low * float(10 ** rng.uniform(0.05, 12))
        ticks = Scale(low, high, 0, 100, True).ticks(6)
        assert 2 <= len(ticks) <= 8
        assert all(low * (1 - 1e-9) <= tick <= high * (1 + 1e-9) for tick in ticks)


def test_a_chart_puts_points_where_they_belong() -> None:
    line = Line("a", 0, np.array([0.0, 5.0, 10.0]), np.array([1.0, 3.0, 2.0]), np.full(3, np.nan))
    root = ElementTree.fromstring(chart([line], x="x", y="y"))
    (path,) = [p for p in root.iter("path") if p.get("class") == "line s0"]
    (x0, y0), (x1, y1), (x2, y2) = [[float(n) for n in p.split()] for p in (path.get("d") or "")[1:].split("L")]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert x2 == WIDTH - 12 - LABELS
    assert (y0 - y1) / 2 == pytest.approx(y2 - y1, abs=0.2)
    assert not [p for p in root.iter("path") if (p.get("class") or "").startswith("band")]


def test_a_chart_thins_long_lines_and_survives_odd_ones() -> None:
    many = np.arange(10_000.0)
    svg = chart([Line("a", 1, many, many, many)], x="x", y="y", log_x=True, log_y=True)
    path = re.search(r'class="line s1" d="([^"]*)"', svg)
    assert path is not None
    assert POINTS / 2 < path[1].count("L") + 1 <= POINTS
    constant = Line("c", 2, np.array([3.0]), np.array([0.0]), np.array([np.nan]))
    assert "<circle" in chart([constant], x="x", y="y")
    nothing = Line("n", 2, np.array([1.0]), np.array([np.nan]), np.array([np.nan]))
    assert chart([nothing, constant], x="x", y="y", log_y=True) == '<p class="none">nothing to draw</p>'
    flat = Line("<&>", 2, np.array([1.0, 2.0]), np.array([5.0, 5.0]), np.array([1.0, 1.0]))
    ElementTree.fromstring(chart([flat], x="x", y="y", goal=5.0))


def test_a_band_ends_where_values_do() -> None:
    x, y, half = np.arange(3.0), np.array([0.2, 0.9, 0.95]), np.full(3, 0.5)
    free, cut = (
        re.search(r'class="band s0" d="M([^"]*)Z"', chart([Line("a", 0, x, y, half, None, ends)], x="x", y="y"))
        for ends in ((-np.inf, np.inf), (0.3, 0.9))
    )
    assert free is not None
    assert cut is not None
    heights = [[float(p.split()[1]) for p in found[1].split("L")] for found in (free, cut)]
    assert np.ptp(heights[1]) < np.ptp(heights[0])
    assert len(set(heights[1])) < 6  # flat where it is cut


def test_smoothing_is_said_on_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = sweep(tmp_path, {"fedavg": [0.8, 0.9]})
    assert main([str(runs), "--smooth", "5", "--no-figures"]) == 0
    assert "a point is the mean of a run&#x27;s last 5 evaluations" in (runs / "report/report.html").read_text()
    assert main([str(runs), "--smooth", "0"]) == 2
    assert "--smooth must be a number of evaluations >= 1, got 0" in capsys.readouterr().err


def test_labels_at_the_ends_do_not_cover_each_other() -> None:
    lines = [Line(str(i), i, np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.full(2, np.nan)) for i in range(8)]
    root = ElementTree.fromstring(chart(lines, x="x", y="y"))
    heights = sorted(float(t.get("y") or 0) for t in root.iter("text") if (t.get("class") or "").startswith("end"))
    assert len(heights) == 8
    assert min(np.diff(heights)) > 14


def test_the_style_sheet_has_every_style_and_the_palette_of_the_figures() -> None:
    import fedsim.report

    css = (Path(fedsim.report.__file__).parent / "page.css").read_text()
    assert all(f".line.s{style}," in css for style in range(STYLES))
    assert all(f"--s{number}:{colour}" in css for number, colour in enumerate(PALETTE))


def test_a_sweeps_records_tell_commands_failures_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        status = "finished" if seed == 0 else None
        write_run(tmp_path / f"fedavg-seed{seed}", config(FEDAVG, seed), records(rising(0.8)), status=status)
    (tmp_path / "sweep.json").write_text("{}")
    (tmp_path / "jobs").mkdir()
    jobs = [
        ("fedavg-seed0", "finished", ""),
        ("fedavg-seed1", "failed", "the disk is full"),
        ("fedavg-seed2", "failed", "no such data"),
        ("fedavg-seed3", "pending", ""),
        ("fedavg-seed4", "pending", ""),
    ]
    for number, (name, status, message) in enumerate(jobs):
        overrides = ["algorithm=fedavg", f"seed={name[-1]}", "channel=[topk]"]
        record = {"folder": name, "status": status, "message": message, "overrides": overrides}
        (tmp_path / "jobs" / f"{number:016x}.json").write_text(json.dumps(record))
    (tmp_path / "jobs" / "odd.json").write_text("{")
    assert main([str(tmp_path), "--no-figures"]) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "2 runs (1 failed, 1 finished)" in text
    assert "fedsim -m algorithm=fedavg 'channel=[topk]' seed=0,1" in text
    assert "fedavg-seed2 failed before its first round: no such data" in text
    assert f"2 of the jobs of {tmp_path.resolve()} left no run yet" in text
    assert "| FedAvg | 1 finished, 1 failed |" in text
    assert "fedavg-seed1 (the disk is full)" in text
    assert "no such data" in capsys.readouterr().out.replace("\n", " ")
