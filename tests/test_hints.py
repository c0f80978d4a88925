"""Whatever a docstring, a configuration or a document tells the user to type can be typed, and gives what it says.

Three laws over the whole catalogue: every command and every run of GROUP=OPTION and GROUP.KEY=VALUE that is printed
anywhere composes and builds; every layer of the channel that is named exists; ``algorithm=NAME`` alone is the method,
with the schedule, the graph and the compression that it needs.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from fedsim.assembly.configuration import build_run
from fedsim.assembly.factory import MODEL_KEYS
from fedsim.assembly.link_memory import compression_notes
from fedsim.cli.compose import compose
from fedsim.simulation import simulate
from fedsim.traits.declared import traits_of
from tests.laws.test_catalogue import algorithm

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
ALGORITHMS = sorted(path.stem for path in (CONFIGS / "algorithm").glob("*.yaml"))
LAYERS = {path.stem for path in (CONFIGS / "channel").glob("*.yaml")}
GROUPS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "hydra")
SECTIONS = ("local", "evaluate", "logger", "checkpoint")
SOURCES = sorted(
    path
    for pattern in ("fedsim/**/*.py", "configs/**/*.yaml", "docs/*.md", "scripts/**/*.py", "README.md")
    for path in ROOT.glob(pattern)
)
TOKEN = rf"(?:{'|'.join((*GROUPS, 'downlink', *SECTIONS))})(?:\.[a-z_0-9]+)*=[\w.,\[\]/+*-]+"
HINT = re.compile(rf"(?<![\w./~-]){TOKEN}(?:\s+(?:{TOKEN}|(?:rounds|seed)=[\d,]+))*")
# Names that stand for the reader's own: NAME, my_module, the examples that the documents write down in full.
OWN = re.compile(
    r"[A-Z]{2,}|my_module|_target_=(?!fedsim)|kept|window|a\.B|\[a,b,c\]|nosuch|\.\.\.|\.mu=1$|=fast$|^sweep|=(focal|wrong|stoping)\.?|early_stoping|^task\.gamma|root=\.|=[A-Z]\w+$|_$|\d+\.\d+\.\d+\.\d+"
)


@cache
def said(path: Path) -> list[str]:
    """What a file says to its reader: strings of a program, comments of a configuration, a document but its Python."""
    text = path.read_text()
    if path.suffix == ".py":
        nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
        strings = (node.value for node in nodes if isinstance(node.value, str))
        return [re.sub(r"^\s*(>>>|\.\.\.).*$", "", text, flags=re.M) for text in strings]  # examples are Python
    if path.suffix == ".yaml":
        return [" ".join(line.partition("#")[2] for line in text.splitlines() if "#" in line)]
    refused = re.sub(r"^\$ fedsim .*\n(?=error: )", "", text, flags=re.M)  # shown for what it is answered
    return re.split(r"```python\n.*?```", refused, flags=re.S)


def hints(path: Path) -> list[str]:
    """The runs of overrides in a file, of several values the first, without those that have a placeholder."""
    found = []
    for text in said(path):
        for match in HINT.finditer(re.sub(r"\s+", " ", text)):
            words = [re.sub(r"(=\w[\w.]*),.*", r"\1", word) for word in match.group().rstrip(".,]").split()]
            words = [word + "]" if word.count("[") > word.count("]") else word.rstrip(".,") for word in words]
            if not any(OWN.search(word) for word in words) and "=" not in words[-1][-1]:
                found.append(" ".join(words))
    return found


def options(group: str) -> dict[str, str]:
    """The text of each option of a group, by name."""
    group = "channel" if group == "downlink" else group
    folder = CONFIGS / group
    return {path.relative_to(folder).with_suffix("").as_posix(): path.read_text() for path in folder.rglob("*.yaml")}


MAIN = (CONFIGS / "config.yaml").read_text()
ALL = sorted({(path.relative_to(ROOT).as_posix(), hint) for path in SOURCES for hint in hints(path)})
WHOLE = sorted(
    {(where, hint) for where, hint in ALL if " " in hint and "experiment=" not in hint and "privacy=local" not in hint}
)


def unknown(word: str, beside: str) -> str:
    """What is wrong with one override; ``beside`` is the whole hint, whose other words choose options."""
    key, _, value = word.partition("=")
    group, *path = key.split(".")
    if not path and group in ("rounds", "seed"):
        return ""
    if group in SECTIONS:
        return "" if re.search(rf"^  {path[0]}:", MAIN, re.M) else f"{group} has no {path[0]}"
    if not path:
        names = re.findall(r"[\w/]+", value) if "[" in value else [value]
        return ", ".join(f"no option {group}={name}" for name in names if name not in options(group) and name != "null")
    chosen = re.search(rf"(?<!\S){group}=([\w]+)", beside)
    found = options(group)
    texts = [found[chosen[1]]] if chosen else list(found.values())
    if group in ("channel", "downlink"):
        if path[0] == "encode" or path[-1] == "fields":
            return "" if path[0] == "encode" or path[0] in LAYERS else f"no layer {path[0]}"
        texts = [found[path[0]]] if path[0] in found else []
    if group == "model" and path[0] in MODEL_KEYS:  # of every model, beside its arguments
        return ""
    known = any(re.search(rf"^ *{path[-1]}:", text, re.M) for text in texts)
    return "" if known else f"no option of {group} has {path[-1]}"


def test_there_are_hints() -> None:
    assert len(ALL) > 150
    assert len(WHOLE) > 10
    assert ("fedsim/algorithms/onebit_adam.py", "channel=[of/onebit_adam] downlink=[of/onebit_adam_downlink]") in ALL


def test_every_option_and_key_that_is_named_exists() -> None:
    wrong = [(where, hint, why) for where, hint in ALL for word in hint.split() if (why := unknown(word, hint))]
    assert wrong == []


def test_a_name_that_does_not_exist_is_found_out() -> None:
    assert unknown("channel=[ef14,clip]", "") == "no option channel=clip"
    assert unknown("channel.clip.bound=1", "") != ""
    assert unknown("algorithm.nonsense=1", "") != ""


@pytest.mark.parametrize(("where", "hint"), WHOLE)
def test_a_hint_of_several_words_builds(where: str, hint: str) -> None:
    """Beside what it goes with: the method or the preset whose file it stands in."""
    own = Path(where).stem
    context = []
    if "algorithm=" not in hint:
        if "experiment/" in where:
            context = [f"experiment={own}"]
        elif own in ALGORITHMS:
            context = [f"algorithm={own}"]
    build_run(compose([*context, *hint.split()]))


def test_every_layer_that_is_named_exists() -> None:
    for path in SOURCES:
        if path.suffix == ".py" and path.parent.name not in ("algorithms", "channel"):
            continue
        for text in said(path):
            for name in re.findall(r"[Aa]n? ``?(\w+)``? layer", text):
                assert name in LAYERS, (path, text)


# `algorithm=NAME` alone. These want a problem of their own, and say so in one line.
PROBLEMS = {
    "continuized": ["data=quadratic"],
    "dadao": ["data=quadratic"],
    "msda": ["data=quadratic"],
    "onebit_adam": ["algorithm.warmup=1"],  # of two rounds
}
COMPRESSED = {
    "onebit_adam": (["ef14", "sign"], ["sign"]),
    "ec_sgd_diana": (["topk", "qsgd"], []),
    "beer": (["topk"], []),
    "choco_sgd": (["topk"], []),
    "deepsqueeze": (["topk"], []),
    "dcd_psgd": (["qsgd"], []),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_methods_name_alone_runs_it(name: str) -> None:
    """Two rounds, with nothing that the user should know."""
    argv = [f"algorithm={name}", *PROBLEMS.get(name, ()), "engine=serial", "rounds=2", "evaluate.every=2"]
    if "data=quadratic" not in argv:
        argv += ["partition=iid", "partition.clients=10"]
    if "override /schedule: events" in (CONFIGS / f"algorithm/{name}.yaml").read_text():
        argv.append("schedule.t_end=2")
    config = compose(argv)
    result = simulate(**build_run(config))
    assert result.status == "finished"
    layers = [[key for key in config[link] if key != "encode"] for link in ("channel", "downlink")]
    assert layers == list(COMPRESSED.get(name, ([], [])))


def test_methods_that_compress_say_so() -> None:
    """Adam is 1-bit Adam's class without an end of the warm-up, and compresses nothing."""
    declared = {name for name in ALGORITHMS if traits_of(algorithm(name)).compresses}
    assert declared == set(COMPRESSED)


def notes(*argv: str) -> str:
    parts = build_run(compose(list(argv)))
    return "; ".join(compression_notes(parts["algorithm"], parts["channel"], parts["downlink"], parts["rounds"]))


@pytest.mark.parametrize("name", COMPRESSED)
def test_without_a_channel_a_method_that_compresses_warns(name: str) -> None:
    assert notes(f"algorithm={name}") == ""
    assert "no layer of channel acts on it" in notes(f"algorithm={name}", "channel=[]")


def test_layers_on_the_warm_up_of_onebit_adam_warn() -> None:
    """The former hint, channel=[ef14,sign] and downlink=[sign], signs the warm-up's gradients and the model."""
    said = notes("algorithm=onebit_adam", "channel=[ef14,sign]", "downlink=[sign]")
    assert "channel.sign must act on momentum alone" in said
    assert "downlink.sign must act on momentum alone" in said
    assert "compresses nothing in 20 rounds" in notes("algorithm=onebit_adam", "rounds=20")
    assert notes("algorithm=onebit_adam", "algorithm.warmup=null", "channel=[]", "downlink=[]") == ""


def test_onebit_adam_alone_sends_bits_and_learns() -> None:
    argv = ["algorithm=onebit_adam", "engine=serial", "partition=iid", "partition.clients=5", "rounds=30"]
    config = compose([*argv, "algorithm.warmup=15", "evaluate.every=15"])
    metrics = simulate(**build_run(config)).metrics
    full, bits = metrics[15]["comm/uplink_bytes"], metrics[30]["comm/uplink_bytes"]
    assert full > 30 * bits  # one bit for 32
    assert metrics[30]["eval/accuracy"] > metrics[15]["eval/accuracy"]
