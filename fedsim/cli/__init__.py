"""The command line: it composes configurations with Hydra, explains what is wrong in them, and runs."""
