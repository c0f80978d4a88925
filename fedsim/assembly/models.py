"""Third stage of assembly: the models, as they start, with their heads and outputs checked against the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from fedsim.algorithms.kit.around import name_of
from fedsim.assembly.network import is_peers
from fedsim.assembly.parts import Parts
from fedsim.data.dataset import Dataset
from fedsim.data.losses import task_of
from fedsim.errors import require
from fedsim.models import build, twin, zero_sample
from fedsim.traits.declared import traits_of


def built(parts: Parts, dataset: Dataset) -> tuple[nn.Module, ...]:
    """A model of each architecture, with the parameters that the run's seed gives it.

    Raises:
        InputError: one cannot be built for this data, or the algorithm needs another.
    """
    factories, name = parts.factories, name_of(parts.algorithm)
    if is_peers(parts.algorithm):
        must = f"be one architecture for {name}, whose peers mix whole models"
        require(len(factories) == 1, "model", must, len(factories))
    tokens = dataset.train.x.dtype == np.int64
    shape, outputs = dataset.input_shape, dataset.outputs
    models = tuple(build(factory, shape, outputs, {}, parts.seed, tokens=tokens) for factory in factories)
    if traits_of(parts.algorithm).classes:
        require_classes(name, dataset, models)
    return models


def require_classes(name: str, data: Dataset, models: Sequence[nn.Module]) -> None:
    """Raise InputError unless every model has an output for each class of a classification task."""
    require(task_of(data.task).classes, "data", f"have classes for {name}", f"a {data.task} task")
    with torch.no_grad():
        fewest = min(_outputs(twin(model), data.input_shape) for model in models)
    must = f"have an output for each of the {data.outputs} classes for {name}"
    require(fewest == data.outputs, "model", must, fewest, "the logit of class 1 alone does not do: use model=mlp")


def _outputs(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    model.eval()
    return int(model(zero_sample(model, input_shape)).shape[-1])
