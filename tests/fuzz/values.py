"""What is put into a key: right there, nearly right, or nonsense; it survives JSON, so that cases can be kept."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from hypothesis import strategies as st

from tests.fuzz.tree import Key

TARGETS = (
    "os.system",
    "os.getcwd",
    "builtins.dict",
    "builtins.exec",
    "sys.exit",
    "time.sleep",
    "subprocess.run",
    "shutil.rmtree",
    "torch.load",
    "torch.nn.Linear",
    "numpy.load",
    "pickle.loads",
    "tests.fuzz.foreign.function",
    "tests.fuzz.foreign.Thing",
    "fedsim.simulate",
    "fedsim.data.Digits",
    "fedsim.partition.Iid",
    "fedsim.nothing",
    "nowhere.Thing",
    "",
    ".",
    "a..b",
)
"""Names of code, hardly any of which may be called anywhere."""

NODES = st.one_of(
    st.sampled_from(TARGETS).map(lambda name: {"_target_": name}),
    st.sampled_from(TARGETS).map(lambda name: {"_target_": name, "command": "touch called", "secs": 1000}),
    st.just({"_target_": "tests.fuzz.foreign.function", "_partial_": True}),
)
NUMBERS = (0, -1, 1, 2**31, 2**63, 10**40, -(2**63), 0.5, -0.5, 1e308, 5e-324, float("nan"), float("inf"), -0.0)
TEXTS = (
    "",
    " ",
    "abc",
    "None",
    "full",
    "auto",
    "true",
    "1",
    "é",
    "☃ \u202e",
    "a/b",
    "../x",
    "/",
    "???",
    "x" * 3000,
    "\\",
)
INTERPOLATIONS = (
    "${nope}",
    "${seed}",
    "${rounds",
    "${oc.env:HOME}",
    "${oc.env:NOPE_}",
    "${now:%Y}",
    "${hydra:run.dir}",
)
SHAPES: tuple[Any, ...] = (None, True, False, [], {}, [None], [[]], {"a": 1}, [1, "a"], {"": None}, [1] * 50, {"a": {}})
NONSENSE = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(INTERPOLATIONS),
    st.sampled_from(SHAPES),
    NODES,
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6),
)

LONG = ("rounds", "clients", "steps", "epochs", "t_end", "gossip_steps", "record")
"""Keys of which a large value that fits means long work, which is no hang; they are given none."""


def right(key: Key) -> st.SearchStrategy[Any]:
    """A value of the key's annotation in the neighbourhood of the one that it has."""
    kinds = get_args(key.kind) if type(None) in get_args(key.kind) or get_origin(key.kind) is not None else (key.kind,)
    if get_origin(key.kind) is Literal:
        return st.sampled_from(get_args(key.kind))
    choices: list[Any] = [key.value]
    for kind in kinds:
        choices += get_args(kind) if get_origin(kind) is Literal else []
    value = key.value
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int) or (value is None and int in kinds):
        choices += [1, 2, 3] if value is None else [1, 2, max(1, value // 2), value + 1 if value < 10 else value]
    if isinstance(value, float) or (value is None and float in kinds and int not in kinds):
        choices += [0.5, 1.0, 0.05] if value is None else [value / 2, value * 2, 0.5, 1.0]
    return st.sampled_from(choices)


def nearly(key: Key) -> st.SearchStrategy[Any]:
    """At the borders of what may be right."""
    value = key.value
    if isinstance(value, float):
        return st.sampled_from([0.0, 1.0, -value, 1 - 1e-16, 1e-300, 1e4, 0, 1, str(value)])
    if isinstance(value, int) and not isinstance(value, bool):
        return st.sampled_from([0, 1, -value, float(value), value + 0.5, value + 1, str(value), [value]])
    return st.sampled_from([None, 0, 1, 0.0, 1.0, "null", "none", [value], True])


def wrong(key: Key) -> st.SearchStrategy[Any]:
    """Nonsense."""
    if key.name.rpartition(".")[2] in LONG:
        return NONSENSE.filter(lambda value: not (type(value) in (int, float) and value > 100))
    if key.name.endswith("_target_"):
        return st.one_of(st.sampled_from(TARGETS), NONSENSE)
    return NONSENSE
