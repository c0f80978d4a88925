"""Sweeps: many runs from one command, side by side, which survive what happens to them.

A sweep knows its jobs by their configurations and by the files that they leave; it does not know what a run computes.
It knows the shape of Hydra's overrides, not Hydra: that is for ``hydra_plugins``.
"""
