"""Partitions: rules that divide a data set over clients. Each is a frozen dataclass with ``split(data, seed)``."""

from fedsim.partition.base import Partition, Population
from fedsim.partition.classes import Classes, Shards
from fedsim.partition.dirichlet import Dirichlet, DirichletPerClient
from fedsim.partition.natural import Natural
from fedsim.partition.sizes import Blocks, Iid, Quantity

__all__ = [
    "Blocks",
    "Classes",
    "Dirichlet",
    "DirichletPerClient",
    "Iid",
    "Natural",
    "Partition",
    "Population",
    "Quantity",
    "Shards",
]
