"""Events in virtual time: when each peer computes and each edge is used, drawn in advance and put into waves.

Independent Poisson clocks of several rates are one clock of their total rate that picks one of them in proportion. A
*wave* holds events of disjoint peers, which may happen together: the level of an event is one more than the highest
level before it at the peers that it needs, so that executing the levels one by one, in any order within a level, is
executing the events one by one. Levels and events are functions of the graph, the rates and the seed: no later event
and no recorded time changes an earlier event.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedsim.algorithms.kit.protocols import Constants
from fedsim.errors import InputError
from fedsim.ground import addresses
from fedsim.ground.later import networkx as nx
from fedsim.ground.rng import numpy_stream
from fedsim.schedule import Events
from fedsim.topology import Mixing, Topology, chi1, chi2, edge_rates
from fedsim.traits.declared import traits_of

CHUNK = 1024
"""Events drawn at once; fixed, for the rounding of the sums of waiting times depends on it."""


class Timeline(NamedTuple):
    """Events in order of time."""

    t: np.ndarray  # [m] float64, ascending
    i: np.ndarray  # [m] int64: the peer that computes, or one end of the edge
    j: np.ndarray  # [m] int64: the other end; -1 for a gradient event


class Period(NamedTuple):
    """A graph for some time."""

    start: float
    end: float
    edges: np.ndarray  # [m, 2] int64
    rates: np.ndarray  # [m] events per unit of time


class Graphs(NamedTuple):
    """The graphs of a run."""

    periods: tuple[Period, ...]
    constants: Constants  # the worst of theirs


def graphs_of(topology: Topology, n: int, seed: int, schedule: Events) -> Graphs:
    """The topology's graphs until ``schedule.t_end``: one for all time, or one for each ``schedule.hold``.

    Raises:
        InputError: a graph is directed or not connected.
    """
    t_end, hold = schedule.t_end, schedule.hold
    first = topology.mixing(n, 0, seed)
    count = 1 if first.static else int(np.ceil(t_end / hold))
    known: dict[int, tuple[np.ndarray, np.ndarray, float, float]] = {}
    periods = []
    for r in range(count):
        at = r % first.period if first.period else r
        if at not in known:
            known[at] = _constants(topology.mixing(n, at, seed), topology)
        edges, rates, *_ = known[at]
        periods.append(Period(r * hold if r else 0.0, t_end if r == count - 1 else (r + 1) * hold, edges, rates))
    slowest, widest = max(found[2] for found in known.values()), max(found[3] for found in known.values())
    return Graphs(tuple(periods), Constants(n, chi1=slowest, chi2=widest))


def too_slow(algorithm: Any, constants: Constants) -> tuple[str, ...]:
    """A warning for the user where the edges' rates are below what the algorithm says that it needs."""
    most: float | None = algorithm.most_chi12 if "most_chi12" in traits_of(algorithm).hooks else None
    product = constants.chi1 * constants.chi2
    if most is None or product <= most * (1 + 1e-9):
        return ()
    name, times = type(algorithm).__name__, np.sqrt(product / most)
    return (
        f"topology.rates are too low for {name}: chi1 * chi2 = {product:.3g} is above {most:g}, so it may diverge; "
        f"use topology.rates=minimal, or rates {times:.3g} times as high",
    )


def _constants(mixing: Mixing, topology: Topology) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Edges, their rates, chi1 and chi2."""
    if not mixing.directed and not nx.is_connected(mixing.graph):
        raise InputError("topology must have connected graphs for events in virtual time, got one in pieces")
    rates = edge_rates(mixing.graph, getattr(topology, "rates", "minimal"))
    return mixing.edges, rates, chi1(mixing.graph, rates), chi2(mixing.graph, rates)


def draw_events(n: int, periods: Sequence[Period], until: float, seed: int) -> Timeline:
    """All events of n peers; random numbers of the periods' edges are addressed by the number of the stretch."""
    gaps, picks = numpy_stream(seed, addresses.EVENTS_PEER_GAPS), numpy_stream(seed, addresses.EVENTS_PEER_PICKS)
    t, i = _clocks(np.ones(n), 0.0, until, gaps, picks)
    times, ends = [t], [np.stack([i, np.full_like(i, -1)], axis=1)]
    for r, (start, end, edges, rates) in enumerate(periods):
        gaps = numpy_stream(seed, addresses.EVENTS_EDGE_GAPS, r)
        picks = numpy_stream(seed, addresses.EVENTS_EDGE_PICKS, r)
        t, which = _clocks(rates, start, min(end, until), gaps, picks)
        times.append(t)
        ends.append(edges[which])
    at = np.concatenate(times)
    order = np.argsort(at, kind="stable")
    i, j = np.concatenate(ends)[order].T
    return Timeline(at[order], i, j)


def _clocks(
    rates: np.ndarray, start: float, end: float, gaps: np.random.Generator, picks: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """When clocks of these rates ring in (start, end], and which: [k] and [k]."""
    cumulated = np.cumsum(rates)
    times, which, now = [], [], start
    while now <= end:
        t = now + np.cumsum(gaps.standard_exponential(CHUNK)) / cumulated[-1]
        drawn = np.searchsorted(cumulated, picks.random(CHUNK) * cumulated[-1], side="right")
        now = float(t[-1])
        times.append(t)
        which.append(np.minimum(drawn, len(rates) - 1))
    kept = int(np.searchsorted(np.concatenate(times), end, side="right"))
    return np.concatenate(times)[:kept], np.concatenate(which)[:kept]


def levels(events: Timeline, n: int) -> np.ndarray:
    """[m] the wave of each event, 0-based; no peer has two events of one level."""
    out = np.empty(len(events.t), dtype=np.int64)
    last = [-1] * n
    for e, (i, j) in enumerate(zip(events.i.tolist(), events.j.tolist(), strict=True)):
        level = 1 + (last[i] if j < 0 else max(last[i], last[j]))
        last[i] = level
        if j >= 0:
            last[j] = level
        out[e] = level
    return out


def waves(level: np.ndarray, first: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
    """The events ``first`` to ``last`` by level, ascending: (level, [k] their numbers in order of time)."""
    here = level[first:last]
    order = np.argsort(here, kind="stable")
    for cut in np.split(order, np.flatnonzero(np.diff(here[order])) + 1):
        if len(cut):
            yield int(here[cut[0]]), first + cut
