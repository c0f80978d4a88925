"""What was compared (methods) and under what (settings): the keys in which runs differ, the seed apart.

A method is what may change without touching the partition, the cohorts, the initial weights and the batches, which
follow from the seed and the other keys: the algorithm, how its messages are aggregated, compressed and made private,
and the graph that they travel on. Everything else that differs is a setting, and methods are compared within one. Keys
that change no bit (backend, actors) and keys of what is written down tell nothing apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.record.run_folder import DONE
from fedsim.report.runs import RecordedRun

METHOD = ("algorithm", "aggregate", "channel", "downlink", "privacy", "topology")
LAYERS = ("channel", "downlink")
ENGINE = tuple(f"engine.{key}" for key in ("backend", "actors", "address", "jobs", "retries", "timeout_s"))
KEPT = ("evaluate", "logger", "checkpoint", "callbacks", "name")  # what is written down, and when it is enough
SAME_BITS = ("seed", *KEPT, "channel.encode", "downlink.encode", "data.root", *ENGINE)
Flat = Mapping[str, bool | float | str]


@dataclass(frozen=True)
class Method:
    """Runs that differ in their seed only.

    Attributes:
        label: unique within the report.
        runs: one for each seed, seeds ascending.
    """

    label: str
    runs: tuple[RecordedRun, ...]


@dataclass(frozen=True)
class SharedSetting:
    """One setting (data, clients, rounds and so on, all alike) with the methods that were run in it.

    Attributes:
        label: the keys that tell it from the other settings; "" when there is only one.
        methods: at least one.
    """

    label: str
    methods: tuple[Method, ...]


def settings(
    runs: Sequence[RecordedRun], method_keys: Sequence[str] = ()
) -> tuple[list[SharedSetting], list[RecordedRun]]:
    """Group runs into settings, and those of a setting into methods.

    Args:
        runs: as read.
        method_keys: further keys, or groups of them, that make a method (``local``, ``schedule.cohort``).

    Returns:
        The settings, and runs left out because another run has the same configuration and seed.
    """
    under = METHOD + tuple(method_keys)
    grouped: dict[tuple[Any, ...], dict[tuple[Any, ...], dict[int, RecordedRun]]] = {}
    repeats = []
    for run in runs:
        # Keys that change no bit, such as the number of actors, make neither a method nor a setting.
        kept = {key: value for key, value in run.flat.items() if not _is_under(key, SAME_BITS)}
        method = tuple(sorted((k, v) for k, v in kept.items() if _is_under(k, under)))
        setting = tuple(sorted((k, v) for k, v in kept.items() if not _is_under(k, under)))
        by_seed = grouped.setdefault(setting, {}).setdefault(method, {})
        if run.seed in by_seed:
            worse, better = sorted((by_seed[run.seed], run), key=_worth)
            repeats.append(worse)
            by_seed[run.seed] = better
        else:
            by_seed[run.seed] = run
    names = dict(zip(grouped, method_labels([dict(key) for key in grouped]), strict=True))
    every = list(dict.fromkeys(method for methods in grouped.values() for method in methods))
    called = dict(zip(every, method_labels([dict(key) for key in every]), strict=True))
    found = [
        SharedSetting(
            names[setting],
            tuple(
                Method(called[method], tuple(run for _, run in sorted(by_seed.items())))
                for method, by_seed in methods.items()
            ),
        )
        for setting, methods in grouped.items()
    ]
    return found, repeats


def method_labels(configs: Sequence[Flat]) -> list[str]:
    """Short unique names: the algorithm, what is around its messages, then the keys that tell alike ones apart."""
    heads = [_head(config) for config in configs]
    texts = []
    for config, head in zip(configs, heads, strict=True):
        alike = [other for other, its in zip(configs, heads, strict=True) if its == head]
        texts.append(_text(config, head, _telling(config, alike)))
    if len(set(texts)) < len(texts):
        differing = [
            key for key in dict.fromkeys(k for c in configs for k in c) if len({c.get(key) for c in configs}) > 1
        ]
        texts = [_text(config, head, differing) for config, head in zip(configs, heads, strict=True)]
    return texts


def _head(config: Flat) -> str:
    """The algorithm with the layers of its channels, its privacy and its graph: ``FedAvg + ef14>topk``."""
    parts = [str(config["algorithm"])] if "algorithm" in config else []
    for link in LAYERS:
        layers = [key.split(".")[1] for key in config if key.startswith(f"{link}.") and key.count(".") == 1]
        names = ">".join(layer for layer in layers if layer != "encode")
        parts += [f"{'downlink ' if link == 'downlink' else ''}{names}"] if names else []
    return " + ".join([*parts, *(str(config[group]) for group in ("privacy", "topology") if group in config)])


def _telling(config: Flat, alike: Sequence[Flat]) -> list[str]:
    """The keys in which a configuration differs from those with the same head.

    A key is compared among configurations with the same class in its place, for defaults of different classes differ
    without anybody's choice.
    """
    keys = []
    for key in dict.fromkeys(key for other in alike for key in other):
        parents = [key[:at] for at in range(len(key)) if key[at] == "."]
        classes = {parent for other in alike for parent in parents if parent in other}
        if classes <= config.keys():
            same = [other for other in alike if all(other.get(parent) == config[parent] for parent in classes)]
            if len({other.get(key) for other in same}) > 1:
                keys.append(key)
    return keys


def _text(config: Flat, head: str, keys: Sequence[str]) -> str:
    own = [key for key in keys if key not in ("algorithm", "privacy", "topology")]
    short = [re.sub(r"^(algorithm|channel|privacy|topology)\.", "", key) if head else key for key in own]
    named = [f"{name}={_value(config.get(key))}" for name, key in zip(short, own, strict=True)]
    return ", ".join([*([head] if head else []), *named])


def _value(value: bool | float | str | None) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _worth(run: RecordedRun) -> tuple[bool, int, str]:
    """Which of two runs of the same configuration and seed to keep: finished, longer, later."""
    return run.status in DONE, int(run.rounds[-1]), str(run.provenance.get("started", ""))


def _is_under(key: str, groups: Sequence[str]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)
