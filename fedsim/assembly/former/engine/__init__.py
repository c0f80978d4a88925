"""The old folder of what is now ``fedsim.pool``, ``fedsim.kernels`` and ``fedsim.runs``."""
