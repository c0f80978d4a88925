"""Final values, pairs and costs of synthetic sweeps whose answers are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedsim.report.compare import Comparison, compare
from fedsim.report.curves import curve
from fedsim.report.methods import settings
from fedsim.report.runs import find_runs, read_run
from fedsim.report.statistics import Estimate, estimate
from fedsim.report.tables import Table, costs, latex, markdown, plus_minus, results_table, tex
from tests.report.folders import FEDAVG, FEDPROX, config, records, rising, sweep, write_run

FINALS = {"fedavg": [0.80, 0.84, 0.82], "fedprox": [0.85, 0.90, 0.86]}


def compared(folder: Path, **how: Any) -> Comparison:
    found, _ = settings([read_run(path) for path in find_runs([folder])])
    assert len(found) == 1
    return compare(found[0], **how)


def column(table: Table, name: str) -> dict[str, str]:
    at = table.columns.index(name)
    return {row[0].text: row[at].text for row in table.rows}


def test_final_values_and_paired_differences(tmp_path: Path) -> None:
    comparison = compared(sweep(tmp_path, FINALS))
    best, base = comparison.rows
    assert (best.method.label, base.method.label, comparison.baseline) == ("FedProx", "FedAvg", "FedAvg")
    assert best.final.values["eval/accuracy"].mean == pytest.approx(np.mean(FINALS["fedprox"]))
    assert best.final.values["eval/loss"].mean == pytest.approx(2 * (1 - np.mean(FINALS["fedprox"])))
    interval = stats.ttest_rel(FINALS["fedprox"], FINALS["fedavg"]).confidence_interval(0.95)
    found = best.difference
    assert found is not None
    assert found.half is not None
    np.testing.assert_allclose([found.mean - found.half, found.mean + found.half], interval)
    assert base.difference is None
    assert best.final.values["MB"] == Estimate(30.0, 0.0, 3)
    assert column(results_table(comparison), "runs") == {"FedProx": "3", "FedAvg": "3"}
    assert column(results_table(comparison), "paired difference") == {"FedProx": "+0.050 ± 0.025", "FedAvg": "baseline"}
    assert [[cell.best for cell in row[2:3]] for row in results_table(comparison).rows] == [[True], [False]]


def test_a_loss_is_better_when_it_is_lower(tmp_path: Path) -> None:
    comparison = compared(sweep(tmp_path, FINALS), metrics=["eval/loss"])
    assert [row.method.label for row in comparison.rows] == ["FedProx", "FedAvg"]
    table = results_table(comparison)
    cell = table.rows[0][table.columns.index("paired difference")]
    assert (cell.text, cell.sign) == ("-0.100 ± 0.050", 1)
    assert comparison.target == ("eval/loss", pytest.approx(1.8 + 0.95 * (2 * (1 - 0.87) - 1.8), rel=1e-2))


def test_the_default_target_is_95_percent_of_the_way_to_the_best(tmp_path: Path) -> None:
    comparison = compared(sweep(tmp_path, FINALS))
    assert comparison.target == ("eval/accuracy", pytest.approx(0.1 + 0.95 * (0.87 - 0.1), abs=0.0006))
    table = costs(comparison)
    assert table is not None
    assert column(table, "runs that reach it") == {"FedProx": "3 of 3", "FedAvg": "1 of 3"}


def test_costs_of_a_given_target(tmp_path: Path) -> None:
    comparison = compared(sweep(tmp_path, FINALS), target=("eval/accuracy", 0.81))
    table = costs(comparison)
    assert table is not None
    assert table.title == "Cost of accuracy 0.81"
    # FedProx rises by 0.075, 0.08, 0.076 a round from 0.1: rounds 10, 9, 10; FedAvg by 0.07, 0.074, 0.072: -, 10, 10
    assert column(table, "rounds") == {"FedProx": plus_minus(Estimate(29 / 3, 1.434218, 3)), "FedAvg": "10"}
    assert column(table, "MB")["FedAvg"] == "30"
    assert [row[2].best for row in table.rows] == [True, False]


def test_pairs_need_the_same_partition(tmp_path: Path) -> None:
    sweep(tmp_path, {"fedavg": [0.8, 0.8, 0.8]})
    for seed, partition in enumerate(["p0", "other", None]):
        write_run(tmp_path / f"p{seed}", config(FEDPROX, seed), records(rising(0.9)), partition=partition)
    comparison = compared(tmp_path)
    assert comparison.rows[0].difference == Estimate(pytest.approx(0.1), None, 1)
    assert column(results_table(comparison), "paired difference")["FedProx"] == "+0.1 (1 pair)"
    assert list(comparison.unpaired) == [
        "FedProx, seed 1: another partition than FedAvg's",
        "FedProx, seed 2: no partition digest on record, so perhaps another partition than FedAvg's",
    ]


def test_only_finished_runs_count_where_there_are_some(tmp_path: Path) -> None:
    sweep(tmp_path, {"fedavg": [0.8, 0.9]})
    write_run(tmp_path / "running", config(FEDAVG, 2), records(rising(0.1, 3)), status=None)
    write_run(tmp_path / "bad", config(FEDAVG, 3), records([0.1, None]), status="diverged")
    comparison = compared(tmp_path)
    (row,) = comparison.rows
    assert row.final.values["eval/accuracy"].mean == pytest.approx(0.85)
    assert row.final.values["eval/accuracy"].count == 2
    assert column(results_table(comparison), "runs") == {"FedAvg": "2 finished, 1 unfinished, 1 diverged"}


def test_a_method_on_its_way_shows_its_last_common_evaluation(tmp_path: Path) -> None:
    for seed, rounds in enumerate((7, 9)):
        write_run(tmp_path / f"r{seed}", config(FEDAVG, seed), records(rising(0.9, rounds, 0.0), every=3), status=None)
    sweep(tmp_path, {"fedprox": [0.2, 0.3]})
    comparison = compared(tmp_path)
    row = comparison.rows[1]  # after the finished method, though it is better
    assert (row.method.label, row.final.complete, row.final.at) == ("FedAvg", False, 6)
    assert row.final.values["eval/accuracy"].mean == pytest.approx((0.9 * 6 / 7 + 0.9 * 6 / 9) / 2)
    assert row.final.values["rounds"].mean == 6
    assert column(results_table(comparison), "accuracy")["FedAvg"].endswith(" (round 6)")
    assert comparison.rows[0].difference is None  # nothing to pair with


def test_nothing_evaluated_yet(tmp_path: Path) -> None:
    write_run(tmp_path / "run", config(), [{"round": 0, "time/evaluate_s": 0.1}], status=None)
    comparison = compared(tmp_path)
    assert (comparison.metrics, comparison.target) == (("eval/loss",), None)
    assert column(results_table(comparison), "loss") == {"FedAvg": "–"}
    assert costs(comparison) is None


def test_curves_average_what_was_evaluated_at_the_same_round(tmp_path: Path) -> None:
    rows = records([0.1, 0.2, 0.3, 0.4], every=2)
    short = write_run(tmp_path / "a", config(seed=0), rows[:3])
    write_run(tmp_path / "b", config(seed=1), records([0.3, 0.4, 0.5, 0.6], every=1))
    found = curve([read_run(short), read_run(tmp_path / "b")], "eval/accuracy")
    assert found is not None
    assert found.rounds.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(found.mean, [0.2, 0.4, 0.4, 0.6])
    assert np.isnan(found.half).all()  # of two runs there are the runs
    np.testing.assert_array_equal(found.seeds, [[0.1, np.nan, 0.3, np.nan], [0.3, 0.4, 0.5, 0.6]])
    np.testing.assert_allclose(found.axes["MB"], [0, 3, 6, 9])
    assert "epsilon" not in found.axes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Estimate(0.89693, 0.01234, 3), "0.897 ± 0.012"),
        (Estimate(0.89693, None, 1), "0.8969"),
        (estimate([0.8, 0.95]), "0.8, 0.95"),
        (estimate([30.0, 30.0]), "30"),
        (estimate([0.7, 0.98, 0.99], (0.0, 1.0)), "0.89 [0.48, 1.00]"),
        (Estimate(1234.5, 321.0, 3), "1,234 ± 321"),
        (Estimate(96.08, 4e-14, 3), "96.08 ± 0"),
        (Estimate(5.0, 0.0, 3), "5 ± 0"),
        (Estimate(1.5e-9, 2e-10, 3), "1.5e-09 ± 2e-10"),
        (None, "–"),
    ],
)
def test_numbers_are_rounded_to_their_uncertainty(value: Estimate | None, text: str) -> None:
    assert plus_minus(value) == text


def test_of_two_seeds_both_are_shown_and_nothing_is_sure(tmp_path: Path) -> None:
    comparison = compared(sweep(tmp_path, {"fedavg": [0.80, 0.84], "fedprox": [0.85, 0.83]}))
    table = results_table(comparison)
    assert column(table, "accuracy") == {"FedProx": "0.85, 0.83", "FedAvg": "0.8, 0.84"}
    assert column(table, "paired difference") == {"FedProx": "+0.05, -0.01", "FedAvg": "baseline"}
    assert {cell.sign for row in table.rows for cell in row} == {0}


def test_smoothing_is_of_each_run_before_the_mean_and_leaves_tables_alone(tmp_path: Path) -> None:
    sweep(tmp_path, FINALS)
    plain, smooth = compared(tmp_path), compared(tmp_path, smooth=4)
    assert results_table(plain) == results_table(smooth)
    assert costs(plain) == costs(smooth)
    raw, found = (c.rows[0].curves["eval/accuracy"] for c in (plain, smooth))
    np.testing.assert_allclose(found.seeds[:, 5], raw.seeds[:, 2:6].mean(axis=1))
    np.testing.assert_allclose(found.seeds[:, 1], raw.seeds[:, :2].mean(axis=1))
    np.testing.assert_allclose(found.mean, found.seeds.mean(axis=0))


def test_markdown_and_latex(tmp_path: Path) -> None:
    table = results_table(compared(sweep(tmp_path, FINALS)))
    lines = markdown(table).splitlines()
    assert {line.count("|") for line in lines} == {len(table.columns) + 1}
    assert "**0.870 ± 0.066**" in lines[2]
    text = latex(table, "a_b")
    assert text.count("&") == 3 * (len(table.columns) - 1)
    assert r"\textbf{0.870 $\pm$ 0.066}" in text
    assert r"\caption{a\_b}" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2


def test_latex_escapes() -> None:
    assert tex("a_b>c & 5% {x} ~^\\ – #1") == (
        r"a\_b\textgreater{}c \& 5\% \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} -- \#1"
    )
    assert tex("-0.1 ± 0.2") == r"$-$0.1 $\pm$ 0.2"


def test_nan_at_the_end_leaves_the_last_number(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config(), records([0.1, 0.5, None]))
    row = compared(tmp_path).rows[0]
    assert row.final.values["eval/accuracy"] == Estimate(0.5, None, 1)
    assert math.isclose(row.final.values["rounds"].mean, 1)
