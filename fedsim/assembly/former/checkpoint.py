"""The old path of ``fedsim.record.checkpoint``, kept as a re-export."""

from fedsim.record.checkpoint import Checkpointing

__all__ = ["Checkpointing"]
