"""The columns of TensorBoard's hyper-parameters page for several runs: what varies and accuracy first.

TensorBoard takes them from ONE "experiment" summary, the first that it finds below the folder that it is opened on. So
a run writes none, and whoever knows all runs of a folder writes it: a sweep, ``fedsim-report``. Without one the page
shows every key, those that vary first, and every scalar by the alphabet, ``comm/*`` left of ``eval/*``. Opened on
several sweeps at once, it has the columns of one of them.
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


def experiment(runs: Sequence[Flat], tags: Collection[str]) -> Any:
    """TensorBoard's description of the page, a protocol buffer.

    Args:
        runs: the flat configuration of each run.
        tags: the scalars of the runs.
    """
    from tensorboard.plugins.hparams import api_pb2

    keys = dict.fromkeys(key for run in runs for key in run)
    infos = [
        _info(key, [run[key] for run in runs if key in run], everywhere=all(key in run for run in runs)) for key in keys
    ]
    metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metric_order(tags)]
    return api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics)


def _info(key: str, values: Sequence[bool | float | str], *, everywhere: bool) -> Any:
    """One key: its type, the values to filter by, and whether runs differ in it; TensorBoard puts those first."""
    from tensorboard.plugins.hparams import api_pb2

    info = api_pb2.HParamInfo(name=key, differs=len(set(map(str, values))) > 1 or not everywhere)
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
