"""Differential privacy: what a mechanism let out, what it cost, and the mechanisms' arithmetic, as pure functions."""
