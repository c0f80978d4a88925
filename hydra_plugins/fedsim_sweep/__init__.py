"""The two places where Hydra lets a sweep in; what they do is in ``fedsim.sweep``."""
