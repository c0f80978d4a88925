"""LEAF's samples as arrays: what each of its data sets makes of the x and y in its JSON files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from fedsim.data.images import SUFFIXES, read_images_of
from fedsim.data.memory import require_memory
from fedsim.errors import InputError, first_line, require

Kind: TypeAlias = Literal["femnist", "shakespeare", "sent140", "celeba", "features"]

LETTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""The 80 characters of LEAF's Shakespeare (models/utils/language_utils.py), numbered in this order."""

FEMNIST_CLASSES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
WORDS, SIDE = 25, 84  # of a message of Sent140; of an image of CelebA

Samples: TypeAlias = Sequence[Any]


class Made(NamedTuple):
    """The samples of a split, and what they are for."""

    x: np.ndarray
    y: np.ndarray
    task: str
    outputs: int | None
    classes: tuple[str, ...] = ()


class LeafOptions(NamedTuple):
    """What the user says beside the folder."""

    positions: Literal["every", "last"]
    vocabulary: str | None
    words: Literal["indices", "bag"]
    images: Path


def kind_of(sample: Any) -> Kind:
    """Which data set a sample is of: they can be told by what they hold.

    Raises:
        InputError: none of them.
    """
    if isinstance(sample, str):
        return "celeba" if Path(sample).suffix.lower() in SUFFIXES else "shakespeare"
    if isinstance(sample, list) and sample and all(isinstance(part, str) for part in sample):
        return "sent140"
    if isinstance(sample, list) and sample and all(isinstance(part, (int, float)) for part in sample):
        return "femnist" if len(sample) == 28 * 28 else "features"
    must = "be text, a list of text or a list of numbers, as those of FEMNIST, Shakespeare, Sent140 and CelebA are"
    raise InputError(f"data=leaf: samples must {must}, got {type(sample).__name__}")


def made(kind: Kind, x: Samples, y: Samples, told: LeafOptions) -> Made:
    """The arrays of samples, as LEAF's model of that data set makes them; deviations in ``fedsim.data.leaf``."""
    makers: dict[str, Callable[[Samples, Samples, LeafOptions], Made]] = {
        "femnist": _femnist,
        "shakespeare": _shakespeare,
        "sent140": _sent140,
        "celeba": _celeba,
        "features": _features,
    }
    return makers[kind](x, y, told)


def _femnist(x: Samples, y: Samples, told: LeafOptions) -> Made:
    return Made(_numbers(x).reshape(-1, 1, 28, 28), np.asarray(y), "classification", 62, FEMNIST_CLASSES)


def _features(x: Samples, y: Samples, told: LeafOptions) -> Made:
    return Made(_numbers(x), np.asarray(y), "classification", None)


def _shakespeare(x: Samples, y: Samples, told: LeafOptions) -> Made:
    code = np.full(0x110000, -1, np.int16)
    code[[ord(letter) for letter in LETTERS]] = range(len(LETTERS))
    following = _letters(code, "".join(y))
    require(len(following) == len(y), "data=leaf", "give one next character for each text of Shakespeare", "several")
    lengths = {len(text) for text in x}
    require(len(lengths) == 1, "data=leaf", "have texts of one length in Shakespeare", sorted(lengths)[:3])
    tokens = _letters(code, "".join(x)).reshape(len(x), -1)
    if told.positions == "last":
        return Made(tokens, following, "classification", len(LETTERS), tuple(LETTERS))
    targets = np.concatenate([tokens[:, 1:], following[:, None]], 1)
    return Made(tokens, targets, "next_token", len(LETTERS), tuple(LETTERS))


def _letters(code: np.ndarray, text: str) -> np.ndarray:
    numbers = code[np.frombuffer(text.encode("utf-32-le"), np.uint32)].astype(np.int64)
    if (numbers < 0).any():
        letter = text[int(np.flatnonzero(numbers < 0)[0])]
        raise InputError(f"data=leaf: text must hold the 80 characters of LEAF's Shakespeare only, got {letter!r}")
    return numbers


def _sent140(x: Samples, y: Samples, told: LeafOptions) -> Made:
    do = "give LEAF's embs.json (models/sent140/get_embs.sh) as data.vocabulary=FILE"
    require(told.vocabulary is not None, "data.vocabulary", "be the words that Sent140 is read with", None, do)
    words = _vocabulary(str(told.vocabulary))
    split = [re.findall(r"[\w']+|[.,!?;]", row[4]) for row in x]
    if told.words == "bag":
        require_memory("the bags of words of data=leaf", 4 * len(x) * len(words), "say data.words=indices")
        bags = np.zeros((len(x), len(words)), np.float32)
        for bag, message in zip(bags, split, strict=True):
            np.add.at(bag, [words[word] for word in message if word in words], 1)
        return Made(bags, np.asarray(y), "classification", 2)
    unknown = len(words)
    tokens = np.full((len(x), WORDS), unknown, np.int64)
    for row, message in zip(tokens, split, strict=True):
        row[: len(message[:WORDS])] = [words.get(word, unknown) for word in message[:WORDS]]
    return Made(tokens, np.asarray(y), "classification", 2)


def _vocabulary(path: str) -> Mapping[str, int]:
    try:
        listed = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))["vocab"]
        return {word: number for number, word in enumerate(listed)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"data.vocabulary must be a JSON file with the list vocab, got {path} ({first_line(error)})"
        ) from error


def _celeba(x: Samples, y: Samples, told: LeafOptions) -> Made:
    do = "unpack CelebA's img_align_celeba.zip there, or give its folder as data.images=DIR"
    require(told.images.is_dir(), "data.images", "be the folder of CelebA's images", str(told.images), do)
    files = [told.images / name for name in x]
    require(all(file.parent == told.images for file in files), "data=leaf", "name images without a folder", "others")
    images = read_images_of(files, "CelebA of data=leaf", "rgb", (SIDE, SIDE))
    return Made(images, np.asarray(y), "classification", 2)


def _numbers(x: Samples) -> np.ndarray:
    try:
        return np.array(x, np.float32)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"data=leaf: samples must be lists of equally many numbers, got others ({first_line(error)})"
        ) from error
