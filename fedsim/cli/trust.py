"""Run folders that somebody else may have written: what of them would run code here, and the user's word that it may.

``fedsim resume=FOLDER``, ``fedsim replay FOLDER`` and ``fedsim export FOLDER --format onnx`` build what the
folder's config.yaml names. Fedsim's own classes do what their documentation says; any other name runs whatever its
module and its function do, and a cluster's answers are unpickled here. Such a folder needs ``trust=true``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.errors import InputError
from fedsim.record.strangers import strangers

TRUST = "trust=true"
WORDS = (TRUST, "trust=false")


def require_trusted(config: Mapping[str, Any], folder: Path, argv: Sequence[str]) -> None:
    """Raise InputError where a folder would run code that is not fedsim's, unless ``argv`` says ``trust=true``.

    Args:
        config: what will be built, with what the command line has changed.
        folder: where it was read.
        argv: the command line; a cluster that it names itself is the user's.
    """
    asks = strangers(config)
    engine = config["engine"]
    address = engine.get("address") if engine.get("backend") != "serial" else None
    if address is not None and not any(text.startswith("engine.address=") for text in argv):
        asks.append(f"the cluster engine.address={address}")
    if asks and TRUST not in argv:
        got = f"got {', '.join(asks)}, which can run any code"
        do = f"add {TRUST} if you wrote them or know what they do"
        raise InputError(f"{folder} must name parts of fedsim only, {got}; {do}")


def guarded(argv: Sequence[str]) -> bool:
    """Whether a command line is about a folder that is not trusted: no module of the current folder is imported."""
    return (
        argv[:1] in (["replay"], ["export"]) or any(text.startswith("resume=") for text in argv)
    ) and TRUST not in argv


def word_for(config: Mapping[str, Any]) -> list[str]:
    """What the command that goes on with a run must say beside its folder."""
    return [TRUST] if strangers(config) else []
