"""The version of fedsim, where all that needs it may read it."""

__version__ = "0.1.0"
