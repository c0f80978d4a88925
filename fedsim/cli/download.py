"""``fedsim download NAME``: public data sets in the layout that fedsim reads; resumable, checked, unpacked.

Every file is checked against the digest in ``fedsim.data`` before it gets its name; an interrupted download is resumed
by running the command again.
"""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fedsim.assembly.problems import did_you_mean
from fedsim.data.downloads import DOWNLOADS, Download, by_hand
from fedsim.data.fetch import fetch, unpack
from fedsim.data.published import data_root, locate, read_file
from fedsim.errors import InputError
from fedsim.ground.console import note


def download(names: Sequence[str], root: str | None, mirror: str | None) -> int:
    """Make sure that the files of these data sets are in place; returns the exit code.

    Args:
        names: keys of ``DOWNLOADS``.
        root: the data root; None: where fedsim looks for it.
        mirror: a URL whose files of these names are got instead of those at each file's public home.

    Raises:
        InputError: there is no such data set, or its files cannot be had, are damaged, or are not the published ones.
    """
    if unknown := [name for name in names if name not in DOWNLOADS] or ([] if names else ["nothing"]):
        meant = did_you_mean(unknown[0], DOWNLOADS)
        raise InputError(f"NAME must be one of {', '.join(DOWNLOADS)}, got {unknown[0]}; {meant}fedsim download NAME")
    place = data_root(root)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as bars:
            for name in dict.fromkeys(names):
                for one in DOWNLOADS[name]:
                    done = obtain(name, one, place, mirror, bars)
                    note(f"{name}: {Path(one.path).name} {done} in {(place / one.gives[0].path).parent}")
    except KeyboardInterrupt:
        note("interrupted; run again to continue")
        raise
    return 0


def obtain(name: str, one: Download, root: Path, mirror: str | None, bars: Progress) -> str:
    """Make sure that the files of one download are in place; returns what was done.

    Raises:
        InputError: they cannot be had, are damaged, or are not the published ones.
    """
    if all(locate(root, file) is not None for file in one.gives):
        for file in one.gives:
            read_file(root, file, name)
        return "already there"
    url = one.url if mirror is None else f"{mirror.rstrip('/')}/{one.url.rsplit('/', 1)[1]}"
    target = root / one.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            bar = bars.add_task(target.name, total=None)
            fetch(url, target, one.md5, lambda done, total: bars.update(bar, completed=done, total=total))
        if one.is_archive:
            unpack(target, root, one.gives)
            target.unlink()
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{name}: cannot get {url} ({_reason(error)}); check the network and run again, give --mirror URL, or put "
            f"the files in their place yourself: {by_hand(name, root)}"
        ) from error
    return "unpacked" if one.is_archive else "downloaded"


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return " ".join(str(reason).split()) or type(error).__name__
