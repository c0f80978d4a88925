"""The table of random addresses: every purpose at which fedsim draws, once; contractual, for results follow from it.

A random number of a run is a function of its address alone: (seed, purpose, whole numbers), as in
``rng.numpy_stream(seed, addresses.COHORT, round)``. A purpose is a string, and another string is another result, so the
strings are written here and nowhere else. This module knows nothing of who draws, nor how.

Some rows of the table are families: ``member`` adds words to their purpose. The noise of a client in its local work is
``local.normal``, that of the layer ``qsgd`` on the field ``delta`` of its message ``uplink.qsgd.delta.uniform``. Layers
and fields have the names of identifiers, so that a number in a purpose is never one of them.

**Your own code** (a partition, a data set, a topology, a script) draws with the same functions of ``fedsim.ground.rng``
at purposes of its own: strings without ``:`` whose first word, up to the first ``.``, begins no purpose of this table.
Take the name of your package or script, as in ``numpy_stream(seed, "my_study.rows")``. Nothing checks it while running:
a draw at a purpose of the table only gives that draw's numbers again. Algorithms and layers need no purpose: they draw
from the ``noise`` that they are handed.
"""

from __future__ import annotations

from dataclasses import dataclass

AUGMENT = "augment"
BATCHES = "batches"
COHORT = "cohort"
DATA_QUADRATIC = "data.quadratic"
DATA_SPLIT = "data.split"
DATA_SYNTHETIC = "data.synthetic"
DATA_SYNTHETIC_MODEL = "data.synthetic.model"
DATA_SYNTHETIC_SIZE = "data.synthetic.size"
DELAY_JITTER = "delay.jitter"
DELAY_SPEED = "delay.speed"
DROPOUT = "dropout"
EVENTS_EDGE_GAPS = "events.edge.gaps"
EVENTS_EDGE_PICKS = "events.edge.picks"
EVENTS_PEER_GAPS = "events.peer.gaps"
EVENTS_PEER_PICKS = "events.peer.picks"
INIT = "init"
PARTITION = "partition"
START = "start"
TOPOLOGY = "topology"

DOWNLINK = "downlink"
GOSSIP = "gossip"
LOCAL = "local"
SERVER = "server"
UPLINK = "uplink"

AGREEMENT = "agreement"
REHEARSAL = "rehearsal"
REHEARSAL_SERVER = "rehearsal.server"
ROTATION = "rotation"

KINDS = ("uniform", "normal", "subset")
"""The last word of a family's purposes: what is drawn."""

DRAWS = "[.part].kind"
"""What follows a family's purpose: the number of a step or piece, where there are several, and one of ``KINDS``."""
LAYERS = f".layer.field[.call]{DRAWS}"
"""The same around a message; calls are counted for layers that send several times or parameter by parameter."""


@dataclass(frozen=True)
class Purpose:
    """One row of the table.

    Attributes:
        text: the purpose.
        draws: what is drawn there.
        address: the whole numbers that follow seed and purpose in the address.
        files: who draws there.
        family: what follows ``text`` in the purposes of a family; ``[...]`` are numbers, none, one or several.
    """

    text: str
    draws: str
    address: tuple[str, ...]
    files: tuple[str, ...]
    family: str = ""


TABLE = (
    Purpose(INIT, "initial parameters of a model", (), ("models/build.py",)),
    Purpose(
        DATA_SPLIT,
        "which samples are for testing",
        (),
        ("data/digits.py", "data/gas_sensor_drift.py", "data/housing.py", "data/libsvm.py", "data/own.py"),
    ),
    Purpose(DATA_QUADRATIC, "the clients' quadratics", (), ("data/quadratic.py",)),
    Purpose(DATA_SYNTHETIC_SIZE, "how many samples each client has", (), ("data/synthetic.py",)),
    Purpose(DATA_SYNTHETIC_MODEL, "the one model of all clients (iid)", (), ("data/synthetic.py",)),
    Purpose(DATA_SYNTHETIC, "a client's model and samples", ("client",), ("data/synthetic.py",)),
    Purpose(
        PARTITION,
        "which client holds which samples",
        ("[attempt]",),
        ("partition/classes.py", "partition/dirichlet.py", "partition/natural.py", "partition/sizes.py"),
    ),
    Purpose(TOPOLOGY, "a random graph", ("round", "attempt"), ("topology/graphs.py",)),
    Purpose(COHORT, "who takes part; without a round, the cyclic order", ("[round]",), ("schedule/rules.py",)),
    Purpose(BATCHES, "which samples are in a client's minibatches", ("round", "client"), ("data/batches.py",)),
    Purpose(AUGMENT, "how these samples are flipped and cropped", ("round", "client"), ("data/batches.py",)),
    Purpose(DROPOUT, "keys of the masks of these samples", ("round", "client"), ("data/keys.py",)),
    Purpose(START, "which client starts next, asynchronously", ("number of the start",), ("runs/arrivals.py",)),
    Purpose(DELAY_SPEED, "how fast a client is", ("client",), ("schedule/delays.py",)),
    Purpose(DELAY_JITTER, "how long a participation takes", ("client", "participation"), ("schedule/delays.py",)),
    Purpose(EVENTS_PEER_GAPS, "times between gradient events", (), ("runs/events.py",)),
    Purpose(EVENTS_PEER_PICKS, "whose gradient event it is", (), ("runs/events.py",)),
    Purpose(EVENTS_EDGE_GAPS, "times between meetings", ("number of the graph",), ("runs/events.py",)),
    Purpose(EVENTS_EDGE_PICKS, "which edge's meeting it is", ("number of the graph",), ("runs/events.py",)),
    Purpose(LOCAL, "noise in a client's local work", ("round", "client"), ("pool/block.py",), DRAWS),
    Purpose(SERVER, "noise in the server's step", ("round", "0"), ("runs/of_server.py",), DRAWS),
    Purpose(UPLINK, "layers around a client's message", ("round", "client"), ("pool/block.py",), LAYERS),
    Purpose(DOWNLINK, "layers around the broadcast", ("round", "0"), ("runs/rounds.py",), LAYERS),
    Purpose(GOSSIP, "layers around a peer's message", ("round", "peer"), ("runs/gossip.py",), f"[.step]{LAYERS}"),
    Purpose(ROTATION, "signs of the secure sum's rotation (seed 0)", ("round",), ("privacy/discrete.py",)),
    Purpose(AGREEMENT, "where kernels are compared before a run", (), ("assembly/agreement.py",)),
    Purpose(REHEARSAL, "messages before a run", ("round",), ("assembly/known.py",)),
    Purpose(
        REHEARSAL,
        "noise of a client before a run",
        ("round", "model"),
        ("pool/rehearsal.py", "assembly/uses.py"),
        DRAWS,
    ),
    Purpose(
        REHEARSAL,
        "layers before a run",
        ("round", "0"),
        ("assembly/known.py", "assembly/link_memory.py", "runs/arrivals.py"),
        LAYERS,
    ),
    Purpose(
        REHEARSAL_SERVER,
        "noise of the server before a run",
        ("round", "0"),
        ("assembly/known.py", "pool/rehearsal.py"),
        DRAWS,
    ),
)
"""Every purpose. What is drawn before a run only shows that its parts fit: no number of a result depends on it."""


def member(purpose: str, *words: str | int) -> str:
    """A member of a family of purposes: these words after it, as in ``local.3.normal``."""
    return ".".join((purpose, *map(str, words)))
