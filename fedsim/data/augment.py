"""Train-time augmentation of images: horizontal flip and padded random crop, drawn apart from applied.

The usual CIFAR recipe (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385,
section 4.2): pad by 4, crop back to the original size, flip with probability 1/2. Padding is zero in the units of the
images that are passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.errors import require
from fedsim.fields import check_fields

MOST_PAD = 1024  # pixels: a batch of padded images is in memory at once


@dataclass(frozen=True)
class Augment:
    """Random horizontal flip and random crop of a zero-padded image.

    Attributes:
        flip: probability of the horizontal flip, in [0, 1].
        crop_pad: zeros added on each side before the crop, in pixels, in 0..1024.
        crop: probability that the crop is random (otherwise the image stays in place), in [0, 1]; 1 in the usual
            recipe, 0.5 in the FL-Simulator code base (FedSpeed, FedSMOO).
    """

    flip: float = 0.5
    crop_pad: int = 4
    crop: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        require(0 <= self.flip <= 1, "flip", "be in [0, 1]", self.flip)
        require(0 <= self.crop_pad <= MOST_PAD, "crop_pad", f"be in 0..{MOST_PAD}", self.crop_pad)
        require(0 <= self.crop <= 1, "crop", "be in [0, 1]", self.crop)

    def draw(self, generator: torch.Generator, count: int) -> Tensor:
        """Random decisions for ``count`` images; row i does not depend on ``count``.

        Returns:
            [count, 3] int64: flip (0 or 1), then the crop's offsets dy and dx in 0..2*crop_pad, where
            (crop_pad, crop_pad) leaves the image in place.
        """
        u = torch.rand((count, 4), generator=generator, dtype=torch.float64)
        flip = (u[:, :1] < self.flip).long()
        offsets = (u[:, 2:] * (2 * self.crop_pad + 1)).long()
        return torch.cat([flip, torch.where(u[:, 1:2] < self.crop, offsets, self.crop_pad)], dim=1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Crop, then flip: one padding and one gather for the whole minibatch, on the images' device.

        Args:
            images: [m, c, h, w] of any dtype.
            draws: [m, 3] from ``draw``.

        Returns:
            [m, c, h, w], a new tensor of the images' dtype.
        """
        m, c, h, w = images.shape
        flip, dy, dx = draws.to(images.device).unbind(1)
        pad = self.crop_pad
        padded = F.pad(images, (pad, pad, pad, pad))
        column = torch.arange(w, device=images.device)
        rows = dy[:, None] + torch.arange(h, device=images.device)
        columns = dx[:, None] + torch.where(flip[:, None] == 1, w - 1 - column, column)
        pixels = rows[:, :, None] * (w + 2 * pad) + columns[:, None, :]  # [m, h, w] places in a padded plane
        return padded.flatten(2).gather(2, pixels.view(m, 1, h * w).expand(m, c, h * w)).view(m, c, h, w)
