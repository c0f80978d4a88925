"""Distributed-learning methods: one paper, one file, which reads like its algorithm box; ``kit`` is what they share."""
