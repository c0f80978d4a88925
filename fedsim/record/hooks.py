"""The callbacks of one run, called one after the other; one that raises does not cost the run a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fedsim.callbacks.base import Callback, RunView
from fedsim.errors import InputError
from fedsim.ground.console import warning
from fedsim.ground.own_code import FAILURES, error_line, own_code, place


class Hooks:
    """The callbacks of a run that listen; nobody before ``begin``."""

    def __init__(self) -> None:
        self._live: list[Callback] = []

    @property
    def listening(self) -> bool:
        """Whether anybody does."""
        return bool(self._live)

    def begin(self, callbacks: Sequence[Callback], run: RunView) -> None:
        """Tell these callbacks, in the order in which they will be called, what the run is.

        Raises:
            InputError: one of them cannot begin; the run has not begun either.
        """
        for callback in callbacks:
            name = f"callback {_name(callback)}"
            try:
                with own_code(name, callback):
                    callback.begin(run)
            except InputError:
                raise
            except FAILURES as error:  # of a tracker's library: no line of a user's took part
                raise InputError(f"{name} cannot begin: {error_line(error)}") from error
            self._live.append(callback)

    def heard(self, record: Mapping[str, float]) -> str:
        """Tell all of them of a round; returns why the run shall stop, or "".

        Raises:
            InputError: a callback waits for what the run does not have.
        """
        said = []
        for callback in tuple(self._live):
            shown = MappingProxyType(dict(record))
            why = self._called(callback, "record", callback.record, shown)
            said += [f"{_name(callback)}: {why}"] if why else []
        return "; ".join(said)

    def end(self, summary: Mapping[str, Any]) -> None:
        """Tell all of them, once, that the run is over."""
        while self._live:
            callback = self._live[0]
            self._called(callback, "end", callback.end, MappingProxyType(dict(summary)))
            self._live = [other for other in self._live if other is not callback]

    def close(self) -> None:
        """Tell those who do not know yet that the run came to nothing."""
        self.end({"status": "failed", "rounds": 0})

    def _called(self, callback: Callback, what: str, method: Callable[[Any], Any], value: Any) -> Any:
        """What a method answers; a callback that fails is named and listens no more."""
        try:
            return method(value)
        except FAILURES as error:  # a user's code, or a tracker's: any type
            if isinstance(error, InputError) and what == "record":
                raise
            self._live = [other for other in self._live if other is not callback]
            where = place(error, callback) or f"{_name(callback)} failed in {what}"
            warning(f"callback {where}: {error_line(error)}; the run goes on without it")
            return None


def _name(callback: Callback) -> str:
    return type(callback).__name__
