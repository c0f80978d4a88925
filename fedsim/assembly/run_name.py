"""What a run is called: by what it is, unless its user says otherwise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fedsim.errors import require

NAMED = ("algorithm", "data", "partition")
"""What a run is called by, and its seed."""
LONGEST = 100  # of a folder's name, with the time before it


def default_name(parts: Sequence[str], seed: Any) -> str:
    """``fedavg-digits-dirichlet-s0``, from what the method, the data and the partition are called.

    >>> default_name(["FedAvg", "Digits", "Dirichlet"], 0)
    'fedavg-digits-dirichlet-s0'
    """
    words = [re.sub(r"[^\w.]+", "_", part.rpartition(".")[2].lower()) for part in parts]
    return "-".join([*words, f"s{seed}"])[:LONGEST]


def require_name(name: Any) -> None:
    """Raise InputError unless a run can be called so: its folder is."""
    must = f"be letters, digits, spaces and any of _.,=+@- of at most {LONGEST}, not beginning with . or a space"
    good = name is None or (isinstance(name, str) and re.fullmatch(rf"[\w,=+@-][\w.,=+@ -]{{0,{LONGEST - 1}}}", name))
    require(bool(good), "name", must, name if isinstance(name, str) else type(name).__name__)
