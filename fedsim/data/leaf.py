"""LEAF's data sets from its JSON files, with its users as natural clients.

S. Caldas et al., "LEAF: A Benchmark for Federated Settings", arXiv 1812.01097, https://github.com/TalwalkarLab/leaf,
whose preprocess.sh writes data/train/*.json and data/test/*.json. Samples become what LEAF's own models make of them:

- FEMNIST: float32 [n, 1, 28, 28] in 0..1, 62 classes;
- Shakespeare: 80 characters by their number among LEAF's 80, and the next one;
- Sent140: the numbers of the first 25 words of a message, or how often each word stands in it (``words=bag``);
- CelebA: its images as rgb of 84x84, whether the person smiles;
- lists of other lengths (LEAF's synthetic data): float32 features [n, f].

Deviations: in Shakespeare every position has a target, as ``char_lstm`` predicts, unless ``positions=last`` says
otherwise; a character that is none of the 80 is refused, which LEAF counts as the last one; CelebA's images are scaled
with mean and deviation of the training images, where LEAF leaves 0..255, and resized with Pillow's bilinear filter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedsim.data.dataset import Dataset
from fedsim.data.leaf_samples import Kind, LeafOptions, kind_of, made
from fedsim.data.memory import require_memory
from fedsim.data.own import from_arrays
from fedsim.errors import InputError, first_line, require
from fedsim.fields import check_fields

_DO = "run LEAF's preprocess.sh, which writes it"


@dataclass(frozen=True)
class Leaf:
    """LEAF's FEMNIST, Shakespeare, Sent140 or CelebA from its JSON files, with its users as natural clients.

    Attributes:
        path: the folder with train/*.json and test/*.json: LEAF's data/NAME/data.
        kind: ``femnist``, ``shakespeare``, ``sent140``, ``celeba`` or ``features`` (other lists of numbers); None: told
            by the samples.
        positions: Shakespeare: ``every`` position has a target, as for ``model=char_lstm``, or only the ``last``, as in
            LEAF (task classification: a model gives outputs for that one).
        vocabulary: Sent140: LEAF's embs.json, or a JSON file with the list of words ``vocab``.
        words: Sent140: ``indices`` [n, 25], or a ``bag`` [n, words of the vocabulary].
        images: CelebA: the folder of its images; None: raw/img_align_celeba in the folder of ``path``.
    """

    path: str
    kind: Kind | None = None
    positions: Literal["every", "last"] = "every"
    vocabulary: str | None = None
    words: Literal["indices", "bag"] = "indices"
    images: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def load(self, seed: int) -> Dataset:
        """Read the files; the seed plays no part, for LEAF has divided training from testing."""
        root = Path(self.path).expanduser()
        train, test = read_users(root / "train"), read_users(root / "test")
        kind = self.kind or kind_of(train.x[0])
        images = root / "raw" / "img_align_celeba" if self.images is None else Path(self.images).expanduser()
        told = LeafOptions(self.positions, self.vocabulary, self.words, images)
        first, second = (made(kind, split.x, split.y, told) for split in (train, test))
        given: dict[str, Any] = {"x": first.x, "y": first.y, "client": train.users}
        given |= {"x_test": second.x, "y_test": second.y, "client_test": test.users}
        options: dict[str, Any] = {"task": first.task, "outputs": first.outputs, "classes": first.classes}
        return from_arrays(**given, **options, name=f"leaf {kind}").load(seed)


class Read(NamedTuple):
    """The samples of a split as the JSON files have them, in their order."""

    x: list[Any]
    y: list[Any]
    users: list[str]  # of each sample


def read_users(folder: Path) -> Read:
    """The samples of all JSON files of a folder, files in ascending order of their names.

    Raises:
        InputError: there are none, or a file is not in LEAF's form.
    """
    files = sorted(folder.glob("*.json"))
    require(bool(files), "data.path", f"be a folder with {folder.name}/*.json", str(folder.parent), _DO)
    require_memory(str(folder), sum(file.stat().st_size for file in files))
    found = Read([], [], [])
    for file in files:
        for user, samples in _user_data(file).items():
            x, y = samples["x"], samples["y"]
            require(len(x) == len(y), f"{file}: user {user}", "have one y for each x", f"{len(y)} for {len(x)}", _DO)
            found.x.extend(x)
            found.y.extend(y)
            found.users.extend([user] * len(x))
    require(bool(found.x), str(folder), "hold samples", 0, _DO)
    return found


def _user_data(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
        users: dict[str, Any] = content["user_data"]
        good = all(isinstance(user["x"], list) and isinstance(user["y"], list) for user in users.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: must be JSON with user_data of x and y, got {first_line(error)}; {_DO}") from error
    require(good, str(file), "hold lists x and y for each user", "others", _DO)
    return users
