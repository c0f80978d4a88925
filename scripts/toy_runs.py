"""Small runs of everything that ``configs/`` offers, and the numbers they come to; for ``compare_numbers.py``.

    PYTHONPATH=CHECKOUT python scripts/toy_runs.py CHECKOUT OUT.json [SUBSTRING ...]

Runs against whatever fedsim PYTHONPATH names, of this commit or of another: it uses ``fedsim.simulate`` and two
functions that have stood in several modules. It must not rely on anything else of the package.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import lzma
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

SAMPLES, TEST_SAMPLES = 1000, 50
"""What a toy run keeps of a larger data set without natural clients."""

COMPOSE = (("fedsim.cli.compose", "compose"), ("fedsim.cli.main", "compose"), ("fedsim.run", "compose"))
BUILD = (("fedsim.assembly.configuration", "build_run"), ("fedsim.config", "build_run"))

QUADRATIC = ("data=quadratic", "engine.dtype=float64", "evaluate.gradient=true", "local.steps=1")
"""Least squares in float64, which dual methods need."""

MORE = {  # features that no option of a group stands for
    "aggregate stack": ("algorithm=fedgh", "aggregate=stack"),
    "clients evaluated": ("algorithm=fedavg", "evaluate.clients=true"),
    "encoded": (
        "algorithm=sgd",
        "channel=[topk,qsgd]",
        "channel.encode=true",
        "downlink=[fp16]",
        "downlink.encode=true",
    ),
    "epochs": ("algorithm=fedavg", "local.epochs=1.5"),
    "float64": ("algorithm=fedavg", "engine.dtype=float64"),
    "full batch": ("algorithm=fedavg", "local.batch_size=full", "local.steps=2"),
    "gradient": ("algorithm=fedavg", "evaluate.gradient=true", "evaluate.every=2"),
    "one client at a time": ("algorithm=fedavg", "engine.batching=loop"),
    "poisson": ("algorithm=fedavg", "local.sampling=poisson"),
    "seed": ("algorithm=fedavg", "seed=7"),
    "small blocks": ("algorithm=scaffold", "engine.block=2", "engine.jobs=3"),
    "time-varying peers": ("algorithm=dpsgd", "topology=one_peer_exponential", "channel=[fp16]"),
    "virtual time": ("algorithm=ad_psgd", "schedule.t_end=6", "schedule.hold=2"),
    "vmap": ("algorithm=fedavg", "engine.kernel=vmap"),
}
STACKS = ("ef21,topk", "econtrol,topk", "diana,qsgd", "ef14,sign", "layerwise,topk", "bf16,int8", "lowrank,sign")
MECHANISMS = ("adaptive_gaussian", "banded_matrix", "central_gaussian", "discrete_gaussian", "local_gaussian")
PRIVATE = ("diff2", "diff2_bvr", "dp_sgd", "dp_srm", "private_spiderboost")
DIRECTED = ("exponential_directed", "one_peer_exponential", "base_k_plus_1")
"""Topologies for push-sum, whose graphs are directed or change."""


def cases(configs: Path, scratch: Path) -> dict[str, tuple[str, ...]]:
    """Command lines by name; the options of each group are those of the folder ``configs``.

    Args:
        configs: of the checkout.
        scratch: an empty folder for the files that some options read.
    """
    cohorts, edges = scratch / "cohorts.json", scratch / "edges.txt"
    cohorts.write_text("[[0, 3], [1, 2, 5], [4]]")
    edges.write_text("".join(f"{i} {(i + 1) % 8}\n{i} {(i + 3) % 8}\n" for i in range(8)))
    peers = ("algorithm=dpsgd", "partition.clients=8")
    own: dict[str, tuple[str, ...]] = {"cohorts": (f"schedule.path={cohorts}",), "file": (f"topology.path={edges}",)}
    own |= {"erdos_renyi": ("topology.p=0.6",), "random_geometric": ("topology.radius=0.8",)}
    own |= {"random_regular": ("topology.degree=3",), "networkx": ("topology.generator=networkx.cycle_graph",)}
    kinds = {"async": "fedbuff", "events": "ad_psgd"}
    found: dict[str, tuple[str, ...]] = {f"preset {n}": (f"experiment={n}",) for n in _options(configs, "experiment")}
    for n in _options(configs, "algorithm"):
        found[f"algorithm {n}"] = (f"algorithm={n}",)
        found[f"algorithm {n} plain"] = (f"algorithm={n}", "channel=[]", "downlink=[]", "schedule=all")
        found[f"algorithm {n} quadratic"] = (*QUADRATIC, f"algorithm={n}")
        found[f"algorithm {n} quadratic all"] = (*QUADRATIC, f"algorithm={n}", "schedule=all")
    for n in (*_options(configs, "channel"), *STACKS):
        found[f"channel {n}"] = ("algorithm=sgd", f"channel=[{n}]", "schedule=all")
        found[f"channel {n} down"] = ("algorithm=fedavg", f"downlink=[{n}]", "schedule=all")
        found[f"channel {n} gossip"] = ("algorithm=choco_sgd", f"channel=[{n}]", "partition.clients=8")
    for n in _options(configs, "partition"):
        found[f"partition {n}"] = (f"partition={n}",)
    for n in _options(configs, "schedule"):
        found[f"schedule {n}"] = (f"algorithm={kinds.get(n, 'fedavg')}", f"schedule={n}", *own.get(n, ()))
    for n in _options(configs, "topology"):
        method = ("algorithm=sgp", "partition.clients=8") if n in DIRECTED else peers
        found[f"topology {n}"] = (*method, f"topology={n}", *own.get(n, ()))
    for n in _options(configs, "data"):
        found[f"data {n}"] = (f"data={n}", "schedule=all", "algorithm=fedavg")
    for n in _options(configs, "model"):
        found[f"model {n}"] = (f"model={n}", "partition.clients=4", "schedule=all")
    noise = ("privacy.noise_multiplier=1", "schedule=all")
    for n in MECHANISMS:
        found[f"privacy {n}"] = (f"privacy={n}", *noise, "aggregate.weights=uniform")
    full = ("partition=iid", "partition.clients=4", "local.batch_size=full")
    for n in PRIVATE:
        found[f"privacy own {n}"] = (f"algorithm={n}", "privacy=own", *noise, *full)
    return found | {f"more {name}": line for name, line in MORE.items()}


def _options(configs: Path, group: str) -> list[str]:
    return sorted(path.stem for path in (configs / group).glob("*.yaml"))


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of the same parts with two rounds of little work."""
    local = config["local"]
    epochs = local["epochs"] is not None or local["steps"] is None
    local |= {"steps": 2 if epochs else min(local["steps"], 2), "epochs": None}
    if local["batch_size"] != "full":
        local["batch_size"] = min(local["batch_size"], 4)
    if config["partition"].get("held_out"):
        config["partition"]["held_out"] = 100
    if "clients" in config["partition"]:  # null: all that the data have
        config["partition"]["clients"] = min(config["partition"]["clients"] or 10, 20)
    config["evaluate"]["every"] = 1
    config["rounds"] = 2
    return config


@cache
def cut(source: Any, seed: int) -> Any:
    """The first samples of a data set; all of them where they belong to natural clients."""
    dataset = source.load(seed)
    train, test = dataset.train, dataset.test
    if train.group is not None or len(train) <= SAMPLES:
        return dataset
    few = test and type(test)(test.x[:TEST_SAMPLES].copy(), test.y[:TEST_SAMPLES].copy())
    return replace(dataset, train=type(train)(train.x[:SAMPLES].copy(), train.y[:SAMPLES].copy()), test=few)


def numbers(result: Any, clients: int) -> dict[str, Any]:
    """Everything countable in a result: digest, every metric of every round, summary, and the clients' final states."""
    rounds = [{tag: value for tag, value in record.items() if _kept(tag)} for record in result.metrics]
    summary = {tag: value for tag, value in result.summary.items() if _kept(tag)}
    states = hashlib.sha256()
    for number in range(clients if result.stores else 0):
        for leaf in _leaves(result.client(number)):
            states.update(leaf.contiguous().numpy().tobytes())
    return {"status": result.status, "summary": summary, "rounds": rounds, "clients": states.hexdigest()}


def _kept(tag: str) -> bool:
    """Whether a number is the run's and not the clock's; virtual time is the run's."""
    return not tag.startswith("time/") or tag == "time/virtual_s"


def _leaves(tree: Any) -> Iterator[torch.Tensor]:
    """The tensors of a tree, in order."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for name in sorted(tree):
            yield from _leaves(tree[name])
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _leaves(item)


def outcome(line: tuple[str, ...], compose: Any, build: Any, simulate: Any) -> dict[str, Any]:
    """The numbers of one toy run, or why there are none."""
    try:
        config = compose(["engine=serial", "rounds=3", *line])
        small = line[0].startswith(("experiment=", "data=", "model="))
        if line[0].startswith("experiment=") and "resnet18" in config["model"].get("_target_", ""):
            config["model"] = compose(["model=resnet_small_gn"])["model"]  # the large one has cases of its own
        if "t_end" in config["schedule"]:
            config["schedule"]["t_end"] = min(config["schedule"]["t_end"], 5.0)
        parts = build(shrunk(config) if small else config)
        if small:
            parts["data"] = cut(parts["data"], config["seed"])
        result = simulate(**parts)
    except ValueError as error:  # InputError: refused, or the data are not there
        text = " ".join(str(error).split())
        return {"absent" if "fedsim download" in text or "scripts/download.py" in text else "refused": text[:300]}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:300]}
    return numbers(result, int(config["partition"].get("clients") or 0))


def _imported(places: tuple[tuple[str, str], ...]) -> Any:
    """The first of some names that this checkout has."""
    for module, name in places:
        with contextlib.suppress(ModuleNotFoundError, AttributeError):
            return getattr(import_module(module), name)
    raise ImportError(f"none of {places} in {sys.path}")


def main() -> None:
    """Run the cases whose name holds a substring that was given (all without any) and write their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", help="the folder whose configs/ are run; PYTHONPATH must name it too")
    parser.add_argument("out", help="the JSON to write")
    parser.add_argument("only", nargs="*", metavar="SUBSTRING", help="runs whose name holds one of these")
    args = parser.parse_args()
    numbered(args.checkout, args.out, args.only)


def numbered(checkout: str, out: str, only: Sequence[str]) -> None:
    """Run the cases whose name holds one of ``only`` and write their numbers to ``out``, after each of them."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # CIFAR-10 is read with many options; inflating it each time would take longest of all.
    setattr(lzma, "decompress", cache(lzma.decompress))  # noqa: B010 - a type checker wants the same signature
    fedsim = import_module("fedsim")
    if not Path(str(fedsim.__file__)).resolve().is_relative_to(Path(checkout).resolve()):
        raise SystemExit(f"fedsim is that of {fedsim.__file__}, not of {checkout}")
    doors = _imported(COMPOSE), _imported(BUILD), fedsim.simulate
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        every = cases(Path(checkout).resolve() / "configs", Path(scratch))
        chosen = {name: line for name, line in every.items() if not only or any(text in name for text in only)}
        found: dict[str, Any] = {}
        for i, (name, line) in enumerate(chosen.items()):
            _say(f"{i + 1}/{len(chosen)} {name}")
            found[name] = outcome(line, *doors)
            Path(out).write_text(json.dumps(found, indent=1, sort_keys=True))
        _say("")


def _say(text: str) -> None:
    """Show how far it is: on one line of a terminal, else on a line of its own."""
    sys.stderr.write(f"\r\033[K{text}" if sys.stderr.isatty() else f"{time.strftime('%X')} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
