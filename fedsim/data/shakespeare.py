"""Tiny Shakespeare, character by character, one natural client per speaker.

A. Karpathy, char-rnn (https://github.com/karpathy/char-rnn, data/tinyshakespeare), 2015; public domain. The split by
speaker is in the manner of LEAF (Caldas et al., "LEAF: A Benchmark for Federated Settings", arXiv 1812.01097).
Deviations from LEAF: another text (40,000 lines); windows do not overlap and every position is predicted, not only the
last; speakers of one name in several plays ("All", "First Servant") are one client.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.data.arrays import check_share, with_digest
from fedsim.data.dataset import Dataset, Split
from fedsim.data.published import DataFile, data_root, read_file
from fedsim.errors import InputError, require
from fedsim.fields import check_fields

SHAKESPEARE_FILE = DataFile("tinyshakespeare/input.txt", {"": "6fb458f1232090904fb40fe944165e91"})


@dataclass(frozen=True)
class TinyShakespeare:
    """Next-character prediction: int64 tokens x [n, t] and y [n, t], shifted by one; vocabulary of 65 characters.

    Attributes:
        length: characters per sample, t >= 1 (80 in LEAF).
        min_chars: speakers with fewer characters are dropped; large enough for one training sample each.
        test_share: the last share of each speaker's text is for testing, in [0, 1).
        root: folder that holds ``tinyshakespeare/``; None: FEDSIM_DATA or the user's cache folder.
    """

    length: int = 80
    min_chars: int = 500
    test_share: float = 0.2
    root: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.length >= 1, "length", "be >= 1", self.length)
        check_share(self.test_share)
        enough = self.min_chars - round(self.min_chars * self.test_share) > self.length
        require(enough, "min_chars", f"leave more than length={self.length} characters for training", self.min_chars)

    def load(self, seed: int) -> Dataset:
        """Read the text; the seed plays no part (the split follows the order of the text)."""
        text = read_file(data_root(self.root), SHAKESPEARE_FILE, "tiny_shakespeare")
        return windows(text, self.length, self.min_chars, self.test_share)


def speeches(text: bytes) -> dict[bytes, bytes]:
    """Each speaker's lines, joined in the order of the text.

    A line that ends in a colon, at the start or after an empty line, names who speaks until the next such line.
    """
    lines: dict[bytes, list[bytes]] = {}
    speaker: list[bytes] = []  # what precedes the first name belongs to nobody
    previous = b""
    for line in text.split(b"\n"):
        if line.endswith(b":") and not previous:
            speaker = lines.setdefault(line[:-1], [])
        else:
            speaker.append(line + b"\n")
        previous = line
    return {name: b"".join(said) for name, said in lines.items()}


def windows(text: bytes, length: int, min_chars: int, test_share: float) -> Dataset:
    """Cut every speaker's text at the test share, and both pieces into samples of ``length`` characters.

    Groups are numbered in the order of the speakers' first appearance; the last characters of a piece that do not fill
    a sample are left out.

    Raises:
        InputError: no speaker has ``min_chars`` characters.
    """
    vocabulary = np.unique(np.frombuffer(text, np.uint8))
    code = np.zeros(256, np.int64)
    code[vocabulary] = np.arange(len(vocabulary))
    kept = [code[np.frombuffer(said, np.uint8)] for said in speeches(text).values() if len(said) >= min_chars]
    if not kept:
        raise InputError(f"data.min_chars must be at most what one speaker says, got {min_chars}; lower it")
    cuts = [len(tokens) - round(len(tokens) * test_share) for tokens in kept]
    train = _split([tokens[:cut] for tokens, cut in zip(kept, cuts, strict=True)], length)
    test = _split([tokens[cut:] for tokens, cut in zip(kept, cuts, strict=True)], length)
    held = test if len(test) else None
    return with_digest(Dataset("tiny_shakespeare", train, held, "next_token", outputs=len(vocabulary)))


def _split(pieces: list[np.ndarray], length: int) -> Split:
    """Windows of all speakers: x and y [n, length], group [n]."""
    counts = [max(0, (len(piece) - 1) // length) for piece in pieces]
    x, y = (
        np.concatenate([piece[at : at + n * length] for piece, n in zip(pieces, counts, strict=True)]) for at in (0, 1)
    )
    return Split(x.reshape(-1, length), y.reshape(-1, length), np.repeat(np.arange(len(pieces)), counts))
