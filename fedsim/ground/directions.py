"""Which metrics are good when they are small: the one place that decides, from the words of their tags."""

from __future__ import annotations

from collections.abc import Collection

LOWER_IS_BETTER = frozenset({"loss", "mse", "rmse", "mae", "error", "perplexity", "distance", "gap", "std", "norm2"})


def lower_is_better(tag: str) -> bool:
    """Whether a metric such as ``eval/loss`` is good when it is small."""
    return bool(LOWER_IS_BETTER & set(tag.rpartition("/")[2].split("_")))


def main_metric(tags: Collection[str]) -> str:
    """By what the best model of a run is chosen: ``eval/accuracy`` where there is one, else ``eval/loss``."""
    return "eval/accuracy" if "eval/accuracy" in tags else "eval/loss"
