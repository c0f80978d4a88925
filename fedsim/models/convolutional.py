"""Small convolutional networks for images.

Most blocks are convolution, 2x2 max-pool, ReLU. ReLU after the pool is the same function, with the same gradients, as
ReLU before it, for a quarter of the work.

Models: the two-convolution networks of McMahan et al., Communication-Efficient Learning of Deep Networks from
Decentralized Data, AISTATS 2017 (arXiv 1602.05629) and of its many successors; LeNet-5 (LeCun et al., Gradient-Based
Learning Applied to Document Recognition, Proc. IEEE 1998) with ReLU and max-pool and a full second convolution; the
network with dropout of the CIFAR-10 benchmark of Granqvist et al., pfl-research: Simulation Framework for Accelerating
Research in Private Federated Learning, NeurIPS 2024 (arXiv 2404.06430), layer sizes as in the authors' code; the five
networks of Yi et al., FedGH: Heterogeneous Federated Learning with Generalized Global Header, ACM MM 2023 (arXiv
2303.13137), and the network for digits of Li et al., FedBN, ICLR 2021 (arXiv 2102.07623), likewise.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from fedsim.errors import InputError, require
from fedsim.models.body_head import BodyHead, image_shape, require_size


def cnn(
    input_shape: tuple[int, ...],
    outputs: int,
    channels: tuple[int, ...] = (16, 32),
    kernel: int = 5,
    padding: int = 0,
    hidden: tuple[int, ...] = (),
) -> BodyHead:
    """Convolutions with pooling, then linear layers.

    The defaults on 1x28x28 images are a network of 18,378 parameters; ``channels=(32, 64), padding=2, hidden=(512,)``
    is the one of McMahan et al. with 1,663,370.

    >>> sum(p.numel() for p in cnn((1, 28, 28), 10).parameters())
    18378

    Args:
        input_shape: (channels, height, width).
        outputs: outputs of the head.
        channels: of each convolution; every one is followed by a 2x2 max-pool.
        kernel: side of the filters in pixels.
        padding: zeros added on each side of the image, in pixels.
        hidden: width of each linear layer before the head.
    """
    channels, hidden = tuple(channels), tuple(hidden)
    require(len(channels) > 0 and min(channels) >= 1, "channels", "be one or more numbers >= 1", channels)
    require(kernel >= 1, "kernel", "be >= 1", kernel)
    require(0 <= padding < kernel, "padding", f"be in 0..{kernel - 1}, below the kernel", padding)
    require(not hidden or min(hidden) >= 1, "hidden", "be widths >= 1", hidden)
    c, height, width = image_shape(input_shape, "cnn")
    sizes = {"channels": channels, "kernel": kernel}
    require_size("channels and kernel", sizes, sum(a * b * kernel**2 for a, b in pairwise((c, *channels))))
    body: list[nn.Module] = []
    for n_in, n_out in pairwise((c, *channels)):
        body += [nn.Conv2d(n_in, n_out, kernel, padding=padding), nn.MaxPool2d(2), nn.ReLU()]
        height, width = (height + 2 * padding - kernel + 1) // 2, (width + 2 * padding - kernel + 1) // 2
        if min(height, width) < 1:
            raise InputError(
                f"images of shape {input_shape} are too small for {len(channels)} convolutions of {kernel}x{kernel} "
                f"with padding {padding} and a 2x2 pool each; use model.padding={kernel // 2} or a smaller model.kernel"
            )
    features = channels[-1] * height * width
    require_size("hidden", hidden, sum(a * b for a, b in pairwise((features, *hidden, outputs))))
    body += _linear_layers(features, hidden)
    return BodyHead(nn.Sequential(*body), nn.Linear(hidden[-1] if hidden else features, outputs))


def cnn_dropout(
    input_shape: tuple[int, ...],
    outputs: int,
    channels: tuple[int, int] = (32, 64),
    hidden: int = 128,
    dropout: tuple[float, float] = (0.25, 0.5),
) -> BodyHead:
    """Two convolutions 3x3, one 2x2 max-pool after both, one linear layer; dropout after the pool and after the layer.

    Weights begin uniform by Glorot, as in the authors' code; biases as torch has them.

    >>> sum(p.numel() for p in cnn_dropout((3, 32, 32), 10).parameters())
    1626442

    Args:
        input_shape: (channels, height, width), at least 6x6.
        outputs: outputs of the head.
        channels: of each convolution.
        hidden: width of the linear layer before the head.
        dropout: rates, of numbers after the pool and after the linear layer.
    """
    (first, second), (early, late) = tuple(channels), tuple(dropout)
    require(min(first, second) >= 1, "channels", "be two numbers >= 1", channels)
    require(hidden >= 1, "hidden", "be >= 1", hidden)
    require(min(early, late) >= 0 and max(early, late) < 1, "dropout", "be two rates in [0, 1)", dropout)
    c, height, width = image_shape(input_shape, "cnn_dropout")
    if min(height, width) < 6:
        raise InputError(f"model=cnn_dropout needs images of 6x6 at least, got {height}x{width}; use model=cnn")
    features = second * ((height - 4) // 2) * ((width - 4) // 2)
    sizes = {"channels": channels, "hidden": hidden}
    require_size("channels and hidden", sizes, 9 * first * (c + second) + hidden * (features + outputs))
    body = nn.Sequential(
        nn.Conv2d(c, first, 3),
        nn.ReLU(),
        nn.Conv2d(first, second, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Dropout(early),
        *_linear_layers(features, (hidden,)),
        nn.Dropout(late),
    )
    model = BodyHead(body, nn.Linear(hidden, outputs))
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
    return model


def cnn_bn(
    input_shape: tuple[int, ...],
    outputs: int,
    channels: tuple[int, ...] = (64, 64, 128),
    kernel: int = 5,
    hidden: tuple[int, ...] = (2048, 512),
) -> BodyHead:
    """FedBN's network for digits: BatchNorm after every layer but the head, a max-pool after all convolutions but one.

    >>> sum(p.numel() for p in cnn_bn((3, 28, 28), 10).parameters())
    14219210

    Args:
        input_shape: (channels, height, width).
        outputs: outputs of the head.
        channels: filters of each convolution; a 2x2 max-pool follows all but the last.
        kernel: width of the filters, odd; images keep their size.
        hidden: widths of the linear layers before the head.
    """
    c, height, width = image_shape(input_shape, "cnn_bn")
    require(len(channels) >= 1 and min(channels) >= 1, "channels", "be at least one positive number", channels)
    require(kernel >= 1 and kernel % 2 == 1, "kernel", "be odd and >= 1", kernel)
    require(all(n >= 1 for n in hidden), "hidden", "be positive numbers", hidden)
    pools = len(channels) - 1
    if min(height, width) < 2**pools:
        raise InputError(f"model=cnn_bn with {pools} max-pools needs larger images, got {height}x{width}")
    features = channels[-1] * (height >> pools) * (width >> pools)
    weights = sum(a * b * kernel**2 for a, b in pairwise((c, *channels)))
    weights += sum(a * b for a, b in pairwise((features, *hidden, outputs)))
    require_size("channels, kernel and hidden", {"channels": channels, "kernel": kernel, "hidden": hidden}, weights)
    body: list[nn.Module] = []
    for number, (a, b) in enumerate(pairwise((c, *channels))):
        body += [nn.Conv2d(a, b, kernel, padding=kernel // 2), nn.BatchNorm2d(b), nn.ReLU()]
        body += [nn.MaxPool2d(2)] if number < pools else []
    body.append(nn.Flatten())
    for a, b in pairwise((features, *hidden)):
        body += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    return BodyHead(nn.Sequential(*body), nn.Linear(hidden[-1] if hidden else features, outputs))


def lenet(input_shape: tuple[int, ...], outputs: int) -> BodyHead:
    """LeNet-5 with ReLU and max-pool; images of 28x28 are padded to 32x32, as in the original.

    >>> import torch
    >>> lenet((3, 32, 32), 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    Args:
        input_shape: (channels, 28, 28) or (channels, 32, 32).
        outputs: outputs of the head.
    """
    c, height, width = image_shape(input_shape, "lenet")
    if height != width or height not in (28, 32):
        raise InputError(f"model=lenet needs images of 28x28 or 32x32, got {height}x{width}; use model=cnn")
    body = nn.Sequential(
        nn.Conv2d(c, 6, 5, padding=(32 - height) // 2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(6, 16, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        *_linear_layers(400, (120, 84)),
    )
    return BodyHead(body, nn.Linear(84, outputs))


_FEDGH = {1: (32, 2000), 2: (16, 2000), 3: (32, 1000), 4: (32, 800), 5: (32, 500)}
"""FedGH variant -> (channels of the second convolution, width of the first linear layer)."""


def fedgh_cnn(input_shape: tuple[int, ...], outputs: int, variant: int = 1) -> BodyHead:
    """One of FedGH's five networks, which differ in the body and share the shape of the head, 500 -> outputs.

    Args:
        input_shape: (channels, height, width), at least 16x16; the paper's is (3, 32, 32).
        outputs: number of classes.
        variant: 1 to 5, CNN-1 to CNN-5 of the paper; client i uses (i mod 5) + 1.
    """
    require(variant in _FEDGH, "variant", "be 1, 2, 3, 4 or 5", variant)
    second, width = _FEDGH[variant]
    return cnn(input_shape, outputs, channels=(16, second), hidden=(width, 500))


def _linear_layers(n_in: int, hidden: tuple[int, ...]) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise((n_in, *hidden)):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return layers
