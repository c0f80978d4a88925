"""Who takes part when: cohorts in rounds, peers' events in virtual time, clients of a server that does not wait.

A schedule knows the number of clients, the round and the seed, and nothing of what clients do or hold.
"""

from fedsim.schedule.cohorts import smaller_cohort
from fedsim.schedule.delays import Asynchronous
from fedsim.schedule.rules import (
    All,
    Bernoulli,
    Cohorts,
    Cyclic,
    Events,
    Schedule,
    Uniform,
    as_accounted,
)

__all__ = [
    "All",
    "Asynchronous",
    "Bernoulli",
    "Cohorts",
    "Cyclic",
    "Events",
    "Schedule",
    "Uniform",
    "as_accounted",
    "smaller_cohort",
]
