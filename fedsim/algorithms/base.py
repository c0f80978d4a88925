"""The old path of ``fedsim.algorithms.kit.protocols``, kept for users' algorithms; fedsim uses the new one."""

from fedsim.algorithms.kit.protocols import Constants, EventAlgorithm, PeerAlgorithm, RoundConstants, ServerAlgorithm

__all__ = ["Constants", "EventAlgorithm", "PeerAlgorithm", "RoundConstants", "ServerAlgorithm"]
