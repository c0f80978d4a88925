"""Figures: what their axes say and show, read back from the artists and from the pixels."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from fedsim.record.figures import confusion, curves, split_by_client


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def ink(figure):
    """Share of the pixels that are not white."""
    return (pixels(figure) < 250).any(axis=2).mean()


def counts_of(clients, classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.dirichlet(np.full(classes, 0.3), size=clients) * 50)


def test_split_of_few_clients_shows_each_in_its_place():
    counts = counts_of(20, 10)
    figure = split_by_client(counts, "digits, dirichlet")
    sizes, cells, bar = figure.axes
    assert figure.get_suptitle() == "digits, dirichlet"
    assert (cells.get_xlabel(), cells.get_ylabel()) == ("client", "class")
    assert sizes.get_ylabel() == "samples"
    assert bar.get_ylabel() == "samples of a class"
    image = cells.images[0]
    assert image.get_array().filled(0).tolist() == counts.T.tolist()
    assert image.origin == "lower"
    assert image.get_extent() == [-0.5, 19.5, -0.5, 9.5]
    assert sizes.get_xlim() == cells.get_xlim() == (-0.5, 19.5)
    values, edges, _ = sizes.patches[0].get_data()
    assert values.tolist() == counts.sum(axis=1).tolist()
    assert edges.tolist() == [client - 0.5 for client in range(21)]
    assert ink(figure) > 0.2


def test_split_of_many_clients_is_ordered_by_largest_class_and_keeps_every_sample():
    counts = counts_of(1000, 10)
    figure = split_by_client(counts, "cifar10")
    cells = figure.axes[1]
    assert cells.get_xlabel().startswith("client, ordered by largest class")
    shown = cells.images[0].get_array().filled(0)  # [classes, columns]
    assert shown.shape == (10, 400)
    assert (shown.mean(axis=1) / counts.mean(axis=0)).tolist() == pytest.approx([1] * 10, rel=0.05)
    assert cells.get_xlim() == (-0.5, 999.5)
    # the staircase: a class is the largest one only where its clients are
    largest = np.repeat(np.arange(10), np.bincount(counts.argmax(axis=1), minlength=10))
    on = shown[largest[(np.arange(400) + 0.5).astype(int) * 1000 // 400], np.arange(400)]
    assert on.mean() > 3 * shown.mean()
    assert ink(figure) > 0.2


def test_between_the_two_sizes_clients_are_ordered_but_not_averaged():
    counts = counts_of(100, 5)
    shown = split_by_client(counts, "").axes[1].images[0].get_array().filled(0)
    assert sorted(map(tuple, shown.T.tolist())) == sorted(map(tuple, counts.tolist()))
    assert (np.diff(shown.argmax(axis=0)) >= 0).all()


@pytest.mark.parametrize("clients", [1, 20, 5000])
def test_data_without_classes_shows_sizes_alone(clients):
    figure = split_by_client(np.arange(1, clients + 1)[:, None], "quadratic")
    (axes,) = figure.axes
    assert axes.get_xlabel().startswith("client")
    assert axes.get_xlim() == (-0.5, clients - 0.5)
    values, _, _ = axes.patches[0].get_data()
    assert np.mean(values) == pytest.approx((clients + 1) / 2, rel=0.01)
    assert ink(figure) > 0.1


def test_empty_cells_are_white_and_full_ones_are_dark():
    cells = split_by_client(np.array([[40, 0], [0, 40]]), "").axes[1]
    canvas = pixels(cells.figure)
    height = canvas.shape[0]

    def colour(client, label):
        x, y = cells.transData.transform((client, label))
        return canvas[height - 1 - int(y), int(x)].tolist()

    assert colour(0, 1) == colour(1, 0) == [255, 255, 255]
    assert max(colour(0, 0)) < 120
    assert colour(0, 0) == colour(1, 1)


def test_confusion_shows_shares_of_the_true_class_and_numbers():
    matrix = np.array([[8, 2, 0], [0, 5, 0], [1, 0, 4]])
    figure = confusion(matrix)
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert axes.get_title() == "accuracy 85.0%"
    assert bar.get_ylabel() == "share of the true class"
    shown = axes.images[0].get_array().filled(0)
    assert shown.tolist() == [[0.8, 0.2, 0], [0, 1, 0], [0.2, 0, 0.8]]
    assert axes.images[0].get_clim() == (0, 1)
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {
        ((0, 0), "8"),
        ((1, 0), "2"),  # true 0, predicted 1: x is the prediction
        ((1, 1), "5"),
        ((0, 2), "1"),
        ((2, 2), "4"),
    }
    assert axes.get_ylim() == (2.5, -0.5)  # true class 0 on top
    assert ink(figure) > 0.2


def test_confusion_of_many_classes_has_no_numbers_and_an_absent_class_no_division_by_zero():
    matrix = np.diag(np.arange(100))
    figure = confusion(matrix)
    assert not figure.axes[0].texts
    assert figure.axes[0].images[0].get_array().filled(0).trace() == 99
    assert ink(figure) > 0.02
    assert confusion(np.zeros((2, 2), dtype=int)).axes[0].get_title() == "accuracy 0.0%"


def test_pictures_touch_no_global_state():
    code = (
        "import sys, numpy as np, fedsim.record.figures as f;"
        "f.confusion(np.eye(3)); f.split_by_client(np.ones((3, 2)), '');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_curves_are_told_apart_by_colour_and_dashes_and_leave_out_what_has_no_logarithm():
    xs = np.array([0.0, 1.0, 10.0, 100.0])
    series = {"EC": (xs, np.array([3.0, 2.0, 0.0, -1.0])), "EF21": (xs, xs + 1), "none": (xs, xs + 2)}
    axes = curves(series, "loss", x="megabytes", y="loss", log=("x", "y")).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("megabytes", "loss", "loss")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(series)
    lines = axes.lines
    assert lines[0].get_xydata().tolist() == [[1.0, 2.0]]
    assert lines[1].get_xydata().tolist() == [[1.0, 2.0], [10.0, 11.0], [100.0, 101.0]]
    assert len({line.get_color() for line in lines}) == len({line.get_linestyle() for line in lines}) == 3
    figure = curves(series, "loss", x="rounds", y="loss", log=("y",))
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("linear", "log")
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[0.0, 3.0], [1.0, 2.0]]
    small = curves({"a": (xs, np.geomspace(1, 1e-6, 4))}, "", x="", y="", log=("y",)).axes[0]
    assert 1e-8 < small.get_ylim()[0] < 1e-6  # the axis is that of the logarithms
    assert ink(figure) > 0.01
    plain = curves(series, "", x="", y="").axes[0]
    assert plain.get_yscale() == "linear"
    assert plain.lines[0].get_xydata().tolist() == [[0.0, 3.0], [1.0, 2.0], [10.0, 0.0], [100.0, -1.0]]


def test_ten_curves_repeat_no_pair_of_colour_and_dashes():
    line = (np.arange(3.0), np.arange(3.0))
    axes = curves({str(number): line for number in range(10)}, "", x="", y="").axes[0]
    assert len({(each.get_color(), str(each._unscaled_dash_pattern)) for each in axes.lines}) == 10


def test_bands_and_single_runs_have_the_colours_of_their_lines_and_do_not_widen_the_axes():
    xs = np.arange(4.0)
    series = {"a": (xs, xs), "b": (xs, 2 * xs)}
    halves = {"a": np.array([np.nan, 1.0, 1.0, 50.0]), "b": np.full(4, np.nan)}
    runs, unbounded = {"a": np.stack([xs - 9, xs + 9]), "b": xs[None]}, (-np.inf, np.inf)
    behind = {name: (runs[name], halves[name], unbounded) for name in series}
    plain, banded = (curves(series, "", x="", y="", behind=b).axes[0] for b in (None, behind))
    assert [line.get_color() for line in banded.lines[2:]] == [banded.lines[0].get_color()] * 2
    assert banded.get_ylim() == plain.get_ylim()
    assert len(plain.collections) == 0
    (band,) = banded.collections
    assert to_hex(band.get_facecolor()[0]) == banded.lines[0].get_color()
    outline = band.get_paths()[0].vertices
    assert {(1.0, 0.0), (1.0, 2.0), (3.0, -47.0), (3.0, 53.0)} <= {(x, y) for x, y in outline}
    assert outline[:, 0].min() == 1.0
    cut = curves(series, "", x="", y="", behind=behind | {"a": (runs["a"], halves["a"], (0.0, 3.5))}).axes[0]
    heights = cut.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.0, 3.5)
