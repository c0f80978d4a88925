"""Small transformers: of tokens, for the next one at every place, and of the patches of images.

Vaswani et al., Attention Is All You Need, NeurIPS 2017 (arXiv 1706.03762), normalised before each part as GPT-2 is
(Radford et al., Language Models are Unsupervised Multitask Learners, 2019); Dosovitskiy et al., An Image is Worth 16x16
Words, ICLR 2021 (arXiv 2010.11929). Deviations: no dropout; the head is not tied to the embedding, so that a
personalised head is a part of its own; patches are averaged instead of a class token (Beyer, Zhai, Kolesnikov, Better
plain ViT baselines for ImageNet-1k, 2022, arXiv 2205.01580).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fedsim.errors import InputError, require
from fedsim.models.body_head import BodyHead, image_shape, require_size


class TokenBody(nn.Module):
    """Embedding, positions and encoder layers: tokens [m, t] int64 -> features [m, t, width], or their mean [m, width].

    Args:
        vocabulary: number of tokens.
        places: t.
        encoder: of values [m, t, width].
        width: of the embedding.
        causal: whether a place sees only those before it.
        pooled: whether the mean over the places is returned.
    """

    def __init__(self, vocabulary: int, places: int, encoder: nn.Module, width: int, causal: bool, pooled: bool):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocabulary, width), nn.Parameter(torch.empty(places, width))
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        self.encoder, self.causal, self.pooled = encoder, causal, pooled
        mask = nn.Transformer.generate_square_subsequent_mask(places) if causal else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[m, t] -> [m, t, width] or [m, width]."""
        features: Tensor = self.encoder(self.embedding(tokens) + self.positions, mask=self.mask, is_causal=self.causal)
        return features.mean(1) if self.pooled else features


class PatchBody(nn.Module):
    """Patches, positions and encoder layers: images [m, c, h, w] -> the mean over the patches, [m, width]."""

    def __init__(self, channels: int, patches: int, encoder: nn.Module, width: int, side: int):
        super().__init__()
        self.patches, self.positions = nn.Conv2d(channels, width, side, side), nn.Parameter(torch.empty(patches, width))
        nn.init.normal_(self.positions, std=0.02)
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """[m, c, h, w] -> [m, width]."""
        rows = self.patches(images).flatten(2).transpose(1, 2)
        features: Tensor = self.encoder(rows + self.positions).mean(1)
        return features


def transformer(
    input_shape: tuple[int, ...],
    outputs: int,
    vocabulary: int | None = None,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    hidden: int = 256,
    causal: bool = True,
) -> BodyHead:
    """A transformer of tokens.

    >>> transformer((32,), 1000)(torch.zeros(5, 32, dtype=torch.int64)).shape
    torch.Size([5, 32, 1000])

    Args:
        input_shape: (t,), the length of a sequence.
        outputs: size of the vocabulary, or classes of whole sequences where ``vocabulary`` is given.
        vocabulary: number of different tokens; None: ``outputs``, and the next token is predicted at every place.
        width: of the embedding and of each layer.
        heads: of attention; they divide the width.
        layers: number of encoder layers.
        hidden: width between the two linear layers of each.
        causal: whether a place sees only the tokens before it; the next token can only be learned so.
    """
    if len(input_shape) != 1:
        raise InputError(f"model=transformer needs token sequences of shape (t,), got samples of shape {input_shape}")
    words = outputs if vocabulary is None else vocabulary
    require(words >= 1, "vocabulary", "be >= 1", words)
    encoder = _encoder(width, heads, layers, hidden, (words + outputs + input_shape[0]) * width)
    body = TokenBody(words, input_shape[0], encoder, width, causal, pooled=vocabulary is not None)
    return BodyHead(body, nn.Linear(width, outputs))


def gpt_small(
    input_shape: tuple[int, ...],
    outputs: int,
    width: int = 128,
    heads: int = 4,
    layers: int = 4,
) -> BodyHead:
    """A small GPT for characters: every place predicts the next one; 0.8 million parameters.

    >>> sum(p.numel() for p in gpt_small((80,), 65).parameters())
    820289

    Args:
        input_shape: (t,), the length of a sequence.
        outputs: size of the vocabulary, of inputs and outputs alike.
        width: of the embedding and of each layer, whose linear layers are four times as wide.
        heads: of attention; they divide the width.
        layers: number of layers.
    """
    if len(input_shape) != 1:
        raise InputError(f"model=gpt_small needs token sequences of shape (t,), got samples of shape {input_shape}")
    encoder = _encoder(width, heads, layers, 4 * width, (2 * outputs + input_shape[0]) * width, "gelu", last=True)
    body = TokenBody(outputs, input_shape[0], encoder, width, causal=True, pooled=False)
    return BodyHead(body, nn.Linear(width, outputs))


def vit_small(
    input_shape: tuple[int, ...],
    outputs: int,
    patch: int = 4,
    width: int = 64,
    heads: int = 4,
    layers: int = 4,
) -> BodyHead:
    """A small vision transformer.

    >>> vit_small((3, 32, 32), 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    Args:
        input_shape: (channels, height, width).
        outputs: number of classes.
        patch: side of a patch in pixels; it divides both sides of the image.
        width: of the patches' embedding and of each layer, whose linear layers are four times as wide.
        heads: of attention; they divide the width.
        layers: number of layers.
    """
    channels, height, breadth = image_shape(input_shape, "vit_small")
    require(patch >= 1 and height % patch == breadth % patch == 0, "patch", "divide both sides of the image", patch)
    patches = (height // patch) * (breadth // patch)
    encoder = _encoder(width, heads, layers, 4 * width, (channels * patch**2 + patches + outputs) * width, "gelu", True)
    return BodyHead(PatchBody(channels, patches, encoder, width, patch), nn.Linear(width, outputs))


def _encoder(
    width: int,
    heads: int,
    layers: int,
    hidden: int,
    others: int,
    activation: Literal["relu", "gelu"] = "relu",
    last: bool = False,
) -> nn.Module:
    """Encoder layers that normalise before each part, and with ``last`` after all.

    Each is drawn by itself: ``nn.TransformerEncoder`` copies the first, so that all would start alike.
    """
    sizes = {"width": width, "heads": heads, "layers": layers, "hidden": hidden}
    for name, value in sizes.items():
        require(value >= 1, name, "be >= 1", value)
    require(width % heads == 0, "heads", f"divide the width {width}", heads)
    require_size(
        "vocabulary, width, layers and hidden", sizes, layers * (4 * width * width + 2 * width * hidden) + others
    )

    def layer() -> nn.TransformerEncoderLayer:
        return nn.TransformerEncoderLayer(width, heads, hidden, 0.0, activation, batch_first=True, norm_first=True)

    norm = nn.LayerNorm(width) if last else None
    made = nn.TransformerEncoder(layer(), 1, norm, enable_nested_tensor=False)
    made.layers = nn.ModuleList([layer() for _ in range(layers)])
    made.num_layers = layers
    return made
