"""Where data files lie and how they are read: data root, published digests, compressed forms, clear errors."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fedsim.errors import InputError, first_line
from fedsim.fields import check_fields

_DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".xz": lzma.decompress,
    ".bz2": bz2.decompress,
}
FORMS = ("", *_DECOMPRESS)


@dataclass(frozen=True)
class DataFile:
    """A file of a data set, relative to the data root.

    Attributes:
        path: where it lies when it is not compressed; ``.gz``, ``.xz`` or ``.bz2`` may be appended.
        md5: published digest of each form, keyed "" (not compressed), ".gz", ".xz" or ".bz2". The digest of the plain
            content also vouches for a form that has none of its own. Empty: none was published, nothing is checked.
    """

    path: str
    md5: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        """The file's own name."""
        return Path(self.path).name


def data_root(root: str | None) -> Path:
    """The folder that holds the data sets' folders.

    ``root`` if given, else the environment variable FEDSIM_DATA, else fedsim/ in the user's cache folder.
    """
    if root is None:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        root = os.environ.get("FEDSIM_DATA") or str(Path(cache) / "fedsim")
    try:
        return Path(root).expanduser()
    except RuntimeError as error:
        raise InputError("FEDSIM_DATA must be set where there is no home folder, got nothing") from error


def md5_of(content: bytes) -> str:
    """Hexadecimal md5, as data sets publish it (a check against damage, not against an adversary)."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def locate(root: Path, file: DataFile) -> Path | None:
    """The first form of the file that exists, the uncompressed one first, or None."""
    candidates = (root / (file.path + form) for form in FORMS)
    return next((path for path in candidates if path.is_file()), None)


def read_file(root: Path, file: DataFile, source: str) -> bytes:
    """The file's uncompressed content, after its digest was checked.

    Args:
        root: the data root.
        file: which file.
        source: the data set's name for ``fedsim download``.

    Raises:
        InputError: the file is missing, cannot be read, or is not the published one.
    """
    return read_files(root, [file], source)[0]


def read_files(root: Path, files: Sequence[DataFile], source: str) -> list[bytes]:
    """The uncompressed contents of a data set's files, decompressed on all cores.

    Every file is looked for and every digest taken before anything is decompressed, so that an error comes at once.

    Raises:
        InputError: as ``read_file``, for the first file that is not right.
    """
    do = f"delete it and run `fedsim download {source}`"
    paths = [_found(root, file, source) for file in files]
    stored = [_stored(path, file.md5, do) for path, file in zip(paths, files, strict=True)]
    contents = {s.path: _content(s, do) for s in stored if not s.trusted and s.md5}  # damaged, or compressed anew
    with ThreadPoolExecutor() as threads:  # decompression releases the interpreter lock
        rest = [s for s in stored if s.path not in contents]
        contents |= zip([s.path for s in rest], threads.map(lambda s: _content(s, do), rest), strict=True)
    return [contents[path] for path in paths]


def read_path(path: Path, md5: Mapping[str, str], do: str) -> bytes:
    """The uncompressed content of one file.

    Args:
        path: the file; its suffix tells how it is compressed.
        md5: accepted digests by form, see ``DataFile.md5``.
        do: what to do about a damaged file.

    Raises:
        InputError: the file cannot be read or decompressed, or its digest is not the expected one.
    """
    return _content(_stored(path, md5, do), do)


class _Stored(NamedTuple):
    """A file as it lies on the disk."""

    path: Path
    raw: bytes
    form: str  # how it is compressed
    md5: Mapping[str, str]  # accepted digests by form
    trusted: bool  # the digest of this form is known and right


def _found(root: Path, file: DataFile, source: str) -> Path:
    path = locate(root, file)
    if path is None:
        folder = (root / file.path).parent
        raise InputError(
            f"{source}: no file {file.name} (plain, .gz, .xz or .bz2) in {folder}; run `fedsim download {source}`, or "
            f"put the file there, or set FEDSIM_DATA or data.root to the folder that holds {Path(file.path).parts[0]}"
        )
    return path


def _stored(path: Path, md5: Mapping[str, str], do: str) -> _Stored:
    """Read a file; a wrong digest of its form is an error at once where the plain content has no digest of its own."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    form = path.suffix if path.suffix in _DECOMPRESS else ""
    trusted = form in md5 and md5_of(raw) == md5[form]
    if form in md5 and not trusted and (not form or "" not in md5):
        raise InputError(_damaged(path, md5[form], md5_of(raw), len(raw), do))
    return _Stored(path, raw, form, md5, trusted)


def _content(stored: _Stored, do: str) -> bytes:
    path, raw, form, md5, trusted = stored
    try:
        content = _DECOMPRESS[form](raw) if form else raw
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        if form in md5:
            raise InputError(_damaged(path, md5[form], md5_of(raw), len(raw), do)) from error
        raise InputError(f"{path}: cannot be decompressed ({first_line(error)}); {do}") from error
    if form and not trusted and "" in md5 and md5_of(content) != md5[""]:
        raise InputError(_damaged(path, md5.get(form, md5[""]), md5_of(raw), len(raw), do))
    return content


def _damaged(path: Path, expected: str, got: str, size: int, do: str) -> str:
    return f"{path}: damaged, or not the published file: expected md5 {expected}, got {got} ({size} bytes); {do}"
