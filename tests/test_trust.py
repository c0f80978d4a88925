"""Nothing is called because a configuration names it, unless it is what its place expects; of strangers, nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save
from torch import nn

from fedsim.assembly.configuration import build_run
from fedsim.cli import resume
from fedsim.cli.folder import config_folder
from fedsim.errors import InputError
from fedsim.report.__main__ import main as report
from tests.test_cli import SMALL, composed, options

CALLS: list[str] = []


def recorder(*args: Any, **options: Any) -> str:
    """A function of no role: as ``os.system`` or ``shutil.rmtree`` would be."""
    CALLS.append("function")
    return "called"


class Recorder:
    """A class of no role: as ``subprocess.Popen`` would be."""

    def __init__(self, *args: Any, **options: Any):
        CALLS.append("class")


@dataclass(frozen=True)
class Loader:
    """A class of one role, which must not be built in the place of another."""

    def __post_init__(self) -> None:
        CALLS.append("loader")

    def load(self, seed: int) -> Any: ...


class Net(nn.Module):
    """A model, which must not be built in the place of anything else."""

    def __init__(self) -> None:
        CALLS.append("model")
        super().__init__()


STRANGERS = {kind.__name__: f"{__name__}.{kind.__name__}" for kind in (recorder, Recorder, Loader, Net)}
FITS = {"Loader": ("data",), "Net": ("model",)}
"""The one place of a stranger, in which it may be built."""

GROUPS = (
    "aggregate",
    "algorithm",
    "channel",
    "data",
    "engine",
    "model",
    "partition",
    "privacy",
    "schedule",
    "topology",
)
ENTRIES = [(group, option) for group in GROUPS for option in options(group) if (group, option) != ("privacy", "none")]
FIRST = [*((group, option) for group, option in ENTRIES), *(("experiment", option) for option in options("experiment"))]


@pytest.fixture(autouse=True)
def _none_yet() -> Iterator[None]:
    CALLS.clear()
    yield
    CALLS.clear()


def chosen(group: str, option: str) -> dict[str, Any]:
    """A whole configuration with this option."""
    return composed(f"{group}=[{option}]" if group == "channel" else f"{group}={option}")


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested containers, but for the names of classes themselves."""
    if path and path[-1] != "_target_":
        yield path
    children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield from places(value, (*path, key))


def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Nested containers with another value in one place."""
    if not path:
        return value
    first, *rest = path
    new = dict(node) if isinstance(node, Mapping) else list(node)
    new[first] = replaced(node[first], tuple(rest), value)
    return new


def require_refused(config: Mapping[str, Any], path: tuple[Any, ...], value: Any) -> None:
    """Not called; a line that names the place is among what is wrong. (Only options given by hand are missing too.)"""
    where = ".".join(str(part) for part in path)
    with pytest.raises(InputError) as error:
        build_run(replaced(config, path, value))
    assert CALLS == [], where
    lines = [line for line in str(error.value).splitlines() if "tests.test_trust." in line]
    assert len(lines) == 1, (where, str(error.value))
    assert lines[0].removeprefix("unknown key ").startswith(str(path[0])), lines


# In the fast suite one of them stands for the four, which differ in what they are taken for, not in where.
KINDS = [pytest.param(name, marks=[] if name == "recorder" else [pytest.mark.slow]) for name in STRANGERS]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("group", "option"), FIRST, ids="/".join)
def test_a_stranger_is_refused_in_every_place(group: str, option: str, name: str) -> None:
    """In place of plain values, of parts of other roles, of their options, of nested ones: of everything composed."""
    config = chosen(group, option)
    own = {key: value for key, value in config.items() if group == "experiment" or key in (group, "aggregate")}
    for path in places(own):
        fits = path[0] in FITS.get(name, ())
        if fits and (len(path) == 1 or (len(path) == 3 and path[1] == "architectures")):
            continue
        require_refused(config, path, {"_target_": STRANGERS[name]})


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_is_refused_everywhere_in_what_runs_without_arguments(name: str) -> None:
    config = composed()
    for path in places(config):
        if path not in [(place,) for place in FITS.get(name, ())]:
            require_refused(config, path, {"_target_": STRANGERS[name], "command": "echo"})


HERMETIC = ("os.system", "os.getcwd", "time.sleep", "builtins.dict", "builtins.exec", "subprocess.run", "shutil.rmtree")
"""Functions that must not be called, whatever the options."""


@pytest.mark.parametrize("name", HERMETIC)
@pytest.mark.parametrize("group", [*GROUPS, "downlink"])
def test_functions_of_python_play_no_part(group: str, name: str) -> None:
    node = {"_target_": name}
    value = {"mine": node} if group in ("channel", "downlink") else node
    with pytest.raises(InputError, match=rf"^{group}[._].*{name}") as error:
        build_run({**composed(), group: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*HERMETIC, "networkx.write_graphml", STRANGERS["recorder"], STRANGERS["Recorder"]])
def test_a_generator_of_graphs_is_one(name: str) -> None:
    config = composed("algorithm=dpsgd", "topology=networkx", f"topology.generator={name}")
    with pytest.raises(InputError, match=r"^topology.generator must be") as error:
        build_run(config)
    assert "\n" not in str(error.value)
    assert CALLS == []


EVIL = """
from pathlib import Path
from fedsim.data import Digits

Path("imported").touch()

class Data(Digits):
    def __post_init__(self):
        Path("called").touch()
        super().__post_init__()
"""
PLANTED: dict[str, tuple[str, ...]] = {
    "evil.Data": ("data", "_target_"),
    "evil.anything": ("local", "batch_size"),
    "evil.nested": ("algorithm", "lr"),
    "evil.deep": ("engine", "timeout_s"),
    "evil.generator": ("topology",),
}


def planted(folder: Path, name: str) -> None:
    """A run folder that somebody has sent, in which this name stands."""
    place = PLANTED[name]
    config = composed(*SMALL)
    value: Any = name if place[-1] == "_target_" else {"_target_": name, "command": "touch called"}
    if place == ("topology",):
        value = {"_target_": "fedsim.topology.Networkx", "generator": name}
    (folder / "config.yaml").write_text(yaml.safe_dump(replaced(config, place, value)))


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run folder, and a module beside it."""
    (tmp_path / "evil.py").write_text(EVIL)
    sys.modules.pop("evil", None)
    folder = tmp_path / "sent"
    folder.mkdir()
    yield folder
    sys.modules.pop("evil", None)


BUILDING = (
    ("resume=sent",),
    ("resume=sent", "trust=false"),
    ("replay", "sent", "round=1"),
    ("export", "sent", "--format", "onnx"),
)


@pytest.mark.parametrize("argv", BUILDING)
@pytest.mark.parametrize("name", PLANTED)
def test_nothing_runs_from_a_folder_that_somebody_sent(
    console: Callable[..., int], capsys: pytest.CaptureFixture[str], sent: Path, name: str, argv: tuple[str, ...]
) -> None:
    planted(sent, name)
    (sent / "model.safetensors").write_bytes(save({"w": torch.zeros(1)}))
    assert console(*argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"must name parts of fedsim only, got {name}, which can run any code; add trust=true" in line
    assert {path.name for path in sent.parent.iterdir()} == {"evil.py", "sent"}, "nothing was imported or called"
    assert {path.name for path in sent.iterdir()} == {"config.yaml", "model.safetensors"}


def test_a_folder_that_names_a_cluster_is_not_connected_to_it(
    console: Callable[..., int], capsys: pytest.CaptureFixture[str], sent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a cluster answers is unpickled: it can run code here."""
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    config = composed(*SMALL)
    config["engine"] |= {"backend": "ray", "address": "203.0.113.7:6379"}
    (sent / "config.yaml").write_text(yaml.safe_dump(config))
    assert console("resume=sent") == 2
    assert "got the cluster engine.address=203.0.113.7:6379, which can" in capsys.readouterr().err
    for own in ("engine=serial", "engine.address=null"):  # what the user types is the user's
        resume.stopped(["resume=sent", own], config_folder())


def test_with_the_word_a_users_own_run_goes_on(
    console: Callable[..., int], capsys: pytest.CaptureFixture[str], sent: Path
) -> None:
    """On the command line an own class needs no word; its folder, which anybody may have written, does."""
    argv = (*SMALL, "data._target_=evil.Data", "hydra.run.dir=sent")
    assert console(*argv) == 0
    assert (sent.parent / "called").exists()
    for command in (("resume=sent", "rounds=3"), ("replay", "sent", "round=1", "client=0")):
        assert console(*command) == 2
        assert "got evil.Data, which" in capsys.readouterr().err
        assert console(*command, "trust=true") == 0


def test_a_report_names_strangers_and_imports_none(capsys: pytest.CaptureFixture[str], sent: Path) -> None:
    planted(sent, "evil.Data")
    (sent / "metrics.jsonl").write_text('{"round": 0, "eval/loss": 1.0}\n')
    assert report([str(sent), "--no-figures"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Classes that are not fedsim's, of which nothing was imported or run here: evil.Data." in said
    assert "evil" not in sys.modules
    assert {path.name for path in sent.parent.iterdir()} == {"evil.py", "sent"}
