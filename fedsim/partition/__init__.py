"""Partitions: rules that divide a data set over clients. Each is a frozen dataclass with ``split(data, seed)``.

A partition knows labels, groups and sizes, and hands out positions of samples; it knows neither models nor rounds.
"""

from fedsim.partition.classes import Classes, ClassesPerClient, Shards
from fedsim.partition.dirichlet import Dirichlet, DirichletPerClient
from fedsim.partition.natural import Natural
from fedsim.partition.population import Partition, Population, populate
from fedsim.partition.sizes import Blocks, Iid, Quantity, QuantityDirichlet

__all__ = [
    "Blocks",
    "Classes",
    "ClassesPerClient",
    "Dirichlet",
    "DirichletPerClient",
    "Iid",
    "Natural",
    "Partition",
    "Population",
    "Quantity",
    "QuantityDirichlet",
    "Shards",
    "populate",
]
