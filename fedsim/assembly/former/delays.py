"""The old path of ``fedsim.schedule.delays``, kept as a re-export."""

from fedsim.schedule.delays import Asynchronous

__all__ = ["Asynchronous"]
