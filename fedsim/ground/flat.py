"""A nested configuration as one level of dotted keys, as trackers of experiments want it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat_hyperparameters(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | float | str]:
    """Nested config -> flat hyper-parameters: ``{"algorithm": {"lr": .1}}`` -> ``{"algorithm.lr": .1}``.

    ``_target_`` becomes the name of its class under the group's own key (``algorithm: FedAvg``); lists become text;
    None and empty mappings are left out.
    """
    flat: dict[str, bool | float | str] = {}
    for key, value in config.items():
        name = prefix.rstrip(".") if key == "_target_" and prefix else f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flat_hyperparameters(value, f"{prefix}{key}.")
        elif key == "_target_":
            flat[name] = str(value).rsplit(".", 1)[-1]
        elif value is not None:
            flat[name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat
