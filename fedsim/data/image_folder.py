"""A folder of images: a folder for each class, and where there are natural clients one for each of them around it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.data.arrays import check_share
from fedsim.data.augment import Augment
from fedsim.data.dataset import Dataset
from fedsim.data.images import SUFFIXES, Colour, read_images_of
from fedsim.data.own import from_arrays, stem
from fedsim.errors import InputError, first_line, require
from fedsim.fields import check_fields

FOLDERS = "folders"


class Listed(NamedTuple):
    """The image files of one split, in ascending order of client, class and name."""

    files: list[Path]
    labels: list[str]
    clients: list[str]  # empty where there is no level of clients


@dataclass(frozen=True)
class ImageFolder:
    """Images in folders by class: DIR/train/CLASS/*.png and DIR/test/CLASS/*.png, as uint8 [n, c, h, w].

    Without DIR/test a share of the training images is held out; without both DIR itself holds the classes. Classes,
    clients and files are in ascending order of their names; names that begin with a dot, and files that are no images
    by their suffix, are passed over.

    Attributes:
        path: DIR.
        size: height and width to bring all images to, one number or [height, width]; None: all have one size.
        colour: ``grey`` or ``rgb``, to convert all images; None: all are one of them.
        clients: ``folders`` where there is one more level, DIR/train/CLIENT/CLASS/*.png (and in DIR/test, if there is a
            client of each test image); or a CSV FILE with the columns file (as in train/cat/1.png) and client; None:
            there are no natural clients.
        test: without DIR/test: the share held out for testing, in proportion to clients and classes; 0 for none.
        augment: flip and crop training images at random (see ``fedsim.data.augment``).
        crop: with ``augment``: probability of the random crop, in [0, 1].
    """

    path: str
    size: int | tuple[int, int] | None = None
    colour: Colour | None = None
    clients: str | None = None
    test: float = 0.2
    augment: bool = False
    crop: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_share(self.test, "test")
        require(0 <= self.crop <= 1, "crop", "be in [0, 1]", self.crop)
        require(self._size() is None or min(self._size() or ()) >= 1, "size", "be >= 1", self.size)

    def load(self, seed: int) -> Dataset:
        """Read the images; the seed decides which are held out where there is no DIR/test."""
        root = Path(self.path).expanduser()
        require(root.is_dir(), "data.path", "be a folder of images", self.path)
        inside = (root / "train").is_dir() or (root / "test").is_dir()
        train = listed(root / "train" if inside else root, self.clients == FOLDERS)
        tested = listed(root / "test", self.clients == FOLDERS, optional=True) if (root / "test").is_dir() else None
        files = [*train.files, *(tested.files if tested else ())]
        x = read_images_of(files, f"data {self.path}", self.colour, self._size())
        given: dict[str, Any] = {"x": x[: len(train.files)], "y": train.labels, "client": self._owners(root, train)}
        if tested is not None:
            given |= {"x_test": x[len(train.files) :], "y_test": tested.labels}
            given |= {"client_test": self._owners(root, tested)}
        augment = Augment(crop=self.crop) if self.augment else None
        options: dict[str, Any] = {
            "test": self.test,
            "task": "classification",
            "augment": augment,
            "name": stem(self.path),
        }
        return from_arrays(**given, **options).load(seed)

    def _size(self) -> tuple[int, int] | None:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def _owners(self, root: Path, split: Listed) -> Sequence[str] | None:
        """The client of each image, or None."""
        if self.clients in (None, FOLDERS):
            return split.clients or None
        owners = read_owners(str(self.clients))
        names = [file.relative_to(root).as_posix() for file in split.files]
        for name in names:
            require(name in owners, str(self.clients), f"name the client of {name}", "no such file in it")
        return [owners[name] for name in names]


def listed(folder: Path, clients: bool, *, optional: bool = False) -> Listed:
    """The images of a folder.

    Args:
        folder: of class folders, or with ``clients`` of client folders that hold class folders.
        clients: whether there is that level.
        optional: whether class folders without that level will do too.

    Raises:
        InputError: there is no such folder, or its levels are others.
    """
    require(folder.is_dir(), str(folder), "be a folder of class folders", "no such folder")
    outer = _folders(folder)
    require(bool(outer), str(folder), "hold a folder for each class", "none")
    if clients and optional and not any(_folders(path) for path in outer):
        clients = False
    found = Listed([], [], [])
    for client in outer if clients else [folder]:
        for label in _folders(client):
            images = _images(label)
            if not images:
                deeper = _folders(label)
                do = "say data.clients=folders" if deeper and not clients else "remove it"
                do = "say data.clients=null" if clients and not _folders(client) else do
                raise InputError(f"{label} must hold images, got {'folders' if deeper else 'none'}; {do}")
            found.files.extend(images)
            found.labels.extend([label.name] * len(images))
            found.clients.extend([client.name] * len(images) if clients else [])
        if clients and not _folders(client):
            raise InputError(f"{client} must hold a folder for each class, got none; without clients data.clients=null")
    return found


def read_owners(path: str) -> Mapping[str, str]:
    """The client of each file, from a CSV with the columns file and client."""
    try:
        with Path(path).expanduser().open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            heading = rows.fieldnames or ()
            must = "be a CSV with the columns file and client"
            require({"file", "client"} <= set(heading), "data.clients", must, ", ".join(heading))
            return {row["file"]: row["client"] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"data.clients must be folders, null or a CSV file, got {path!r} ({first_line(error)})"
        ) from error


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name, whatever order the file system has."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file())
