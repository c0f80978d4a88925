"""The options that there are, described by the first line of the docstring of what they build."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fedsim.assembly.problems import did_you_mean
from fedsim.cli.folder import config_folder
from fedsim.cli.guesses import unknown_option
from fedsim.errors import InputError, first_line
from fedsim.ground.console import Terminal

ALIASES = {"downlink": "channel", "presets": "experiment"}
GROUPS = {
    "aggregate": "how the server joins the clients' messages",
    "algorithm": "the method",
    "callbacks": "who listens to the run and may stop it: callbacks=[early_stopping,csv]",
    "channel": "layers around messages (downlink=[...]: the server's), outermost first: channel=[ef14,topk]",
    "data": "the data set",
    "engine": "where and how it is computed; never changes what comes out",
    "experiment": "presets: whole runs pinned by a file",
    "model": "what is trained",
    "partition": "which client holds what",
    "privacy": "the mechanism and its promise",
    "schedule": "who takes part when",
    "sweep": "several runs from a file, with -m",
    "task": "the loss and the metrics, where not what the data set says",
    "topology": "who gossips with whom, for methods without a server",
}


@dataclass(frozen=True)
class Option:
    """One file of a group.

    Attributes:
        name: as in GROUP=NAME.
        path: its file.
        target: dotted path of what it builds, or "".
        keys: what can be set.
    """

    name: str
    path: Path
    target: str
    keys: tuple[str, ...]

    @property
    def comment(self) -> str:
        """The first comment of the file."""
        lines = self.path.read_text().splitlines()
        comments = [line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line]
        return comments[0] if comments else ""

    @property
    def documentation(self) -> str:
        """The docstring of what it builds, or ""; classes of the user's own may be missing."""
        module, _, name = self.target.rpartition(".")
        try:
            return inspect.getdoc(getattr(import_module(module), name)) or "" if module else ""
        except (ImportError, AttributeError) as error:
            return f"({first_line(error)})"


def show(group: str | None, option: str | None, config_dir: Path | None) -> int:
    """Print the groups, the options of one group, or one option whole.

    Raises:
        InputError: there is no such group or option.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise InputError(f"--config-dir must be an existing folder, got {str(config_dir)!r}")
    folders = [folder for folder in (config_dir, config_folder()) if folder is not None]
    groups = sorted({p.name for f in folders for p in f.iterdir() if p.is_dir() and p.name != "hydra"})
    if group is None:
        named = [(name, GROUPS.get(name, ""), " ".join(options(folders, name))) for name in groups]
        _table(("group", "what it chooses", "options"), named)
        Terminal().print("fedsim list GROUP describes the options, fedsim list GROUP OPTION one of them", style="dim")
        return 0
    group = ALIASES.get(group, group)
    if group not in groups:
        raise InputError(f"unknown group {group}; {did_you_mean(group, groups)}groups: {', '.join(groups)}")
    found = options(folders, group)
    if option is None:
        described = describe(list(found.values()))
        chosen = _default(group)
        rows = [
            (f"{o.name} *" if o.name == chosen else o.name, described[o.name], " ".join(o.keys)) for o in found.values()
        ]
        _table((group, "* = by default" if chosen else "", "keys"), rows)
        return 0
    if option not in found:
        raise InputError(unknown_option(group, option, list(found)))
    parts = [f"{group}={option}", found[option].documentation, found[option].path.read_text().rstrip()]
    Terminal().print("\n\n".join(part for part in parts if part), markup=False, soft_wrap=True)
    return 0


def options(folders: list[Path], group: str) -> dict[str, Option]:
    """The options of a group by name; of two with one name the first folder's counts."""
    found: dict[str, Option] = {}
    for path in (path for folder in folders for path in sorted((folder / group).glob("*.yaml"))):
        found.setdefault(path.stem, _option(path, group))
    return dict(sorted(found.items()))


def describe(found: list[Option]) -> dict[str, str]:
    """A line for each: of its class, or of its file where several options build the same or nothing says what."""
    sharing = Counter(option.target for option in found)
    lines = {
        o.name: o.documentation.split("\n")[0].replace("``", "") for o in found if o.target and sharing[o.target] == 1
    }
    return {o.name: lines.get(o.name) or o.comment for o in found}


def _option(path: Path, group: str) -> Option:
    try:
        content: Any = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path} must be yaml, got {' '.join(str(error).split())}") from error
    content = content if isinstance(content, Mapping) else {}
    nodes = [content, content.get(group), content.get(path.stem)]
    node = next((n for n in nodes if isinstance(n, Mapping) and "_target_" in n), {})
    keys = tuple(str(key) for key in node if key != "_target_")
    return Option(path.stem, path, str(node.get("_target_", "")), keys)


def _default(group: str) -> str | None:
    """What the group is when nothing is said."""
    defaults = yaml.safe_load((config_folder() / "config.yaml").read_text())["defaults"]
    chosen = {key: value for entry in defaults if isinstance(entry, Mapping) for key, value in entry.items()}
    return chosen[group] if isinstance(chosen.get(group), str) else None


def _table(head: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> None:
    """A table on a terminal; lines with tabs in a pipe."""
    console = Terminal()
    if not console.is_terminal:
        sys.stdout.writelines("\t".join(row) + "\n" for row in rows)
        return
    table = Table(box=SIMPLE_HEAD, header_style="dim")
    table.add_column(head[0], style="bold", no_wrap=True)
    table.add_column(head[1], ratio=2)
    table.add_column(head[2], style="dim", ratio=1)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
