"""Command lines: any options of any groups, with keys set to what is right, nearly right or nonsense."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from tests.fuzz import values
from tests.fuzz.tree import Key, always, groups, keys_of, overridden

SMALL = ("engine=serial", "hydra.run.dir=run", "rounds=2", "local.steps=2", "checkpoint.seconds=0")
SOURCES = {
    "digits": ("partition.clients=4", "partition=iid"),
    "synthetic": ("data.clients=4", "data.max_size=60"),
    "quadratic": ("data.clients=4", "data.rows=6", "data.dim=3"),
}
"""Data that needs no file, made small."""
GIVEN = {"uniform": "schedule.cohort=2", "cyclic": "schedule.cohort=2", "async": "schedule.concurrency=2", "events": ""}
ODD = (
    "foo",
    "=1",
    "a=b=c",
    "rounds",
    "+rounds=1",
    "++nope=1",
    "~seed",
    "~algorithm.lr",
    "algorithm=null",
    "channel=[null]",
    "channel=[[topk]]",
    "channel=[topk,topk]",
    "downlink=[qsgd]",
    "privacy=null",
    "rounds=1,2",
    "seed=range(0,2)",
    "algorithm.lr=[1",
    "--cfg=nope",
    "--nope",
    "--info",
    "hydra.run.dir=${nope}",
    "hydra.run.dir=",
    "hydra.run.dir=run/é",
    "hydra.job.name=é",
    "hydra.output_subdir=../x",
    "hydra/launcher=nope",
    "data.root=/nowhere",
    "topology=file",
    "topology.path=/nowhere",
    "schedule=cohorts",
    "algorithm.λ=1",
    "engine.device=cuda",
    "resume=nowhere",
    "list",
    "é=1",
    "@=1",
    "channel@=1",
    "algorithm@x=fedavg",
)
"""Words of a command line that are no plain KEY=VALUE of the tree, or hardly ever fit."""


def shown(value: Any) -> str:
    """A value as it is typed, in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ",".join(f"{shown(key)}:{shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(shown, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = str(value)
    plain = bool(text) and all(letter.isalnum() or letter in "_.-+:/%${}" for letter in text) and text.isascii()
    return text if plain else "'" + text.replace("'", "\\'") + "'"


@st.composite
def _choices(draw: st.DrawFn) -> dict[str, Any]:
    """Options by group; mostly those that go together."""
    tree = groups()
    algorithm = draw(st.sampled_from(tree["algorithm"]))
    chosen: dict[str, Any] = {"algorithm": algorithm, "data": draw(st.sampled_from([*SOURCES] * 20 + [*tree["data"]]))}
    free = [group for group in tree if group not in ("algorithm", "data", "engine")]
    for group in draw(st.lists(st.sampled_from(free), max_size=2, unique=True)) if draw(st.integers(0, 2)) else []:
        if group == "channel":
            layers = st.lists(st.sampled_from(tree[group]), min_size=1, max_size=3, unique=True)
            chosen[draw(st.sampled_from(["channel", "channel", "downlink"]))] = draw(layers)
        else:
            chosen[group] = draw(st.sampled_from(tree[group]))
    return chosen


def _keys(chosen: dict[str, Any]) -> list[Key]:
    """The keys that there are with these choices."""
    found = {key.name: key for key in always()}
    everything = {"schedule": "uniform", "engine": "serial", "aggregate": "mean"}
    everything |= dict(overridden(chosen["algorithm"]).items()) | chosen
    for group, options in everything.items():
        for option in options if isinstance(options, list) else [options]:
            if group != "downlink" and option in groups().get(group, ()):
                found |= {key.name: key for key in keys_of(group, option)}
    return list(found.values())


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """``fedsim``'s arguments."""
    chosen = draw(_choices())
    schedule = chosen.get("schedule", overridden(chosen["algorithm"]).get("schedule", "uniform"))
    small = [*SMALL, *SOURCES.get(chosen["data"], ()), *filter(None, [GIVEN.get(schedule, "")])]
    argv = {text.partition("=")[0]: text for text in small if text.partition("=")[0] not in chosen}
    argv |= {group: f"{group}={shown(option)}" for group, option in chosen.items()}
    if chosen.get("model") in (None, "mlp") and chosen["data"] == "digits":
        argv["model.hidden"] = "model.hidden=[4]"
    if chosen.get("privacy", "none") != "none":
        argv["privacy.noise_multiplier"] = "privacy.noise_multiplier=1.0"
    keys = _keys(chosen)
    how = draw(st.sampled_from([values.right] * 6 + [values.nearly, values.wrong]))
    for key in draw(st.lists(st.sampled_from(keys), max_size=3, unique_by=lambda key: key.name)):
        if how is values.right and (key.name in argv or key.name.endswith("_target_")):
            continue
        argv[key.name] = f"{key.name}={shown(draw(how(key)))}"
    odd = [draw(st.sampled_from(ODD))] if draw(st.integers(0, 11)) == 7 else []
    return [*argv.values(), *odd]
