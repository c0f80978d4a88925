"""Events in virtual time: how they are drawn, put into waves, and executed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedsim import Engine, Local
from fedsim.algorithms.a2cid2 import A2CiD2
from fedsim.algorithms.ad_psgd import ADPSGD
from fedsim.algorithms.dadao import DADAO
from fedsim.algorithms.kit.protocols import Constants
from fedsim.channel import wire
from fedsim.errors import Diverged, InputError
from fedsim.runs.events import Timeline, draw_events, graphs_of, levels, too_slow, waves
from fedsim.schedule import Events
from fedsim.topology import BaseKPlus1, ErdosRenyi, ExponentialDirected, Ring, chi1, chi2, edge_rates
from tests.conftest import Quadratics
from tests.virtual import FULL, Irregular, finish, virtual


def timeline(n: int = 10, until: float = 200.0, seed: int = 0) -> Timeline:
    return draw_events(n, graphs_of(Irregular(), n, seed, Events(until)).periods, until, seed)


def test_clocks_are_poisson() -> None:
    """Counts of independent Poisson variables: their chi-squared statistic has mean k and variance 2 k (and more)."""
    until = 2000.0
    events = timeline(until=until)
    rates = edge_rates(Irregular().graph(10), "minimal")
    counts = np.bincount(events.i[events.j < 0], minlength=10)
    pairs = dict.fromkeys(map(tuple, Irregular().mixing(10, 0, 0).edges.tolist()), 0)
    for i, j in zip(events.i[events.j >= 0].tolist(), events.j[events.j >= 0].tolist(), strict=True):
        pairs[i, j] += 1
    found = np.concatenate([counts, list(pairs.values())])
    expected = until * np.concatenate([np.ones(10), rates])
    statistic = float((np.square(found - expected) / expected).sum())
    assert abs(statistic - len(found)) < 4 * np.sqrt(2 * len(found))
    gaps = np.diff(events.t[(events.j < 0) & (events.i == 3)])
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.1)  # exponential: 4 / sqrt(2000) is 0.09
    assert (np.diff(events.t) >= 0).all()
    assert events.t[0] > 0
    assert events.t[-1] <= until


def test_later_events_change_no_earlier_one() -> None:
    long, short = timeline(until=400.0), timeline(until=150.0)
    k = len(short.t)
    assert 3000 < k < len(long.t)
    for whole, start in zip(long, short, strict=True):
        np.testing.assert_array_equal(whole[:k], start)
    np.testing.assert_array_equal(levels(long, 10)[:k], levels(short, 10))
    assert (timeline(seed=1).t[:20] != long.t[:20]).any()


def test_levels_keep_every_peers_order_and_waves_hold_disjoint_peers() -> None:
    events = timeline(until=50.0)
    level = levels(events, 10)
    peers = [(events.i == p) | (events.j == p) for p in range(10)]
    for mine in peers:
        assert (np.diff(level[mine]) > 0).all()
    for e in range(len(level)):  # each waits for nothing but an event that it shares a peer with
        before = [f for p in {events.i[e], events.j[e]} - {-1} for f in np.flatnonzero(peers[p][:e])]
        assert level[e] == 1 + max((level[f] for f in before), default=-1)
    first, last = 40, 200
    cut = list(waves(level, first, last))
    assert sorted(e for _, wave in cut for e in wave) == list(range(first, last))
    assert [number for number, _ in cut] == sorted(set(level[first:last].tolist()))
    assert all((level[wave] == number).all() and (np.diff(wave) > 0).all() for number, wave in cut)
    assert list(waves(level, 7, 7)) == []


@pytest.mark.parametrize("rule", [DADAO(0.1, 4.0), A2CiD2(lr=0.05, momentum=0.9)], ids=lambda r: type(r).__name__)
def test_waves_are_the_events_one_by_one(rule: DADAO | A2CiD2) -> None:
    """With minibatches and a measurement after every event, which makes each a wave of its own."""
    data, local = Quadratics(n=10, m=9), Local(steps=2, batch_size=3)
    run = virtual(rule, Irregular(), data, Events(4.0), local=local)
    each = tuple(run.events.t.tolist())
    *_, together = finish(run)
    alone = virtual(rule, Irregular(), data, Events(4.0, (*each, 4.0)), local=local)
    *_, last = finish(alone)
    assert len(each) > 80
    assert len(np.unique(run.levels)) < len(each) / 2
    np.testing.assert_allclose(together, last, rtol=0, atol=1e-12)  # blocks of other sizes: rounding
    assert run.traffic == alone.traffic


def test_a_measurement_changes_no_bit_and_minibatches_differ_between_events() -> None:
    data, local = Quadratics(n=10, m=9), Local(steps=1, batch_size=2)
    rule = A2CiD2(lr=0.05)
    runs = [
        virtual(rule, Ring(), data, Events(6.0, record), local=local) for record in ((2.0, 6.0), (2.0, 6.0 - 1e-9, 6.0))
    ]
    (early, late), (early_again, _, late_again) = map(finish, runs)
    np.testing.assert_array_equal(early, early_again)
    np.testing.assert_array_equal(late, late_again)
    full = finish(virtual(rule, Ring(), data, Events(6.0)))[0]
    assert np.abs(late - full).max() > 1e-3


def test_what_a_step_records() -> None:
    data = Quadratics(n=10, m=9)
    run = virtual(DADAO(0.1, 4.0), Ring(), data, Events(6.0), rounds=3)
    records = [run.evaluate(), *(run.step() for _ in range(3))]
    run.backend.close()
    edges = [int(((run.events.j >= 0) & (run.events.t <= t)).sum()) for t in (2, 4, 6)]
    each = 2 * wire.encoded_size({"yz": torch.zeros(4, dtype=torch.float64)})
    assert each >= 2 * 4 * 8
    assert [r["comm/edges_total"] for r in records[1:]] == edges
    assert [r["comm/edges"] for r in records[1:]] == np.diff([0, *edges]).tolist()  # per record, as in rounds
    assert [r["comm/edge_total_bytes"] for r in records[1:]] == [each * m for m in edges]
    assert [r["comm/edge_bytes"] for r in records[1:]] == [each * m for m in np.diff([0, *edges])]
    assert [r["time/virtual_s"] for r in records[1:]] == [2.0, 4.0, 6.0]
    assert [r["round"] for r in records[1:]] == [1, 2, 3]
    models = run.point().numpy()
    spread = np.sqrt(np.square(models - models.mean(0)).sum(1).mean())
    assert records[-1]["gossip/consensus_distance"] == pytest.approx(spread, rel=1e-12)
    loss = np.mean([0.5 * np.square(a @ models.mean(0) - b).sum() for a, b in zip(data.a, data.b, strict=True)])
    assert records[-1]["eval/loss"] == pytest.approx(loss, rel=1e-10)
    assert records[0]["gossip/consensus_distance"] < 1e-15


def test_a_snapshot_is_all_that_later_steps_depend_on() -> None:
    data, local = Quadratics(n=10, m=9), Local(steps=1, batch_size=2)
    runs = [virtual(A2CiD2(lr=0.05), Ring(), data, Events(6.0), local=local, rounds=4) for _ in range(3)]
    *_, whole = finish(runs[0])
    for _ in range(2):
        runs[1].step()
    runs[1].backend.close()
    runs[2].restore(runs[1].snapshot())
    *_, rest = finish(runs[2])
    np.testing.assert_array_equal(rest, whole)
    assert runs[2].traffic == runs[0].traffic
    assert runs[2].recent[-1]["round"] == 4


def test_a_run_that_diverges_keeps_its_last_states() -> None:
    run = virtual(ADPSGD(lr=1e6), Ring(), Quadratics(n=10, m=9), Events(500.0, (1.0, 500.0)))
    run.step()
    before = run.digest()
    with pytest.raises(Diverged):
        run.step()
    run.backend.close()
    assert run.digest() == before
    assert run.done == 1


def test_graphs_that_change_last_for_hold_units_of_time() -> None:
    """Every stretch has its own graph, and the constants are the worst."""
    topology = ErdosRenyi(p=0.4, fresh=True)
    graphs = graphs_of(topology, 8, 0, Events(5.0, hold=2.0))
    assert [(s.start, s.end) for s in graphs.periods] == [(0, 2), (2, 4), (4, 5)]
    mixings = [topology.mixing(8, r, 0) for r in range(3)]
    rates = [edge_rates(m.graph, "minimal") for m in mixings]
    assert graphs.constants.n == 8
    assert graphs.constants.chi1 == max(chi1(m.graph, r) for m, r in zip(mixings, rates, strict=True))
    assert graphs.constants.chi2 == max(chi2(m.graph, r) for m, r in zip(mixings, rates, strict=True))
    events = draw_events(8, graphs.periods, 5.0, 0)
    for t, i, j in zip(*events, strict=True):
        if j >= 0:
            assert [i, j] in mixings[min(2, int(t // 2))].edges.tolist()
    assert finish(virtual(DADAO(0.1, 4.0), topology, Quadratics(n=8), Events(5.0, hold=2.0)))[0].shape == (8, 4)


def test_graphs_without_events_are_refused() -> None:
    with pytest.raises(InputError, match="undirected"):
        graphs_of(ExponentialDirected(), 8, 0, Events())
    with pytest.raises(InputError, match="connected"):
        graphs_of(BaseKPlus1(), 8, 0, Events())


def test_rates_that_are_too_low_are_named() -> None:
    assert too_slow(DADAO(), Constants(4, 1.0, 0.5)) == ()
    assert too_slow(ADPSGD(lr=1.0), Constants(4, 9.0, 9.0)) == ()
    (line,) = too_slow(DADAO(), Constants(4, 2.0, 1.0))
    assert "DADAO" in line
    assert "2 times" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_end": 0.0}, "t_end"),
        ({"hold": 0.0}, "hold"),
        ({"record": ()}, "record"),
        ({"record": (2.0, 1.0)}, "ascending"),
        ({"record": (1.0, 1.0)}, "ascending"),
        ({"record": (-1.0,)}, "record"),
        ({"t_end": 5.0, "record": (6.0,)}, "t_end = 5"),
    ],
)
def test_impossible_schedules_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Events(**options)  # type: ignore[arg-type]


def test_measured_times() -> None:
    assert Events(10.0).times(4) == (2.5, 5.0, 7.5, 10.0)
    assert Events(10.0, (0.0, 3.0)).times(99) == (0.0, 3.0)
    run = virtual(A2CiD2(lr=0.1), Ring(), Quadratics(n=5), Events(10.0, (0.0, 3.0)), rounds=99)
    start, _ = finish(run)
    np.testing.assert_array_equal(start, np.tile(np.linspace(-1, 1, 4), (5, 1)))
    assert run.rounds == 2
    assert run.events.t[-1] <= 3.0


@pytest.mark.slow
def test_actors_give_the_bits_of_one_process() -> None:
    data, digests = Quadratics(n=10, m=9), set()
    serial = Engine(backend="serial", dtype="float64")
    for engine in (serial, replace(serial, backend="ray", actors=1), replace(serial, backend="ray", actors=2)):
        run = virtual(A2CiD2(lr=0.05), Ring(), data, Events(5.0), local=Local(steps=1, batch_size=4), engine=engine)
        finish(run)
        digests.add(run.digest())
    assert len(digests) == 1
    other = virtual(A2CiD2(lr=0.05), Ring(), data, Events(5.0), local=FULL)
    finish(other)
    assert other.digest() not in digests
