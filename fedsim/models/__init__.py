"""Models: factories ``(input_shape, outputs, **options) -> nn.Module``, named by ``_target_`` in configs/model/.

And what a module must be so that many clients can share it. Models know neither data sets nor clients: they get a
sample's shape and a number of outputs.
"""

from fedsim.models.body_head import BodyHead
from fedsim.models.build import Factory, build, copied, twin, zero_sample
from fedsim.models.convolutional import cnn, fedgh_cnn, lenet
from fedsim.models.dense import linear, linear_zero, mlp
from fedsim.models.pure import pure
from fedsim.models.recurrent import char_lstm
from fedsim.models.resnet import resnet18_gn, resnet18_gn_cifar, resnet_small_gn
from fedsim.models.transformer import gpt_small, transformer, vit_small
from fedsim.models.validate import validate

__all__ = [
    "BodyHead",
    "Factory",
    "build",
    "char_lstm",
    "cnn",
    "copied",
    "fedgh_cnn",
    "gpt_small",
    "lenet",
    "linear",
    "linear_zero",
    "mlp",
    "pure",
    "resnet18_gn",
    "resnet18_gn_cifar",
    "resnet_small_gn",
    "transformer",
    "twin",
    "validate",
    "vit_small",
    "zero_sample",
]
