"""The old path of ``fedsim.algorithms.kit.local_sgd``, kept for users' algorithms; fedsim uses the new one."""

from fedsim.algorithms.kit.local_sgd import LocalSGD, MomentumSGD, ascent, sam_grad

__all__ = ["LocalSGD", "MomentumSGD", "ascent", "sam_grad"]
