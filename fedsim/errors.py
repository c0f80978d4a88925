"""The errors a user sees: what was expected, what was got, what to do."""

from __future__ import annotations

from typing import Any


class InputError(ValueError):
    """A configuration, file or argument that cannot be run; raised before anything is spawned."""


class Diverged(ArithmeticError):
    """A run produced a non-finite loss or update; everything recorded before it is kept."""


class ClientError(RuntimeError):
    """A client's computation raised; the message names algorithm, round, block and clients.

    Args:
        message: what happened.
        round_: in which round, from 1; 0 where it is not known.
        clients: the block in which it happened.
    """

    def __init__(self, message: str, round_: int = 0, clients: tuple[int, ...] = ()):
        super().__init__(message)
        self.round, self.clients = round_, clients


class PoolLost(ClientError):
    """Ray, or the memory for its actors, is gone; everything recorded before is kept, and the run can go on."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped a run between its first and its last round; what it had is saved and in ``result``.

    A KeyboardInterrupt, so that it also ends whatever loop the run was in.

    Args:
        message: after which round.
        result: the ``fedsim.Result`` of the rounds that were done, its status ``interrupted``.
    """

    def __init__(self, message: str, result: Any):
        super().__init__(message)
        self.result = result


class NotSaved(OSError):
    """The last checkpoint of a run that ends could not be written; everything recorded, and the one before, is kept."""


class SweepStopped(Exception):
    """The machine under a sweep gave way, its disk say; what was written is kept, and the same command goes on."""


class JobFailed(Exception):
    """A job of a sweep did not finish and has said why; the others go on."""


def require(ok: bool, name: str, must: str, got: object, do: str = "") -> None:
    """Raise ``InputError`` unless ``ok``.

    Args:
        ok: the condition that must hold.
        name: the key as the user wrote it, for example ``lr``.
        must: the end of the sentence "NAME must ...", for example ``be > 0``.
        got: the offending value.
        do: what to do about it, when that is not obvious.

    Raises:
        InputError: ``lr must be > 0, got -1``.
    """
    if not ok:
        raise InputError(f"{name} must {must}, got {got!r}" + (f"; {do}" if do else ""))


LINE = 1000
"""Characters of a message that are kept at most."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut where it is very long, or its type where it has none.

    What other programs write into their errors may be pages, other people's command lines among them.
    """
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= LINE else f"{line[:LINE]}..."
