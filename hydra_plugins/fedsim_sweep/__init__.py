"""The two plugins through which Hydra runs a sweep, a sweeper and a launcher; what they do is in ``fedsim.sweep``."""
