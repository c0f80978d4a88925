"""The old path of ``fedsim.assembly.factory``, kept as a re-export."""

from fedsim.assembly.factory import ModelFactory

__all__ = ["ModelFactory"]
