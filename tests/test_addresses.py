"""Every random draw takes its purpose from one table, no two purposes can meet, and their strings stay as they are."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from itertools import combinations, product
from pathlib import Path

import pytest

from fedsim.ground import addresses, rng
from fedsim.ground.addresses import KINDS, TABLE, Purpose, member

ROOT = Path(__file__).parent.parent
FILES = {str(path.relative_to(ROOT)): path for path in sorted((ROOT / "fedsim").rglob("*.py"))}
CONSTANTS = {
    name: text
    for name, text in vars(addresses).items()
    if isinstance(text, str) and name.isupper() and name not in ("DRAWS", "LAYERS")
}

STRINGS = """
agreement augment batches cohort data.quadratic data.split data.synthetic data.synthetic.model data.synthetic.size
delay.jitter delay.speed downlink dropout events.edge.gaps events.edge.picks events.peer.gaps events.peer.picks gossip
init local partition rehearsal rehearsal.server rotation server start topology uplink
"""


def test_the_strings_are_contractual() -> None:
    """Another string is another result of every run that draws there: change nothing here."""
    assert sorted({row.text for row in TABLE}) == STRINGS.split()
    assert sorted(CONSTANTS.values()) == STRINGS.split()
    assert KINDS == ("uniform", "normal", "subset")
    assert member("uplink", "qsgd.delta", "uniform") == "uplink.qsgd.delta.uniform"
    assert member(member("gossip", 2), "topk.x.0.1", "subset") == "gossip.2.topk.x.0.1.subset"


def test_the_numbers_are_contractual() -> None:
    assert rng.key(0, "batches", 0, 0) == 2940860662046030247
    assert rng.key(7, "uplink.qsgd.delta.uniform", 3, 12) == 3194692807855854564
    assert rng.key(2, "partition") == 2864410761942273256


CARRIERS = {
    "fedsim.ground.rng": ("key", "stream", "streams", "numpy_stream", "scoped"),
    "fedsim.channel.noise": ("Addressed",),
    "fedsim.channel.channel": ("noises",),
}
"""What takes a purpose, its second argument: what draws, and what hands it on to what draws."""
HANDED_ON = {
    "fedsim/ground/rng.py": "purpose",
    "fedsim/channel/noise.py": "self.purpose",
    "fedsim/channel/channel.py": "link",
}
"""The files of ``CARRIERS``, which draw at the purpose that their callers have taken from the table."""


def imported(tree: ast.Module) -> set[str]:
    """What a file calls the things of others that take a purpose."""
    out: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                own = alias.asname or alias.name
                out |= {own} if alias.name in CARRIERS.get(node.module, ()) else set()
                inside = CARRIERS.get(f"{node.module}.{alias.name}", ())
                out |= {f"{own}.{name}" for name in inside}
        elif isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & set(CARRIERS), "import names from there"
    return out


def from_table(purpose: ast.expr, handed: str | None) -> bool:
    """Whether an expression is a purpose of the table, one of a family's members, or one that was handed on."""
    if isinstance(purpose, ast.IfExp):
        return from_table(purpose.body, handed) and from_table(purpose.orelse, handed)
    if isinstance(purpose, ast.Call):
        return ast.unparse(purpose.func) == "addresses.member" and from_table(purpose.args[0], handed)
    return ast.unparse(purpose) in {handed, *(f"addresses.{name}" for name in CONSTANTS)}


def assigned(tree: ast.AST, name: str) -> list[ast.expr]:
    """What is assigned to a name."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    return [node.value for node in nodes if [ast.unparse(target) for target in node.targets] == [name]]


def strange(file: str, source: str) -> list[str]:
    """The draws of a file whose purpose is not from the table, and the uses of what draws that are not calls."""
    tree, handed = ast.parse(source), HANDED_ON.get(file)
    others = imported(tree)
    names = others | set(CARRIERS.get(file.removesuffix(".py").replace("/", "."), ()))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in names]
    called = {id(call.func) for call in calls}
    named = [node for node in ast.walk(tree) if isinstance(node, (ast.Name, ast.Attribute))]
    around = [node for node in named if ast.unparse(node) in others and id(node) not in called]
    out = [f"{node.lineno}: {ast.unparse(node)} is handed around" for node in around]
    for call in calls:
        purpose = call.args[1] if len(call.args) > 1 else None
        values = [purpose] if purpose else []
        if isinstance(purpose, ast.Name) and purpose.id != handed:
            values = assigned(tree, purpose.id)
        if not values or not all(from_table(value, handed) for value in values):
            out.append(f"{call.lineno}: {ast.unparse(call)}")
    return out


@pytest.mark.parametrize("file", FILES)
def test_every_draw_takes_its_purpose_from_the_table(file: str) -> None:
    assert not strange(file, FILES[file].read_text())


@pytest.mark.parametrize(
    "code",
    [
        'from fedsim.ground.rng import stream\nstream(0, "batches", 1)',
        'from fedsim.ground.rng import key as name\nname(0, f"gossip.{2}")',
        'from fedsim.ground import rng\nrng.numpy_stream(0, "a" + "b")',
        'from fedsim.ground import rng\npurpose = "start"\nrng.scoped(0, purpose)',
        "from fedsim.ground import rng\ndef f(purpose): rng.scoped(0, purpose)",
        "from fedsim.ground.rng import stream\ndraw = stream",
        "from fedsim.channel.channel import noises\nnoises(seed=0, link=addresses.UPLINK)",
        'from fedsim.channel.noise import Addressed\nAddressed(0, addresses.member("uplink", 1), 0, 0)',
    ],
)
def test_the_law_sees(code: str) -> None:
    assert strange("fedsim/some.py", code)


def test_the_table_says_who_draws() -> None:
    said, found = defaultdict(set), defaultdict(set)
    for row in TABLE:
        said[row.text] |= set(row.files)
    for file, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "addresses" and node.attr in CONSTANTS:
                found[CONSTANTS[node.attr]].add(file.removeprefix("fedsim/"))
    assert dict(found) == dict(said)


NUMBER, IDENTIFIER = re.compile(r"\d+"), re.compile(r"[A-Za-z_]\w*")
WORDS = {"kind": re.compile("|".join(KINDS)), "layer": IDENTIFIER, "field": IDENTIFIER}


def forms(row: Purpose) -> list[tuple[str | re.Pattern[str], ...]]:
    """The purposes of a row word by word, a word being a string or what all strings in its place look like."""
    parts = re.findall(r"\[\.\w+\]|\.\w+", row.family)
    choices = [[(NUMBER,) * k for k in range(4)] if p[0] == "[" else [(WORDS[p[1:]],)] for p in parts]
    return [(*row.text.split("."), *(word for words in chosen for word in words)) for chosen in product(*choices)]


def meet(a: str | re.Pattern[str], b: str | re.Pattern[str]) -> bool:
    """Whether some string fits both words."""
    if isinstance(a, str):
        return a == b if isinstance(b, str) else b.fullmatch(a) is not None
    if isinstance(b, str):
        return meet(b, a)
    return (a is NUMBER) == (b is NUMBER)


def collide(one: Purpose, other: Purpose) -> bool:
    """Whether the two rows have a purpose in common."""
    pairs = product(forms(one), forms(other))
    return any(len(a) == len(b) and all(map(meet, a, b)) for a, b in pairs)


@pytest.mark.parametrize(("one", "other"), list(combinations(TABLE, 2)), ids=lambda row: row.text + row.family)
def test_no_two_purposes_can_meet(one: Purpose, other: Purpose) -> None:
    assert not collide(one, other)


def test_the_law_sees_collisions() -> None:
    def row(text: str, family: str = "") -> Purpose:
        return Purpose(text, "", (), (), family)

    assert collide(row("start"), row("start"))
    assert collide(row("gossip", "[.step].kind"), row("gossip", "[.part].kind"))
    assert collide(row("gossip", ".layer.field.kind"), row("gossip.topk.x.normal"))
    assert not collide(row("gossip", "[.step].layer.field.kind"), row("gossip", "[.part].kind"))


def test_a_purpose_cannot_run_into_the_numbers_after_it() -> None:
    """(purpose, numbers) are joined by ``:``, which no purpose has."""
    assert not [row.text for row in TABLE if ":" in row.text + row.family]


def test_scripts_draw_at_purposes_of_their_own() -> None:
    heads = {row.text.partition(".")[0] for row in TABLE}
    own = []
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        own += re.findall(r"(?:stream|scoped|key)\(\w+, \"([^\"]+)\"", path.read_text())
    assert own  # the reproductions draw
    assert not [purpose for purpose in own if purpose.partition(".")[0] in heads or ":" in purpose]
