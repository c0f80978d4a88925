"""What a first guess at a key means: words that the field and other simulators use, and keys that stand elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

WORDS = {
    "learning_rate": "lr",
    "client_lr": "lr",
    "wd": "weight_decay",
    "batch": "batch_size",
    "bs": "batch_size",
    "local_epochs": "epochs",
    "num_epochs": "epochs",
    "local_steps": "steps",
    "num_rounds": "rounds",
    "n_rounds": "rounds",
    "global_rounds": "rounds",
    "num_clients": "clients",
    "n_clients": "clients",
    "num_nodes": "clients",
    "nodes": "clients",
    "peers": "clients",
    "clients_per_round": "cohort",
    "cohort_size": "cohort",
    "sample_size": "cohort",
    "num_workers": "actors",
    "workers": "actors",
    "num_actors": "actors",
    "gpu": "engine.device=cuda",
    "cuda": "engine.device=cuda",
    "random_seed": "seed",
    "eval_every": "evaluate.every",
    "dataset": "data",
    "optimizer": "algorithm",
    "optim": "algorithm",
    "strategy": "algorithm",
    "method": "algorithm",
    "net": "model",
    "network": "model",
    "arch": "model",
    "graph": "topology",
    "compressor": "channel",
    "compression": "channel",
    "split": "partition",
    "backend": "engine",
    "output": "hydra.run.dir",
    "output_dir": "hydra.run.dir",
}
"""{what somebody may write: the key, or the last part of the key, that fedsim has for it}"""


def first_guess(word: str, value: str, config: Mapping[str, Any], options: Mapping[str, Sequence[str]]) -> str:
    """``did you mean KEY=VALUE? `` for a key that there is not, or "" where nothing comes to mind.

    Args:
        word: the last part of the key that was written.
        value: what it was given.
        config: the composed configuration.
        options: of each group.
    """
    meant = WORDS.get(word, word)
    found = [meant if "=" in meant else f"{meant}={value}"]
    if meant in options:
        near = get_close_matches(value, options[meant], n=1)
        found = [_choice(meant, near[0])] if near else [f"{meant}=..."]
    elif "=" not in meant and not meant.startswith("hydra."):
        found = [f"{path}={value}" for path in _paths(config, meant, value)]
        found = found or [_choice(group, word) for group, names in options.items() if word in names]
    return f"did you mean {' or '.join(found[:3])}? " if found else ""


def _choice(group: str, name: str) -> str:
    return f"{group}=[{name}]" if group in ("channel", "downlink") else f"{group}={name}"


def _paths(node: Mapping[str, Any], name: str, value: str, before: str = "") -> Iterator[str]:
    """The dotted paths of the keys of this name, or of these last parts, which could be given this value."""
    for key, there in node.items():
        path = f"{before}{key}"
        if isinstance(there, Mapping):
            yield from _paths(there, name, value, f"{path}.")
        elif f".{path}".endswith(f".{name}") and (not isinstance(there, bool) or value in ("true", "false")):
            yield path


def without_spaces(argv: Sequence[str]) -> str:
    """``rounds=5`` for ``rounds = 5``; "" where blanks are not what is wrong."""
    joined = re.sub(r"\s*=\s*", "=", " ".join(argv))
    spaced = any(text.startswith("=") or text.endswith("=") for text in argv)
    whole = all("=" in text or text.startswith("~") for text in joined.split())
    return joined if spaced and whole and joined != " ".join(argv) else ""


def as_key(argv: Sequence[str]) -> str:
    """``rounds=5`` for the first of ``--rounds 5``, ``--rounds=5`` and ``-rounds 5``; "" without such words."""
    for number, text in enumerate(argv):
        if re.match(r"--?[a-zA-Z][\w.-]+", text):
            key, _, value = text.lstrip("-").partition("=")
            after = argv[number + 1] if number + 1 < len(argv) else ""
            if not value and after and not after.startswith("-") and "=" not in after:
                value = after
            return f"{key.replace('-', '_')}={value or '...'}"
    return ""
