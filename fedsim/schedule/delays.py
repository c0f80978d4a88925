"""Clients that start when others finish, and how long they take."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from typing import Literal

from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.rng import numpy_stream
from fedsim.schedule.rules import cohort_size


@dataclass(frozen=True)
class Asynchronous:
    """Some clients are at work at any time; who finishes is replaced by an idle client, drawn uniformly.

    A participation takes its latency, steps * step_s / speed * jitter, and its bytes by the speeds of the links. Speeds
    of clients and jitter of participations are lognormal with median 1.

    Attributes:
        concurrency: clients at work at once, in 1..n; ``auto``: ten, or all of fewer.
        step_s: seconds of a local step for a client of speed 1, >= 0.
        speed_sigma: standard deviation of the logarithm of clients' speeds, >= 0; 0: all alike.
        jitter_sigma: standard deviation of the logarithm of the factor that each participation has, >= 0.
        downlink_mbps: megabits a second from the server, > 0; None: no time.
        uplink_mbps: likewise to the server; the bytes are those of a first message through the channel.
        latency_s: seconds of each participation beside, >= 0.
    """

    concurrency: int | Literal["auto"] = "auto"
    step_s: float = 1.0
    speed_sigma: float = 0.5
    jitter_sigma: float = 0.0
    downlink_mbps: float | None = None
    uplink_mbps: float | None = None
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.concurrency == "auto" or self.concurrency >= 1, "concurrency", "be >= 1 or auto", self.concurrency)
        for name in ("step_s", "speed_sigma", "jitter_sigma", "latency_s"):
            require(getattr(self, name) >= 0, name, "be >= 0", getattr(self, name))
        for name in ("downlink_mbps", "uplink_mbps"):
            rate: float | None = getattr(self, name)
            require(rate is None or rate > 0, name, "be > 0, or null for no time", rate)

    def check(self, population: int, rounds: int) -> None:
        """Raise InputError where ``concurrency`` is larger than the number of clients."""
        must = f"be <= the {population} clients"
        require(self.expected(population) <= population, "schedule.concurrency", must, self.concurrency)

    def expected(self, population: int) -> int:
        """As many clients as are at work at once."""
        return cohort_size(self.concurrency, population)

    def clients(self, index: int, population: int, seed: int) -> tuple[int, ...]:
        """All clients: whoever is idle may be the next to begin."""
        return tuple(range(population))

    def seconds(self, seed: int, client: int, participation: int, steps: int, down: int, up: int) -> float:
        """How long a participation takes.

        Args:
            seed: of the run.
            client: its number.
            participation: how often the client began before.
            steps: local steps.
            down: bytes that it gets.
            up: bytes that it sends.
        """
        log = self.jitter_sigma * numpy_stream(seed, addresses.DELAY_JITTER, client, participation).standard_normal()
        log -= self.speed_sigma * numpy_stream(seed, addresses.DELAY_SPEED, client).standard_normal()
        links = sum(8e-6 * size / rate for size, rate in ((down, self.downlink_mbps), (up, self.uplink_mbps)) if rate)
        return self.latency_s + links + steps * self.step_s * exp(log)
