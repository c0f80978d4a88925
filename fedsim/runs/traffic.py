"""What a run has sent since its start: the one place where bytes are added up and compared with plain messages.

How large one message is, ``fedsim.channel.message`` says; who sent it over which link, the kind of run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedsim.channel.channel import Channel
from fedsim.channel.message import Sent

Record = dict[str, float]
"""One round: every scalar by its TensorBoard tag, and ``round``, how many rounds are done."""


@dataclass
class Traffic:
    """Bytes by kind of link (``uplink``, ``downlink``, ``edge``), and whatever else is counted.

    Attributes:
        channels: of each kind of link; None where messages are never changed, so that there is nothing to compare.
        counts: what is counted beside bytes, for example ``edges``.
        totals: since the start, by TensorBoard tag; part of a checkpoint.
        plain: what the bytes would be without channels, by ``comm/LINK``; part of a checkpoint.
    """

    channels: Mapping[str, Channel | None]
    counts: tuple[str, ...] = ()
    totals: dict[str, int] = field(init=False)
    plain: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        tags = [f"comm/{link}_total_bytes" for link in self.channels] + [f"comm/{name}_total" for name in self.counts]
        self.totals = dict.fromkeys(tags, 0)
        self.plain = {f"comm/{link}": 0 for link, channel in self.channels.items() if channel is not None}

    def add(self, sent: Mapping[str, Sent], counted: Mapping[str, int]) -> Record:
        """Add a step's; returns its part of the record: of the step, since the start, and how much was saved."""
        for link, (size, plain) in sent.items():
            self.totals[f"comm/{link}_total_bytes"] += size
            if f"comm/{link}" in self.plain:
                self.plain[f"comm/{link}"] += plain
        for name, count in counted.items():
            self.totals[f"comm/{name}_total"] += count
        step = {f"comm/{link}_bytes": size for link, (size, _) in sent.items()}
        return {**step, **{f"comm/{name}": count for name, count in counted.items()}, **self.totals, **self._ratios()}

    def _ratios(self) -> Record:
        """How many times fewer bytes than without a channel, since the start, for the links that have one."""
        return {
            f"comm/{link}_ratio": self.plain[f"comm/{link}"] / total
            for link, channel in self.channels.items()
            if channel and (total := self.totals[f"comm/{link}_total_bytes"])
        }
