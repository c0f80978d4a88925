"""Which kind of run a start asks for."""

from __future__ import annotations

from fedsim.pool.worker import Backend
from fedsim.runs.arrivals import Arrivals
from fedsim.runs.peers import Peers
from fedsim.runs.rounds import Rounds
from fedsim.runs.run import Run
from fedsim.runs.start import Start
from fedsim.runs.virtual_time import VirtualTime
from fedsim.schedule import Asynchronous


def begin(start: Start, backend: Backend) -> Run:
    """The run, before its first round."""
    if start.between.graphs is not None:
        return VirtualTime(start, backend)
    if start.between.topology is not None:
        return Peers(start, backend)
    if isinstance(start.schedule, Asynchronous):
        return Arrivals(start, backend)
    return Rounds(start, backend)
