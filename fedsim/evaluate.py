"""When a run evaluates, and what; how it is done lies in ``fedsim.runs.evaluation``."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.errors import require
from fedsim.fields import check_fields


@dataclass(frozen=True)
class Evaluate:
    """When and what to evaluate.

    >>> evaluate = Evaluate(every=10, clients=True)
    >>> [done for done in range(26) if evaluate.due(done, rounds=25)]
    [0, 10, 20, 25]

    Attributes:
        every: rounds between evaluations, >= 1; the first and the last round are always evaluated.
        clients: also report the mean, the standard deviation and the worst tenth of the clients, each on its own test
            split; of peers: the mean and the worst of their own models on all test samples, before and after mixing.
            ``worst10`` is the mean of the tenth of the clients with test samples that fare worst, rounded up: of 10
            clients the worst, of 11 to 20 the mean of two. (q-FFL's program, github litian96/fair_flearn,
            plot_fairness.py, rounds down.)
        gradient: also report what is minimised, the weighted mean of all clients' training losses, and the squared norm
            of its gradient at the global model: ``eval/train_loss``, ``eval/grad_norm2``.
    """

    every: int = 1
    clients: bool = False
    gradient: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.every >= 1, "every", "be >= 1", self.every)

    def due(self, done: int, rounds: int) -> bool:
        """Whether to evaluate after ``done`` of ``rounds`` rounds."""
        return done % self.every == 0 or done == rounds
