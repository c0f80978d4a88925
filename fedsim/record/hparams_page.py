"""The columns of TensorBoard's hyper-parameters page for several runs: what varies and accuracy first.

TensorBoard takes them from ONE "experiment" summary, the first that it finds below the folder that it is opened on. So
a run writes none, and whoever knows all runs of a folder writes it: a sweep, ``fedsim-report``. Without one the page
shows every key, those in which runs differ first, and every scalar by the alphabet, ``comm/*`` left of ``eval/*``.
Opened on several sweeps at once, it has the columns of one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

Flat = Mapping[str, bool | float | str]

ORDER = ("eval/", "train/", "gossip/", "privacy/", "comm/", "time/")
"""Groups of scalars, those first that one looks for."""


def metric_order(tags: Collection[str]) -> list[str]:
    """Scalars as they stand from left to right: accuracy or the first score, other scores, the loss, then the rest.

    >>> metric_order(["comm/uplink_bytes", "eval/client_accuracy_std", "eval/loss", "eval/mse", "eval/accuracy"])
    ['eval/accuracy', 'eval/mse', 'eval/loss', 'eval/client_accuracy_std', 'comm/uplink_bytes']
    """

    def place(tag: str) -> tuple[int, int, str]:
        group = next((number for number, start in enumerate(ORDER) if tag.startswith(start)), len(ORDER))
        of_some = tag.startswith(("eval/client_", "eval/peer_", "eval/unmixed_peer_"))
        within = 0 if tag == "eval/accuracy" else 3 if of_some else 2 if tag == "eval/loss" else 1
        return group, within, tag

    return sorted(tags, key=place)


def varied(runs: Sequence[Flat]) -> set[str]:
    """The keys that tell runs apart: what follows from the choice of a part, and a run's name, say nothing more.

    >>> fedavg = {"algorithm": "FedAvg", "algorithm.lr": 0.1, "seed": 0, "name": "fedavg-s0"}
    >>> fedprox = {"algorithm": "FedProx", "algorithm.lr": 0.1, "algorithm.mu": 0.1, "seed": 0, "name": "fedprox-s0"}
    >>> varied([fedavg, fedprox])
    {'algorithm'}
    """
    keys = dict.fromkeys(key for run in runs for key in run if key != "name")
    column = {key: [str(run.get(key, "")) for run in runs] for key in keys}
    varying = {key for key, values in column.items() if len(set(values)) > 1}
    parts = [key for key in varying if "." not in key and any(isinstance(run.get(key), str) for run in runs)]

    def follows(key: str) -> bool:
        return any(len(set(zip(column[part], column[key], strict=True))) == len(set(column[part])) for part in parts)

    return {key for key in varying if "." not in key or not follows(key)}


def experiment(runs: Sequence[Flat], tags: Collection[str]) -> Any:
    """TensorBoard's description of the page, a protocol buffer.

    Args:
        runs: the flat configuration of each run.
        tags: the scalars of the runs.
    """
    from tensorboard.plugins.hparams import api_pb2

    keys = dict.fromkeys(key for run in runs for key in run)
    varying = varied(runs)
    infos = [_info(key, [run[key] for run in runs if key in run], varies=key in varying) for key in keys]
    metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metric_order(tags)]
    return api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics)


def _info(key: str, values: Sequence[bool | float | str], *, varies: bool) -> Any:
    """One key: its type, the values to filter by, and whether it varies; TensorBoard puts those first that do."""
    from tensorboard.plugins.hparams import api_pb2

    info = api_pb2.HParamInfo(name=key, differs=varies)
    if all(isinstance(value, bool) for value in values):
        info.type = api_pb2.DATA_TYPE_BOOL
        info.domain_discrete.extend(sorted({bool(value) for value in values}))
    elif any(isinstance(value, (bool, str)) for value in values):
        info.type = api_pb2.DATA_TYPE_STRING
        info.domain_discrete.extend(sorted({str(value) for value in values}))
    else:
        info.type = api_pb2.DATA_TYPE_FLOAT64
        numbers = [float(value) for value in values]
        info.domain_interval.min_value, info.domain_interval.max_value = min(numbers), max(numbers)
    return info
