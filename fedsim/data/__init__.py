"""Data sets: where they come from (sources), and what they are once read (``Dataset``, ``Split``).

And how minibatches are drawn from them. Data know no model and no algorithm; that samples belong to clients they know
only as the order in which a partition has put them.
"""

from fedsim.data.augment import Augment
from fedsim.data.cifar import CIFAR10, CIFAR100
from fedsim.data.dataset import Dataset, Source, Split
from fedsim.data.digits import Digits
from fedsim.data.gas_sensor_drift import GasSensorDrift
from fedsim.data.housing import CaliforniaHousing
from fedsim.data.huggingface import HuggingFace
from fedsim.data.idx import MNIST, FashionMNIST
from fedsim.data.image_folder import ImageFolder
from fedsim.data.leaf import Leaf
from fedsim.data.libsvm import LibSVM
from fedsim.data.losses import Task
from fedsim.data.metrics import Metric
from fedsim.data.npz import Npz
from fedsim.data.own import from_arrays
from fedsim.data.quadratic import Quadratic
from fedsim.data.shakespeare import TinyShakespeare
from fedsim.data.synthetic import Synthetic
from fedsim.data.tabular import Csv, Parquet, from_pandas
from fedsim.data.tiny_imagenet import TinyImagenet
from fedsim.data.torch_data import from_torch

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "Augment",
    "CaliforniaHousing",
    "Csv",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "GasSensorDrift",
    "HuggingFace",
    "ImageFolder",
    "Leaf",
    "LibSVM",
    "Metric",
    "Npz",
    "Parquet",
    "Quadratic",
    "Source",
    "Split",
    "Synthetic",
    "Task",
    "TinyImagenet",
    "TinyShakespeare",
    "from_arrays",
    "from_pandas",
    "from_torch",
]
