"""What stands for a BatchNorm whose statistics are constants."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenNorm(nn.Module):
    """A BatchNorm, with its names, that uses the statistics it was built with in training mode too."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.num_features, self.eps = norm.num_features, norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        for name, value in norm.named_buffers(recurse=False):
            self.register_buffer(name, value)
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """[m, c, ...] -> [m, c, ...]: (x - mean) / sqrt(variance + eps), scaled and shifted by channel."""
        mean: Any = self.running_mean
        return F.batch_norm(x, mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)  # type: ignore[arg-type]
