"""Getting files over HTTP: resumable downloads that get their name once their digest is right, and safe unpacking."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path

from fedsim.data.published import DataFile, md5_of
from fedsim.errors import InputError, first_line

TIMEOUT_S = 30
CHUNK_BYTES = 1 << 18
MEMBER_LIMIT_BYTES = 1 << 28

Report = Callable[[int, "int | None"], None]
"""Called with the bytes there so far and, where the server tells, in all."""


def fetch(url: str, target: Path, md5: str | None, report: Report) -> None:
    """Download into ``target.part``, continuing what is there, and give it its name once its digest is right.

    Args:
        url: http(s) address.
        target: the file to make; its folder exists.
        md5: expected digest, or None where none is known.
        report: told about the progress.

    Raises:
        InputError: the digest is wrong, also after a fresh start, or the connection closed early.
        OSError: the network or the disk failed; what arrived is kept for the next attempt.
    """
    part = target.with_name(target.name + ".part")
    resumed = _transfer(url, part, report)
    if resumed and md5 is not None and _md5_of_file(part) != md5:  # the old piece was of another file: start afresh
        part.unlink()
        _transfer(url, part, report)
    got, size = _md5_of_file(part), part.stat().st_size
    if md5 is not None and got != md5:
        part.unlink()
        raise InputError(
            f"{url}: expected md5 {md5}, got {got} ({size} bytes); the file there is not the published one, "
            "get it from another server"
        )
    os.replace(part, target)


def _transfer(url: str, part: Path, report: Report) -> bool:
    """Append what is missing of ``part``; returns whether bytes of an earlier attempt were kept."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "fedsim"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # nothing is missing; the digest tells whether it is the right file
        raise
    with response:
        resumed = bool(response.status == HTTPStatus.PARTIAL_CONTENT)
        size = start if resumed else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else size + int(length)
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                size += len(chunk)
                report(size, total)
    if total is not None and size != total:
        raise InputError(f"{url}: the connection closed after {size} of {total} bytes; run again to continue")
    return resumed


def unpack(archive: Path, root: Path, files: Sequence[DataFile]) -> None:
    """Write the expected members of a .tar.gz or .zip to their places below ``root``; every other member is ignored.

    Members are found by their base name, so a path inside the archive never decides where something is written.

    Raises:
        InputError: the archive is damaged, lacks a file, or holds one with the wrong digest.
    """
    wanted = {file.name: file for file in files}
    try:
        for name, content in _members(archive):
            file = wanted.pop(name, None)
            if file is not None:
                _place(root / file.path, content(), file.md5.get(""), archive)
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{archive}: cannot be unpacked ({first_line(error)}); delete it and run again") from error
    if wanted:
        raise InputError(f"{archive}: holds no {', '.join(wanted)}; delete it and get the published archive")


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Base name and reader of every regular member of a bearable size."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if not info.is_dir() and info.file_size <= MEMBER_LIMIT_BYTES:
                    yield Path(info.filename).name, partial(zipped.read, info)
        return
    with tarfile.open(archive, "r:gz") as tarred:
        for member in tarred:
            stream = tarred.extractfile(member) if member.isreg() and member.size <= MEMBER_LIMIT_BYTES else None
            if stream is not None:
                yield Path(member.name).name, stream.read


def _place(path: Path, content: bytes, md5: str | None, archive: Path) -> None:
    if md5 is not None and md5_of(content) != md5:
        raise InputError(
            f"{archive}: {path.name} should have md5 {md5}, got {md5_of(content)}; delete it and run again"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def _md5_of_file(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
