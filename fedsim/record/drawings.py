"""The pictures in a run's folder: who holds what, the graph of the peers, what was taken for what."""

from __future__ import annotations

import numpy as np

from fedsim.record.tensorboard import Picture
from fedsim.topology import Mixing

# matplotlib is imported where something is drawn: a run without a folder needs none of it.


def split_picture(counts: np.ndarray) -> Picture:
    """Training samples [clients, classes] that every client holds."""
    from fedsim.record.figures import split_by_client

    return Picture.of(split_by_client(counts, "training samples by client"))


def network_picture(name: str, mixing: Mixing, counts: np.ndarray) -> Picture:
    """The graph of the first round, its peers coloured by how far their labels are from everybody's.

    Args:
        name: of the topology.
        mixing: W of the first round.
        counts: [clients, classes] samples that every client holds.
    """
    from fedsim.topology.figure import draw_graph

    n = len(counts)
    skew = np.abs(counts / counts.sum(1, keepdims=True) - counts.sum(0) / counts.sum()).sum(1) / 2
    title = f"{name}, {n} peers, {len(mixing.edges)} edges" + ("" if mixing.static else ", round 1")
    several = counts.shape[1] > 1
    return Picture.of(draw_graph(mixing.graph, skew if several else None, title, "label skew" if several else ""))


def confusion_picture(matrix: np.ndarray) -> Picture:
    """Which class was taken for which after the last round: [classes, classes]."""
    from fedsim.record.figures import confusion

    return Picture.of(confusion(matrix))
