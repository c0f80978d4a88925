"""Images from files as one array of bytes, read on all cores with Pillow, in the order in which they are named."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from fedsim.data.memory import require_memory
from fedsim.errors import InputError, first_line, require
from fedsim.ground.console import note

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"])
"""Files with other names are no images and are passed over."""

Colour: TypeAlias = Literal["grey", "rgb"]
CHANNELS = {"L": 1, "RGB": 3}
_MODES = {"grey": "L", "rgb": "RGB"}
_SILENCE = 10.0  # seconds of reading before each line about how far it is


def read_images_of(
    files: Sequence[Path], what: str, colour: Colour | None = None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """The images as uint8 [n, c, h, w].

    Args:
        files: in the order of the samples, one or more.
        what: whose images they are, for messages.
        colour: what to make of all of them; None: they must be all grey or all rgb, as the first one is.
        size: (height, width) that all are brought to, without regard to their proportions; None: all must have that of
            the first.

    Raises:
        InputError: a file cannot be read or is not like the first one, or all are larger than the memory.
    """
    with open_image(files[0]) as first:
        mode = _MODES[colour] if colour else first.mode
        height, width = size or (first.height, first.width)
    _require_mode(mode, files[0])
    shape = (len(files), CHANNELS[mode], height, width)
    require_memory(what, int(np.prod(shape)), "give data.size, or take fewer images")
    images = np.empty(shape, np.uint8)

    def read(number: int) -> None:
        with open_image(files[number]) as image:
            images[number] = pixels(_like(image, mode, (height, width), colour, size, files[number]))

    begun = said = time.monotonic()
    with ThreadPoolExecutor() as threads:  # decoding releases the interpreter lock
        try:
            for done, _ in enumerate(threads.map(read, range(len(files))), 1):
                if time.monotonic() - said > _SILENCE:
                    said = time.monotonic()
                    note(f"{what}: {done} of {len(files)} images read in {said - begun:.0f} s")
        except BaseException:
            threads.shutdown(cancel_futures=True)  # an error comes at once
            raise
    return images


def open_image(file: Path) -> Image.Image:
    """An image, its pixels not yet read.

    Raises:
        InputError: Pillow is not installed, or the file is no image.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError("images need Pillow, got no Pillow; pip install 'fedsim-ray[images]'") from error
    try:
        return Image.open(file)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(_unreadable(file, error)) from error


def pixels(image: Image.Image) -> np.ndarray:
    """A grey or rgb image as uint8 [c, h, w]."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)


def _like(image: Image.Image, mode: str, shape: tuple[int, int], colour: Any, size: Any, file: Path) -> Image.Image:
    """The image in the mode and size of all."""
    from PIL import Image

    if not colour:
        _require_mode(image.mode, file)
        do = "say data.colour=grey or data.colour=rgb"
        require(image.mode == mode, str(file), f"be {mode} as the first image is", image.mode, do)
    if not size:
        got = (image.height, image.width)
        require(
            got == shape, str(file), f"have the size of the first image, {list(shape)}", list(got), "say data.size=32"
        )
    try:
        image = image if image.mode == mode else image.convert(mode)
        wanted = (shape[1], shape[0])
        if image.size != wanted:
            return image.resize(wanted, Image.Resampling.BILINEAR)
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(_unreadable(file, error)) from error
    return image


def _require_mode(mode: str, file: Path) -> None:
    do = "say data.colour=grey or data.colour=rgb to convert all images"
    require(mode in CHANNELS, str(file), "be an image in grey (L) or colour (RGB) of 8 bits", mode, do)


def _unreadable(file: Path, error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return f"{file}: cannot be read as an image ({why}); remove it or get it again"
