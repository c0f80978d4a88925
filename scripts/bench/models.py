"""The networks of the benchmark, and their loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from workloads import Workload


def cnn(channels: tuple[int, int], hidden: int | None) -> nn.Module:
    """Two 5x5 convolutions without padding on 28x28, pooled; linear head, or one hidden layer before it."""
    a, b = channels
    body = [
        nn.Conv2d(1, a, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(a, b, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
    ]
    head = [nn.Linear(16 * b, 10)] if hidden is None else [nn.Linear(16 * b, hidden), nn.ReLU(), nn.Linear(hidden, 10)]
    return nn.Sequential(*body, *head)


def leaf_cnn() -> nn.Module:
    """LEAF's FEMNIST network: padded convolutions, a hidden layer of 512."""
    pool = nn.MaxPool2d(2)
    body = [
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        pool,
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10))


class Residual(nn.Module):
    """ResNet's basic block, with groups of channels normalised."""

    def __init__(self, a: int, b: int, stride: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(2, b) for _ in range(2))
        short = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.GroupNorm(2, b))
        self.short = short if stride > 1 or a != b else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[m, a, h, w] -> [m, b, h / stride, w / stride]."""
        y = self.norms[1](self.second(self.relu(self.norms[0](self.first(x)))))
        return self.relu(y + self.short(x))  # type: ignore[no-any-return]


def resnet18() -> nn.Module:
    """ImageNet's ResNet-18 with GroupNorm of two groups, which FL-Simulator (FedSpeed's code) has on 32x32 images."""
    blocks: list[nn.Module] = []
    a = 64
    for b, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [Residual(a, b, stride), Residual(b, b, 1)]
        a = b
    first = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.GroupNorm(2, 64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*first, *blocks, nn.Flatten(), nn.Linear(512, 10))


class Sequence(nn.Module):
    """Embedding, positions, a body of sequences, and a linear head at every place."""

    def __init__(self, vocabulary: int, places: int, width: int, body: nn.Module, hidden: int):
        super().__init__()
        self.embedding, self.body = nn.Embedding(vocabulary, width), body
        self.positions = nn.Parameter(0.02 * torch.randn(places, width))
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """[m, t] -> [m, t, vocabulary]."""
        out = self.body(self.embedding(tokens) + self.positions)
        return self.head(out[0] if isinstance(out, tuple) else out)  # type: ignore[no-any-return]


def transformer() -> nn.Module:
    """Two pre-norm layers of torch's encoder with a causal mask."""
    layer = nn.TransformerEncoderLayer(64, 4, 256, 0.0, batch_first=True, norm_first=True)
    return Sequence(1000, 32, 64, Causal(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 32), 64)


class Causal(nn.Module):
    """An encoder in which no place sees a later one."""

    def __init__(self, encoder: nn.Module, places: int):
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(places))

    def forward(self, x: Tensor) -> Tensor:
        """[m, t, f] -> [m, t, f]."""
        return self.encoder(x, mask=self.mask, is_causal=True)  # type: ignore[no-any-return]


def small_cnn() -> nn.Module:
    """W1's network."""
    return cnn((16, 32), None)


def mlp() -> nn.Module:
    """W2's network."""
    return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))


def gru() -> nn.Module:
    """WG's network."""
    return Sequence(80, 40, 8, nn.GRU(8, 64, 2, batch_first=True), 64)


def linear(features: int, outputs: int, bias: bool = True) -> nn.Module:
    """One linear layer."""
    return nn.Sequential(nn.Linear(features, outputs, bias=bias))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "zeros": lambda: linear(1000, 100, False),
    "cnn": small_cnn,
    "leaf_cnn": leaf_cnn,
    "mlp": mlp,
    "logistic": lambda: linear(300, 1),
    "softmax": lambda: linear(60, 10),
    "narrow": lambda: nn.Sequential(nn.Linear(123, 37), nn.ReLU(), nn.Linear(37, 1)),
    "transformer": transformer,
    "gru": gru,
    "resnet18": resnet18,
}


def model_of(load: Workload) -> nn.Module:
    """A new network of a row."""
    return MODELS[load.model]()


def losses(out: Tensor, target: Tensor) -> Tensor:
    """The mean loss of a minibatch."""
    if out.shape[1] == 1:
        return nn.functional.binary_cross_entropy_with_logits(out[:, 0], target.to(out.dtype))
    return nn.functional.cross_entropy(out.flatten(0, -2), target.flatten())
