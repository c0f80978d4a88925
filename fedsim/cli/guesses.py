"""What a first guess at a key means: words that the field and other simulators use, and keys that stand elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedsim.assembly.problems import did_you_mean, nearest

WORDS = {
    "learning_rate": "lr",
    "client_lr": "lr",
    "wd": "weight_decay",
    "batch": "batch_size",
    "bs": "batch_size",
    "local_epochs": "epochs",
    "num_epochs": "epochs",
    "epoch": "epochs",
    "beta": "alpha",
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
    "fraction": "schedule=bernoulli schedule.rate={}",
    "fraction_fit": "schedule=bernoulli schedule.rate={}",
    "participation": "schedule=bernoulli schedule.rate={}",
    "patience": "callbacks=[early_stopping] callbacks.early_stopping.patience={}",
    "target_accuracy": "callbacks=[early_stopping] callbacks.early_stopping.target={}",
    "non_iid": "partition=dirichlet",
    "num_workers": "actors",
    "workers": "actors",
    "num_actors": "actors",
    "gpu": "engine.device=cuda",
    "cuda": "engine.device=cuda",
    "random_seed": "seed",
    "eval_every": "evaluate.every",
    "dataset": "data",
    "loss": "task=own task.loss={}",
    "criterion": "task=own task.loss={}",
    "metric": "evaluate.metrics",
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
    "bn": "model.batchnorm={}",
    "batch_norm": "model.batchnorm={}",
    "freeze_layers": "model.freeze={}",
    "frozen": "model.freeze={}",
    "trainable": "model.train={}",
    "pretrained": "model.init={}",
    "weights": "model.init={}",
    "init_from": "model.init={}",
    "lora_rank": "model.lora.rank={}",
    "lora_r": "model.lora.rank={}",
    "lora_alpha": "model.lora.alpha={}",
    "lora_targets": "model.lora.targets={}",
    "target_modules": "model.lora.targets={}",
    "precision": "engine.precision={}",
    "mixed_precision": "engine.precision={}",
    "amp": "engine.precision=bf16",
    "output": "hydra.run.dir",
    "output_dir": "hydra.run.dir",
}
"""{what somebody may write: the key, the last part of the key, or the words, {} being the value, that fedsim has}"""

OPTIONS = {
    "data": {"images": "image_folder", "femnist": "leaf", "celeba": "leaf", "sent140": "leaf", "hf": "huggingface"},
}
"""{group: {what somebody may choose: the option that fedsim has}}"""

FILES = {".csv": "csv", ".tsv": "csv", ".npz": "npz", ".parquet": "parquet"}
"""{how a file's name ends: the option of data that reads it}"""

LISTS = ("channel", "downlink", "callbacks")
"""Groups of which several options are chosen."""

DESCRIBED = {"experiment": "fedsim presets"}
"""Groups of which a line names the closest options only, and the command that describes them all."""


def first_guess(word: str, value: str, config: Mapping[str, Any], options: Mapping[str, Sequence[str]]) -> str:
    """``did you mean KEY=VALUE? `` for a key that there is not, or "" where nothing comes to mind."""
    found = meanings(word, value, config, options)
    return f"did you mean {' or '.join(found)}? " if found else ""


def meanings(word: str, value: str, config: Mapping[str, Any], options: Mapping[str, Sequence[str]]) -> list[str]:
    """What a key that there is not may mean, at most three of KEY=VALUE.

    Args:
        word: the last part of the key that was written.
        value: what it was given.
        config: the composed configuration.
        options: of each group.
    """
    meant = WORDS.get(word, word)
    found = [meant.format(value) if "=" in meant else f"{meant}={value}"]
    if meant in options:
        near = nearest(value, options[meant])
        found = [_choice(meant, near[0])] if near else [f"{meant}=..."]
    elif "=" not in meant and not meant.startswith("hydra."):
        found = [f"{path}={value}" for path in _paths(config, meant, value)]
        found = found or [_choice(group, word) for group, names in options.items() if word in names]
    return found[:3]


def bare(word: str, after: str, config: Mapping[str, Any], options: Mapping[str, Sequence[str]]) -> str:
    """What a word without a value may mean: ``did you mean algorithm=fedprox? `` for ``fedprox``; or "".

    Args:
        word: as it was written.
        after: the word behind it where that has no value either, else "".
        config: the composed configuration.
        options: of each group.
    """
    if word in START:
        return "fedsim alone starts a run: leave the word out; "
    if word in config or word in options or word in WORDS:
        found = [f"{word}={after or '...'}"] if word not in WORDS else meanings(word, after or "...", config, options)
        return f"write {' or '.join(found)}; " if found else ""
    chosen = [_choice(group, word) for group, names in options.items() if word in names]
    return f"did you mean {' or '.join(chosen[:3])}? " if chosen else ""


START = ("run", "start", "train", "simulate", "fit")
"""What other programs call what fedsim does without a word."""


def unknown_option(group: str, word: str, valid: Sequence[str], before: str = "") -> str:
    """The line about an option that there is not.

    Args:
        group: as the user calls it.
        word: what was asked for.
        valid: the options.
        before: what stands before the option that was meant, such as ``algorithm=``.
    """
    if group in DESCRIBED:
        near = ", ".join(nearest(word, valid, 3, cutoff=0.0))
        return f"unknown option {group}={word}; nearest: {near}; {DESCRIBED[group]} describes all {len(valid)}"
    hint = _instead(group, word) or did_you_mean(word, valid, before)
    return f"unknown option {group}={word}; {hint}options of {group}: {', '.join(valid)}"


def _instead(group: str, word: str) -> str:
    """What takes the place of an option that is a file, a dotted path of one's own, or a word of others; or ""."""
    if group == "data" and Path(word).suffix in FILES:
        return f"did you mean data={FILES[Path(word).suffix]} data.path={word}? "
    if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", word):
        mine = {"task": f"task=own task.loss={word}", "callbacks": f"callbacks.mine._target_={word}"}
        return (
            f"did you mean {mine.get(group, f'{group}._target_={word}')}? "
            if group not in ("channel", "downlink")
            else ""
        )
    meant = OPTIONS.get(group, {}).get(word)
    return f"did you mean {group}={meant}? " if meant else ""


def of_another(group: str, key: str, text: str, folder: Path) -> str:
    """The option and the key, for a key that other options of its group have; or "".

    Args:
        group: whose chosen option does not have the key.
        key: its name.
        text: KEY=VALUE, as it was typed.
        folder: of the configurations.
    """
    found = [path.stem for path in sorted((folder / group).glob("*.yaml")) if key in _keys(path, group)]
    end = Path(text.partition("=")[2]).suffix
    if group == "data" and FILES.get(end) in found:
        found = [FILES[end]]
    choices = [f"{group}={name} {text.lstrip('+')}" for name in found[:3]]
    return f"did you mean {' or '.join(choices)}? " if choices else ""


def _keys(path: Path, group: str) -> Mapping[str, Any]:
    """The keys of an option, wherever in its file they stand."""
    node = yaml.safe_load(path.read_text()) or {}
    inside = node.get(group) if "defaults" in node or isinstance(node.get(group), dict) else node
    return inside if isinstance(inside, dict) else {}


def _choice(group: str, name: str) -> str:
    return f"{group}=[{name}]" if group in LISTS else f"{group}={name}"


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
