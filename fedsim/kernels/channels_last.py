"""One client's images channels last in memory: a mode around a forward pass of a plain module.

On the CPU max-pooling is several times faster on such images, and convolutions need no copy into the layout in which
they compute. Nothing but the layout changes: shapes, parameters and gradients are those of the module.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_OF_IMAGES = frozenset(
    {
        F.conv2d,
        *(F.max_pool2d, torch.max_pool2d),
        *(F.avg_pool2d, F.adaptive_avg_pool2d),
    }
)


class ChannelsLast(TorchFunctionMode):
    """Around a forward pass: convolutions and pooling of images see and give them channels last.

    Args:
        around: what else is around the pass, which sees every call after this mode.
    """

    def __init__(self, around: AbstractContextManager[Any]):
        super().__init__()
        self.around = around

    def __enter__(self) -> ChannelsLast:
        self.around.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.around.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Change the layout of what enters; make the call."""
        if func in _OF_IMAGES and args and isinstance(args[0], Tensor) and args[0].dim() == 4:
            whole = 2 if func is F.conv2d else 1  # a convolution's weight too
            args = (*(last(arg) if isinstance(arg, Tensor) else arg for arg in args[:whole]), *args[whole:])
        elif func is Tensor.view and not args[0].is_contiguous():  # which forward had every right to call
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


def last(images: Tensor) -> Tensor:
    """Images [m, c, h, w] channels last in memory, [m, h, w, c]."""
    m, c, h, w = images.shape
    if c == 1:  # which lie both ways: strides must say so, or convolutions take and give them channels first
        return images.reshape(m, h, w, 1).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)
