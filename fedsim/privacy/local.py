"""Client-level differential privacy without a trusted server: every client clips its message and adds the noise.

Duchi, Jordan, Wainwright, "Local Privacy and Statistical Minimax Rates", FOCS 2013, arXiv 1302.3203, with the Gaussian
mechanism (Dwork, Roth, "The Algorithmic Foundations of Differential Privacy", 2014, appendix A).

A message is private before it enters the channel, whatever the channel and the server do with it. What counts is how
often the same client sends (the run's epsilon is that of the client which sent most often); that cohorts are drawn at
random earns nothing beyond, since the server sees who sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedsim.objective import Objective
from fedsim.privacy.wrapped import Wrapped, noisy
from fedsim.traits import Traits
from fedsim.traits.releases import Drawn, Release
from fedsim.types import Message, Round


@dataclass(frozen=True)
class LocalNoise(Wrapped):
    """Every client clips its message and adds the noise itself."""

    @property
    def traits(self) -> Traits:
        """The algorithm's, and noise of the clients; nothing is earned by sampling."""
        return self.private("client_releases", noise="clients", own_sampling=True)

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        """The algorithm's work; its message clipped, with noise."""
        message, state = self.base.local(obj, client, got, rnd)
        sent = self.payload(self.clipped(message, self.clip))
        return {**noisy(sent, self.noise_multiplier * 2 * self.clip, obj.noise), **self.beside(message)}, state

    def releases(self, rnd: Round) -> tuple[Release, ...]:
        """``()``: nothing is let out of all clients together, each message is private by itself."""
        return ()

    def client_releases(self, rnd: Round, drawn: Drawn) -> tuple[Release, ...]:
        """A client's message, which other data of the client move by at most 2 clip."""
        if not self.noise_multiplier:
            return ()
        bound = 2 * self.clip  # from one message of norm clip to the opposite one
        return (Release(bound, self.noise_multiplier * bound, relation="replace"),)
