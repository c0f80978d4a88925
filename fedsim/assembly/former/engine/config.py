"""The old path of ``fedsim.pool.engine``, kept as a re-export."""

from fedsim.pool.engine import Engine

__all__ = ["Engine"]
