"""A fuzzer: command lines and run folders that nobody would write, each in a process forked from a warm one.

``python -m tests.fuzz 100 --seed 7`` makes a hundred cases and says which broke a promise; ``--case`` runs one again.
"""
