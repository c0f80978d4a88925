"""ResNet-18 with group normalisation.

He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016 (arXiv 1512.03385); every batch
normalisation replaced by GroupNorm (Wu, He, Group Normalization, ECCV 2018, arXiv 1803.08494), as usual in federated
learning since Hsieh et al., ICML 2020 (arXiv 1910.00189). ``resnet18_gn`` is the network of the FedSpeed authors'
FL-Simulator: torchvision's ImageNet ResNet-18 unchanged (7x7 stem of stride 2, max-pool) even on 32x32 images, two
groups, and torchvision's initialisation. ``resnet18_gn_cifar`` has the usual stem for small images.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from fedsim.errors import require
from fedsim.models.body_head import BodyHead, image_shape


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: relu(f(x) + shortcut(x))."""

    def __init__(self, n_in: int, n_out: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(groups, n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(groups, n_out)
        self.relu = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.GroupNorm(groups, n_out))

    def forward(self, x: Tensor) -> Tensor:
        """[m, n_in, h, w] -> [m, n_out, h/stride, w/stride]."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        out: Tensor = self.relu(y + self.downsample(x))
        return out


def resnet18_gn(input_shape: tuple[int, ...], outputs: int, groups: int = 2) -> BodyHead:
    """ImageNet's ResNet-18 with GroupNorm; 11,181,642 parameters for three channels and ten classes.

    Args:
        input_shape: (channels, height, width).
        outputs: outputs of the head.
        groups: groups of each GroupNorm, a divisor of 64.
    """
    c, _, _ = image_shape(input_shape, "resnet18_gn")
    stem = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(c, 64, 7, 2, 3, bias=False),
        norm1=_group_norm(groups),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, 2, 1),
    )
    return _resnet18(stem, outputs, groups)


def resnet18_gn_cifar(input_shape: tuple[int, ...], outputs: int, groups: int = 2) -> BodyHead:
    """ResNet-18 for small images: 3x3 stem of stride 1, no max-pool; 11,173,962 parameters for CIFAR-10.

    Args:
        input_shape: (channels, height, width).
        outputs: outputs of the head.
        groups: groups of each GroupNorm, a divisor of 64.
    """
    c, _, _ = image_shape(input_shape, "resnet18_gn_cifar")
    stem = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(c, 64, 3, 1, 1, bias=False), norm1=_group_norm(groups), relu=nn.ReLU()
    )
    return _resnet18(stem, outputs, groups)


MOST_LAYERS = 2000
"""Each is an object, traced and stacked before the first round, which takes time and memory long before it learns."""


def resnet_small_gn(input_shape: tuple[int, ...], outputs: int, depth: int = 8, groups: int = 2) -> BodyHead:
    """The paper's narrow ResNets for CIFAR-10 (section 4.2), with GroupNorm: 16, 32 and 64 channels, ``depth`` layers.

    ResNet-8 has 78,042 parameters for three channels and ten classes, ResNet-20 272,474. Shortcuts that change the
    shape are 1x1 convolutions (the paper's option B).

    Args:
        input_shape: (channels, height, width).
        outputs: outputs of the head.
        depth: 6 n + 2 with n >= 1 blocks in each of the three stages.
        groups: groups of each GroupNorm, a divisor of 16.
    """
    require(depth >= 8 and depth % 6 == 2, "depth", "be 6 n + 2: 8, 14, 20, ...", depth)
    require(depth <= MOST_LAYERS, "depth", f"be <= {MOST_LAYERS}", depth)
    require(groups >= 1 and 16 % groups == 0, "groups", "be a divisor of 16", groups)
    c, _, _ = image_shape(input_shape, "resnet_small_gn")
    stem = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(c, 16, 3, 1, 1, bias=False), norm1=nn.GroupNorm(groups, 16), relu=nn.ReLU()
    )
    return _residual(stem, (16, 32, 64), (depth - 2) // 6, outputs, groups)


def _group_norm(groups: int) -> nn.GroupNorm:
    require(groups >= 1 and 64 % groups == 0, "groups", "be a divisor of 64", groups)
    return nn.GroupNorm(groups, 64)


def _resnet18(stem: OrderedDict[str, nn.Module], outputs: int, groups: int) -> BodyHead:
    return _residual(stem, (64, 128, 256, 512), 2, outputs, groups)


def _residual(
    stem: OrderedDict[str, nn.Module], channels: tuple[int, ...], blocks: int, outputs: int, groups: int
) -> BodyHead:
    """The stages after a stem: ``blocks`` blocks of each number of channels, halving the image between stages."""
    body = stem
    n_in = channels[0]
    for i, n_out in enumerate(channels, start=1):
        first = BasicBlock(n_in, n_out, 1 if i == 1 else 2, groups)
        body[f"layer{i}"] = nn.Sequential(first, *(BasicBlock(n_out, n_out, 1, groups) for _ in range(blocks - 1)))
        n_in = n_out
    body["avgpool"] = nn.AdaptiveAvgPool2d(1)
    body["flatten"] = nn.Flatten()
    model = BodyHead(nn.Sequential(body), nn.Linear(n_in, outputs))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
