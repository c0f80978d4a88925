"""Models: factories ``(input_shape, outputs, **options) -> nn.Module``, named by ``_target_`` in configs/model/.

And what a module must be so that many clients can share it. Models know neither data sets nor clients: they get a
sample's shape and a number of outputs.
"""

from fedsim.models.adapted import Adapted
from fedsim.models.body_head import BodyHead
from fedsim.models.build import Factory, build, copied, twin, zero_sample
from fedsim.models.convolutional import cnn, cnn_bn, cnn_dropout, fedgh_cnn, lenet
from fedsim.models.dense import linear, linear_zero, mlp
from fedsim.models.lora import LoRA, without_adapters
from fedsim.models.moved import moved
from fedsim.models.output import Output
from fedsim.models.pure import pure
from fedsim.models.recurrent import char_lstm
from fedsim.models.resnet import resnet18_gn, resnet18_gn_cifar, resnet_small_gn
from fedsim.models.transformer import gpt_small, transformer, vit_small
from fedsim.models.validate import validate

__all__ = [
    "Adapted",
    "BodyHead",
    "Factory",
    "LoRA",
    "Output",
    "build",
    "char_lstm",
    "cnn",
    "cnn_bn",
    "cnn_dropout",
    "copied",
    "fedgh_cnn",
    "gpt_small",
    "lenet",
    "linear",
    "linear_zero",
    "mlp",
    "moved",
    "pure",
    "resnet18_gn",
    "resnet18_gn_cifar",
    "resnet_small_gn",
    "transformer",
    "twin",
    "validate",
    "vit_small",
    "without_adapters",
    "zero_sample",
]
