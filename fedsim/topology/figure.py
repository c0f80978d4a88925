"""A picture of a topology for TensorBoard and papers, as a matplotlib figure that touches no global state."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from fedsim.ground.later import networkx as nx
from fedsim.topology.mixing import edge_array

_COLOURS = "YlGnBu"
_NUMBERED = 40  # nodes up to which they carry their ids
_SPRINGS = 60  # nodes above which the layout is by springs, which is quicker than path lengths


def draw_graph(graph: nx.Graph, values: np.ndarray | None, title: str, label: str = "") -> Figure:
    """The graph with its nodes coloured by a value; the same picture for the same graph.

    Args:
        graph: nodes 0..n-1; their attribute ``pos`` is used where all have two numbers there.
        values: [n] a number per node, such as its label skew; None: its degree (number of receivers).
        title: one line, for example ``ring of 20 peers``.
        label: what the values are; empty: the degree.
    """
    n = len(graph)
    degree = graph.out_degree if graph.is_directed() else graph.degree
    shown = np.array([degree(i) for i in range(n)]) if values is None else np.asarray(values, dtype=np.float64)
    label = label or ("receivers" if graph.is_directed() else "degree")
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    at = _layout(graph)
    _edges(axes, graph, at)
    size = float(np.clip(min(5200 / n, (1000 / n) ** 2), 5, 330))  # points^2; no overlap on a circle
    flat = float(np.ptp(shown)) == 0
    bounds = (shown[0] - 1, shown[0] + 1) if flat else (shown.min(), shown.max())
    nodes = axes.scatter(
        at[:, 0],
        at[:, 1],
        s=size,
        c=shown,
        cmap=_COLOURS,
        vmin=bounds[0],
        vmax=bounds[1],
        edgecolors="#444444",
        linewidths=0.6,
        zorder=2,
    )
    if n <= _NUMBERED:
        dark = (shown - bounds[0]) / (bounds[1] - bounds[0]) > 0.55
        for i, (x, y) in enumerate(at):
            colour = "white" if dark[i] else "black"
            axes.text(x, y, str(i), ha="center", va="center", size=8 if n <= 20 else 6.5, color=colour, zorder=3)
    if not flat:
        whole = values is None and np.ptp(shown) < 6
        ticks = range(int(shown.min()), int(shown.max()) + 1) if whole else None
        figure.colorbar(nodes, ax=axes, label=label, shrink=0.8, pad=0.02, ticks=ticks)
    axes.set_title(f"{title}\n{label} of every node: {shown[0]:g}" if flat else title)
    axes.set_aspect("equal")
    axes.margins(0.07)
    axes.set_axis_off()
    return figure


def _layout(graph: nx.Graph) -> np.ndarray:
    """Where the nodes are [n, 2], without randomness that is not fixed."""
    n, given = len(graph), nx.get_node_attributes(graph, "pos")
    if len(given) != n or any(np.shape(place) != (2,) for place in given.values()):
        plain = graph.to_undirected()
        start = nx.circular_layout(plain)
        if n <= _SPRINGS:
            given = nx.kamada_kawai_layout(plain, pos=start, weight=None)
        else:
            given = nx.spring_layout(plain, pos=start, seed=0, iterations=100, weight=None, k=1.6 / np.sqrt(n))
    return np.array([given[i] for i in range(n)], dtype=np.float64)


def _edges(axes: Axes, graph: nx.Graph, at: np.ndarray) -> None:
    """Lines, paler the more there are, or arrows on small directed graphs."""
    edges = edge_array(graph)
    alpha = float(np.clip(12 / np.sqrt(max(1, len(edges))), 0.06, 0.8))
    if graph.is_directed() and len(graph) <= _NUMBERED:
        style = {
            "arrowstyle": "-|>",
            "color": "#555555",
            "alpha": max(alpha, 0.5),
            "shrinkA": 8,
            "shrinkB": 8,
            "lw": 0.8,
        }
        for sender, receiver in edges.tolist():
            axes.annotate(
                "", at[receiver], at[sender], arrowprops={**style, "connectionstyle": "arc3,rad=0.08"}, zorder=1
            )
    else:
        lines = LineCollection(at[edges].tolist(), colors="#555555", linewidths=0.8, alpha=alpha, zorder=1)
        axes.add_collection(lines)
