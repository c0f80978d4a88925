"""Where a Ray of this machine keeps its files, on machines where the usual places do not serve.

Ray puts unix sockets below TMPDIR, whose names the system limits to 107 bytes, splits its own command lines at blanks,
and keeps a secret below the home folder. A batch system's long TMPDIR, or a container whose user has no home, would
stop it. Then it gets folders of its own, which go when they are no longer needed; nothing else is touched.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from fedsim.errors import InputError, require

LONGEST = 107 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
"""Bytes of a folder's name below which Ray's sockets fit."""

SHORT = ("/tmp", "/var/tmp", "/dev/shm")
"""Where a folder with a short name may be."""

AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""By what a user says how Ray tells friends from strangers."""


WELCOME_S = 30
REFUSED = 77
WELCOME = f"""
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1])
except AuthenticationError:
    sys.exit({REFUSED})
"""
"""Asks a cluster's control service who may join, and exits with REFUSED where this process may not."""


def folder() -> tempfile.TemporaryDirectory[str] | None:
    """A folder with a short name for Ray's sockets and logs; None where Ray's own choice serves.

    Raises:
        InputError: no folder serves; one line.
    """
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if _serves(usual, "/ray"):
        return None
    for place in (usual, *SHORT):
        if _serves(place, "/fedsim-12345678"):
            return tempfile.TemporaryDirectory(prefix="fedsim-", dir=place, ignore_cleanup_errors=True)
    raise InputError(
        f"TMPDIR must be a writable folder of at most {LONGEST - len('/fedsim-12345678')} bytes without blanks for "
        f"engine=ray, got {usual!r}, and {', '.join(SHORT)} do not serve either; set TMPDIR, or use engine=serial"
    )


def _serves(place: str, name: str) -> bool:
    """Whether Ray can work in the folder ``name`` of ``place``."""
    path = place.rstrip("/") + name
    fits = os.path.isabs(place) and len(os.fsencode(path)) <= LONGEST and not any(c.isspace() for c in path)
    return fits and _writable(Path(path if Path(path).is_dir() else place))


def _writable(path: Path) -> bool:
    """Whether a file can be made there; permissions alone do not tell."""
    try:
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError:
        return False


def ensure_token(environ: MutableMapping[str, str] = os.environ) -> None:
    """Give Ray's secret a place when the home folder takes none and the user has not said where it is."""
    chosen = environ.get("RAY_AUTH_MODE") == "disabled" or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(environ)
    if not chosen and not _secret_at_home(environ.get("HOME")):
        environ["RAY_AUTH_TOKEN_PATH"] = str(Path(_own_secret().name) / "token")


def require_token(environ: Mapping[str, str] = os.environ) -> None:
    """Raise InputError where the file with the token that the user named has none: Ray would abort the process."""
    path = environ.get("RAY_AUTH_TOKEN_PATH", "")
    if not path or environ.get("RAY_AUTH_TOKEN") or environ.get("RAY_AUTH_MODE") == "disabled":
        return
    try:
        reason = "" if Path(path).read_bytes().strip() else "an empty file"
    except OSError as error:
        reason = str(error.strerror)
    require(not reason, "RAY_AUTH_TOKEN_PATH", f"be a file with the token ({reason})", path)


def knock(address: str | None) -> None:
    """Raise OSError at once where nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def require_welcome(address: str | None) -> None:
    """Raise ConnectionError at once where a cluster does not take this process's token; Ray would ask for a minute.

    A process of its own asks, for Ray prints a warning of its own and aborts where it cannot read its token.
    """
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit() or host.startswith("ray:"):
        return
    asked = [sys.executable, "-c", WELCOME, f"{host}:{port}"]
    with suppress(subprocess.TimeoutExpired):  # then Ray itself shall find out why nobody answers
        done = subprocess.run(asked, capture_output=True, check=False, timeout=WELCOME_S, stdin=subprocess.DEVNULL)
        if done.returncode == REFUSED:
            raise ConnectionError("it asks for a token, and has refused this process's, or got none")


def ray_auth() -> dict[str, str]:
    """The environment variables of Ray's authentication that are set here, for processes that join the same Ray."""
    return {name: os.environ[name] for name in AUTH if name in os.environ}


def _secret_at_home(home: str | None) -> bool:
    """Whether Ray finds its secret in the home folder, or can leave one there."""
    if not home:
        return False
    at = Path(home) / ".ray"
    if (at / "auth_token").is_file():
        return True
    try:
        at.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return _writable(at)


@lru_cache(maxsize=1)
def _own_secret() -> tempfile.TemporaryDirectory[str]:
    """A folder for this user alone with a new secret, until the process ends: Ray reads it once a process."""
    made = tempfile.TemporaryDirectory(prefix="fedsim-")
    path = Path(made.name) / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32), encoding="ascii")
    return made
