"""What fedsim's own words on a command line mean to Hydra; strings only."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fedsim.assembly.factory import MODEL_KEYS

COMMANDS = {
    "list": "every option of a group with its description",
    "presets": "whole runs pinned by a file",
    "download": "public data sets, checked and put where fedsim looks for them",
    "verify": "the same run at different parallelism, digests compared round by round",
    "replay": "one client of one round of a recorded run, in this process",
    "export": "the model of a run as a file for other programs",
    "tune": "kernels measured on this processor, and the constants that suit it written for later runs",
}
"""What ``fedsim`` does besides running: {word: what it shows or does}."""

_NOTHING = {"privacy": "none", "topology": "none", "task": "none", "channel": "[]", "downlink": "[]", "callbacks": "[]"}
"""What null means for a group that may be left out."""


def _without_null(text: str) -> str:
    """``privacy=null`` as ``privacy=none``, among several values too."""
    key, equals, value = text.partition("=")
    if key not in _NOTHING or not equals:
        return text
    return f"{key}={re.sub(r'(?i)(?<![^,])null(?![^,])', _NOTHING[key], value)}"


def with_own_classes(argv: Sequence[str]) -> list[str]:
    """Let ``GROUP._target_=a.B`` replace the group's whole node, whose former keys do not apply.

    ``algorithm._target_=a.B algorithm.mu=1`` becomes ``~algorithm ++algorithm._target_=a.B ++algorithm.mu=1``; a
    command line that also chooses ``algorithm=NAME`` keeps the keys of that choice. Every layer of a channel may be
    given its ``fields``, which no layer's own keys include. A callback of one's own is added to those that were
    chosen: ``callbacks.mine._target_=a.B callbacks.mine.key=1``. So are the keys that every model has, such as
    ``model.freeze``. ``null`` chooses nothing where a group may be left out.
    """
    argv = [_without_null(text) for text in argv if text.lower() not in ("experiment=null", "sweep=null")]
    argv = [f"channel@{text}" if text.startswith("downlink=") else text for text in argv]  # one group of layers
    keys = [text.lstrip("+").partition("=")[0] for text in argv]
    replaced = {key.removesuffix("._target_") for key in keys if key.endswith("._target_")} - set(keys)
    out: list[str] = []
    for text, key in zip(argv, keys, strict=True):
        group, _, rest = key.partition(".")
        own = (group in replaced and rest) or (group in ("channel", "downlink") and rest.endswith(".fields"))
        own = own or (group == "callbacks" and f"callbacks.{rest.partition('.')[0]}" in replaced)
        own = own or (group == "model" and rest.partition(".")[0] in MODEL_KEYS)
        out += [f"~{group}"] if own and rest == "_target_" else []
        out += [f"++{text.lstrip('+')}" if own else text]
    return out


def as_sweep(argv: Sequence[str]) -> list[str]:
    """Let ``sweep=NAME`` mean ``-m``, ``sweep.KEY`` a key of fedsim's sweeper, and values follow each job's choices.

    Hydra would apply ``algorithm.mu=1`` before a job of ``algorithm=fedavg,fedprox`` has made its choice; in a sweep
    such keys are handed to the sweeper.
    """
    argv = [re.sub(r"^(\+*)sweep\.", r"\1hydra.sweeper.", text) for text in argv]
    flags = {"-m", "--multirun"} & set(argv)
    if not flags and not any(text.startswith("sweep=") and text != "sweep=null" for text in argv):
        return argv
    own = not any(text.startswith("hydra/sweeper=") for text in argv)
    later = [text for text in argv if own and re.match(r"\+*(?!hydra\.)[\w/]+\.[^=]*=", text)]
    quoted = ",".join("'{}'".format(text.replace("'", "\\'")) for text in later)
    handed = f"hydra.sweeper.arguments=[{quoted}]"  # where the first of them stood: argparse wants them together
    argv = [handed if text in later[:1] else text for text in argv if text not in later[1:]]
    return argv if flags else ["-m", *argv]
