"""Sweeps: many runs from one command, side by side, which survive what happens to them."""
