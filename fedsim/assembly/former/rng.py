"""The old path of ``fedsim.ground.rng``, kept as a re-export."""

from fedsim.ground.rng import numpy_stream, stream

__all__ = ["numpy_stream", "stream"]
