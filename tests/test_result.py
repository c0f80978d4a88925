"""What one can do with a result: a line, a table, a drawing; and what a notebook shows."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from fedsim import Evaluate, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.errors import InputError
from fedsim.ground import notebook
from fedsim.ground.console import Progress, number
from fedsim.models import linear_zero
from fedsim.partition import Natural
from fedsim.record import result as result_module
from fedsim.record.result import Result
from tests.conftest import Quadratics


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    parts: dict[str, Any] = {"data": Quadratics().dataset(), "partition": Natural(), "model": linear_zero, "rounds": 4}
    folder = tmp_path_factory.mktemp("result") / "<run>"
    return simulate(FedAvg(lr=0.05), **parts, evaluate=Evaluate(every=2), name="mine", run_dir=folder)


def test_a_line_says_what_it_came_to(result: Result) -> None:
    line = repr(result)
    assert re.fullmatch(r"<Result mine: finished, 4 rounds, loss \S+, digest [0-9a-f]{8}, in .*<run>>", line)
    assert number(result.metrics[-1]["eval/loss"]) in line
    assert len(line) < 300


class Text(HTMLParser):
    """The words of a table, cell by cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


def test_a_notebook_shows_a_table_in_which_names_are_text(result: Result) -> None:
    cells = Text(result._repr_html_()).cells
    assert cells[:3] == ["mine", "status", "finished"]
    found = dict(zip(cells[1::2], cells[2::2], strict=True))
    assert found["loss"].startswith(number(result.metrics[-1]["eval/loss"]))
    assert found["digest"].startswith(result.summary["digest"][:16])
    assert found["folder"] == str(result.run_dir)


def test_a_frame_has_a_row_for_each_round_and_a_column_for_each_tag(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    pandas = pytest.importorskip("pandas")
    frame = result.frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["round"].tolist() == [0, 1, 2, 3, 4]
    assert frame["eval/loss"].isna().tolist() == [False, True, False, True, False]
    assert frame["eval/loss"].dropna().tolist() == [result.metrics[i]["eval/loss"] for i in (0, 2, 4)]
    assert set(frame.columns) == {tag for record in result.metrics for tag in record}
    monkeypatch.setattr(result_module, "find_spec", lambda name: None)
    columns = result.frame()
    assert isinstance(columns, dict)
    assert list(columns) == list(frame.columns)
    for tag, values in columns.items():
        np.testing.assert_array_equal(values, frame[tag].to_numpy())


def test_a_plot_is_a_figure_with_a_drawing_for_each_metric(result: Result) -> None:
    figure = result.plot("train/loss", "loss")
    assert isinstance(figure, Figure)
    first, second = figure.axes
    assert first.get_ylabel() == "train/loss"
    assert second.get_ylabel() == "loss"
    x, y = second.lines[0].get_data()
    assert list(x) == [0, 2, 4]
    assert list(y) == [result.metrics[i]["eval/loss"] for i in (0, 2, 4)]
    assert [axes.get_ylabel() for axes in result.plot().axes] == ["loss"]
    png: Any = figure
    assert png._repr_png_().startswith(b"\x89PNG"), "a notebook shows it without pyplot"
    with pytest.raises(InputError, match=r"metrics must be tags of this run's records \(.*eval/loss.*\), got 'f1'"):
        result.plot("f1")


class Shown:
    """IPython's display, and what it was told."""

    def __init__(self) -> None:
        self.first: list[dict[str, str]] = []
        self.updates: list[dict[str, str]] = []

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> Shown:
        assert raw
        assert display_id
        self.first.append(content)
        return self

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.updates.append(content)


@pytest.mark.parametrize("wait", [0.0, 1e9])
def test_progress_in_a_notebook_is_one_bar_which_is_updated(wait: float, monkeypatch: pytest.MonkeyPatch) -> None:
    display = pytest.importorskip("IPython.display")
    shown = Shown()
    monkeypatch.setattr(display, "display", shown.display)
    monkeypatch.setattr(notebook, "EVERY_S", wait)
    out = io.StringIO()
    with Progress(20, Console(file=out, force_jupyter=True)) as bar:
        bar.status("reading <data>")
        for done in range(21):
            bar.update({"round": done, "eval/accuracy": done / 40})
    assert len(shown.first) == 1, "one output of the cell"
    assert "reading &lt;data&gt;" in shown.first[0]["text/html"]
    assert len(shown.updates) == (21 if wait == 0 else 1), "not more often than can be seen, and the last one always"
    last = shown.updates[-1]
    assert last["text/plain"].startswith("round 20/20  accuracy 0.5000  ")
    assert 'value="20" max="20"' in last["text/html"]
    assert out.getvalue() == "", "no lines beside it"


def test_a_run_that_failed_early_leaves_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    display = pytest.importorskip("IPython.display")
    shown = Shown()
    monkeypatch.setattr(display, "display", shown.display)
    with pytest.raises(ZeroDivisionError), Progress(20, Console(file=io.StringIO(), force_jupyter=True)):
        raise ZeroDivisionError
    assert shown.first == []
