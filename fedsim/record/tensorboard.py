"""One TensorBoard event file of a run, written synchronously: a scalar is on disk when the call returns.

``torch.utils.tensorboard.SummaryWriter`` writes from a background thread, one event per scalar. A round's scalars as
ONE event, written at once, cost a fifth of that, and a full disk is an ``OSError`` here instead of a traceback from a
thread. The protocol buffers, the record format and the plugins' summaries are TensorBoard's and torch's own.

Steps are rounds. Scalars are float32 on disk (TensorBoard's ``simple_value``); metrics.jsonl has the exact numbers.
TensorBoard is imported when the file is created, not with this module.
"""

from __future__ import annotations

import io
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.ground.files import is_own_file
from fedsim.ground.flat import flat_hyperparameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN, PICTURES = "fedsim_run", "fedsim_pictures"
"""Ends of the names of event files: of runs, and of files with nothing but pictures. Others' end otherwise."""
DATED = re.compile(r"events\.out\.tfevents\.(\d{10})\.")
DPI = 120  # of figures: sharp on the page, 20 to 60 kB each


def charts(tags: set[str]) -> dict[str, dict[str, list[Any]]]:
    """The custom-scalars page for these tags: curves that belong together share a chart."""
    losses = sorted(tags & {"eval/loss", "train/loss"})
    scores = sorted(tag for tag in tags if tag.startswith("eval/") and tag != "eval/loss")
    sent = sorted(tag for tag in tags if tag.startswith("comm/") and tag.endswith("_bytes"))
    learning = {tag.removeprefix("eval/"): [tag] for tag in scores} | {"loss": losses}
    ratios = sorted(tag for tag in tags if tag.startswith("comm/") and tag.endswith("_ratio"))
    communication = {
        "bytes in each round": [tag for tag in sent if "_total_" not in tag],
        "bytes since the start": [tag for tag in sent if "_total_" in tag],
        "times fewer bytes than without a channel": ratios,
    }
    gossip = {
        "distance to the mean of the peers": sorted(tags & {"gossip/consensus_distance", "gossip/consensus_before"}),
        "spectral gap": sorted(tag for tag in tags if tag.startswith("gossip/") and tag.endswith("_gap")),
    }
    privacy = {"epsilon": sorted(tags & {"privacy/epsilon"})}
    clock = {"virtual time": sorted(tags & {"time/virtual_s"})}
    pages = {"learning": learning, "communication": communication, "gossip": gossip, "privacy": privacy, "time": clock}
    return {
        page: {
            title: ["Multiline", [f"^{re.escape(tag)}$" for tag in shown]] for title, shown in groups.items() if shown
        }
        for page, groups in pages.items()
        if any(groups.values())
    }


def own_event_files(folder: Path, end: str = RUN) -> list[Path]:
    """Event files in a folder whose names have this end; no links, and none where the folder is one."""
    found = [] if folder.is_symlink() else sorted(folder.glob(f"events.out.tfevents.*.{end}"))
    return [path for path in found if is_own_file(path)]


def png_of(figure: Figure) -> bytes:
    """What ``figure.savefig(file, format="png", dpi=DPI, facecolor="white")`` writes.

    That goes over a figure with a layout twice, once without drawing: a second of every short run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    png, dpi, colour = io.BytesIO(), figure.dpi, figure.get_facecolor()
    try:
        figure.dpi = DPI
        figure.set_facecolor("white")
        FigureCanvasAgg(figure).print_png(png)  # type: ignore[no-untyped-call]
    finally:
        figure.dpi = dpi
        figure.set_facecolor(colour)
    return png.getvalue()


class Picture(NamedTuple):
    """A figure that is drawn; ``width`` and ``height`` in pixels."""

    png: bytes
    width: int
    height: int

    @classmethod
    def of(cls, figure: Figure) -> Picture:
        """Draw a figure, which takes about as long as some rounds of a small run."""
        width, height = (int(inches * DPI) for inches in figure.get_size_inches())
        return cls(png_of(figure), width, height)


class EventFile:
    """The event file in a run's ``tensorboard`` folder.

    A run's file says its hyper-parameters, but not the columns of their page, which depend on all runs that are shown
    together (``record.hparams_page``).
    """

    def __init__(self, folder: Path, config: Mapping[str, Any] | None, *, begin: int = 0) -> None:
        """Create ``folder`` and its event file, and record ``config`` as the run's hyper-parameters.

        Args:
            folder: of event files; a resumed run's is another one beside the run's first.
            config: resolved configuration; None: no run, only pictures.
            begin: the first step to come; a resumed run's is > 0, and what other files have from there on is void.

        Raises:
            OSError: the folder or the file cannot be written.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.plugin_data_pb2 import SessionStartInfo
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        others = [found for path in folder.iterdir() if (found := DATED.match(path.name))]
        now = max([time.time(), *(int(found[1]) + 1 for found in others)])  # files are read in the order of their names
        end = PICTURES if config is None else RUN
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{end}"
        self._file = (folder / name).open("xb", buffering=0)
        self._records = RecordWriter(self._file)
        self._event = Event
        self._tags: set[str] = set()  # seen so far; emptied once the layout is written
        self._laid_out = begin > 1
        self._records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        if begin:
            again = Event(wall_time=now, step=begin, session_log=SessionLog(status=SessionLog.START))
            self._records.write(again.SerializeToString())
        if begin or config is None:
            return
        start = SessionStartInfo(start_time_secs=now)
        for key, value in flat_hyperparameters(config).items():
            field = (
                "bool_value"
                if isinstance(value, bool)
                else "string_value"
                if isinstance(value, str)
                else "number_value"
            )
            setattr(start.hparams[key], field, value)
        self._session(metadata.SESSION_START_INFO_TAG, session_start_info=start)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write a round's scalars as one event; the first round after round 0 also fixes the custom-scalars page."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(Summary(value=[Summary.Value(tag=tag, simple_value=float(v)) for tag, v in values.items()]), step)
        if not self._laid_out:
            self._tags |= set(values)
            if step > 0:
                from torch.utils.tensorboard import summary

                self._add(summary.custom_scalars(charts(self._tags)))  # type: ignore[no-untyped-call]
                self._laid_out = True

    def picture(self, tag: str, picture: Picture, step: int) -> None:
        """Write a picture."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        png, width, height = picture
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        self._add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def text(self, tag: str, text: str) -> None:
        """Write Markdown text."""
        from torch.utils.tensorboard import summary

        self._add(summary.text(tag, text))  # type: ignore[no-untyped-call]

    def end(self, *, success: bool) -> None:
        """Record how the run ended, for the hyper-parameters page."""
        from tensorboard.plugins.hparams import api_pb2, metadata
        from tensorboard.plugins.hparams.plugin_data_pb2 import SessionEndInfo

        status = api_pb2.Status.Value("STATUS_SUCCESS" if success else "STATUS_FAILURE")
        self._session(
            metadata.SESSION_END_INFO_TAG, session_end_info=SessionEndInfo(status=status, end_time_secs=time.time())
        )

    def columns(self, experiment: Any) -> None:
        """Write which columns the hyper-parameters page has: ``record.hparams_page.experiment(...)``."""
        from tensorboard.plugins.hparams import metadata

        self._session(metadata.EXPERIMENT_TAG, experiment=experiment)

    def close(self) -> None:
        """Close the file; everything is already written."""
        self._file.close()

    def _session(self, tag: str, **info: Any) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        content = HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **info).SerializeToString()
        plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content)
        self._add(Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))]))

    def _add(self, summary: Any, step: int = 0) -> None:
        self._records.write(self._event(wall_time=time.time(), step=step, summary=summary).SerializeToString())
