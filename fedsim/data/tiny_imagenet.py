"""Tiny ImageNet: 100,000 / 10,000 colour images of 64x64 in 200 classes, as its folder of JPEG files comes.

The course CS231n of Stanford University publishes it as tiny-imagenet-200.zip: train/WNID/images/*.JPEG for training;
val/images with the class of each file in val/val_annotations.txt, which is the test split here, for the images of test/
have no labels. Some images are grey and become colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedsim.data.augment import Augment
from fedsim.data.dataset import Dataset
from fedsim.data.images import read_images_of
from fedsim.data.own import from_arrays
from fedsim.data.published import data_root
from fedsim.errors import InputError, require
from fedsim.fields import check_fields

FOLDER = "tiny-imagenet-200"


@dataclass(frozen=True)
class TinyImagenet:
    """Tiny ImageNet: uint8 [n, 3, 64, 64], 100,000 / 10,000, 200 classes, in ascending order of their WordNet names.

    Attributes:
        root: folder that holds ``tiny-imagenet-200/``; None: FEDSIM_DATA or the user's cache folder.
        augment: flip and crop training images at random (see ``fedsim.data.augment``).
        crop: with ``augment``: probability of the random crop, in [0, 1].
    """

    root: str | None = None
    augment: bool = False
    crop: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        require(0 <= self.crop <= 1, "crop", "be in [0, 1]", self.crop)

    def load(self, seed: int) -> Dataset:
        """Read the images; the seed plays no part."""
        folder = data_root(self.root) / FOLDER
        require((folder / "train").is_dir(), "tiny_imagenet", f"lie in {folder}", "no folder train in it", _DO)
        train = sorted(file for file in (folder / "train").glob("n*/images/*.JPEG"))
        require(bool(train), f"{folder}/train", "hold WNID/images/*.JPEG", "no image", _DO)
        labels = _annotations(folder / "val" / "val_annotations.txt")
        tested = [folder / "val" / "images" / name for name in sorted(labels)]
        x = read_images_of([*train, *tested], "data tiny_imagenet", "rgb")
        cut, augment = len(train), Augment(crop=self.crop) if self.augment else None
        return from_arrays(
            x[:cut],
            [file.parent.parent.name for file in train],
            x_test=x[cut:],
            y_test=[labels[file.name] for file in tested],
            task="classification",
            name="tiny_imagenet",
            augment=augment,
        ).load(seed)


_DO = "unpack tiny-imagenet-200.zip there, or set FEDSIM_DATA or data.root to the folder that holds it"


def _annotations(file: Path) -> dict[str, str]:
    """{name of the file: its class} of the validation images: the first two words of each line."""
    try:
        words = [line.split("\t") for line in file.read_text().splitlines() if line]
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); {_DO}") from error
    require(
        bool(words) and all(len(line) >= 2 for line in words), str(file), "hold FILE and WNID in each line", words[:1]
    )
    return {line[0]: line[1] for line in words}
