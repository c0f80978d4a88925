"""Pages of the site that are written while it is built: the README, the catalogue of options, the API's index.

MkDocs calls ``on_files`` and ``on_page_markdown``. What the catalogue says of an option is what its class, its file and
its yaml say; no fact stands here.
"""

from __future__ import annotations

import inspect
import posixpath
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from fedsim.cli.catalogue import GROUPS, Option, describe, options

ROOT = Path(__file__).resolve().parent.parent.parent
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "docker/README.md": "docker.md",
}
"""Pages that lie outside of docs, and their names on the site."""

CATALOGUE = {
    "algorithm": "Algorithms",
    "channel": "Layers of the channel",
    "privacy": "Privacy mechanisms",
    "topology": "Topologies",
    "partition": "Partitions",
    "schedule": "Schedules",
    "data": "Data",
    "model": "Models",
    "callbacks": "Callbacks",
}
"""Groups with a page, and its title."""

OF_PAPERS = ("algorithm", "channel", "data")
"""Groups whose modules are of one source each, which their docstring names."""

LISTS = re.compile(rf"`fedsim list ({'|'.join(CATALOGUE)})(?: (\w+))?`")
"""How a page names a page of the catalogue, so that it says something on the command line too."""

API = {
    "Runs": ("fedsim",),
    "Data": ("fedsim.data",),
    "Models": ("fedsim.models",),
    "Parts of a run": ("fedsim.partition", "fedsim.schedule", "fedsim.topology", "fedsim.callbacks"),
    "Messages and privacy": (
        *("fedsim.aggregate.Stack", "fedsim.channel.channel.Channel", "fedsim.channel.onion.Layer"),
        *("fedsim.channel.base", "fedsim.privacy.config"),
    ),
    "For authors of methods": (
        *("fedsim.objective.Objective", "fedsim.algorithms.kit.protocols", "fedsim.algorithms.kit.roles"),
        *("fedsim.algorithms.kit.local_sgd", "fedsim.traits", "fedsim.types", "fedsim.fields.check_fields"),
        *("fedsim.errors.require", "fedsim.errors.InputError"),
    ),
}
"""What users import, by page: packages with all names that they offer, and single names."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are written here."""
    pages = {name: (ROOT / path).read_text(encoding="utf-8") for path, name in ELSEWHERE.items()}
    pages |= {f"catalogue/{group}.md": catalogue(group) for group in CATALOGUE}
    pages["catalogue/experiment.md"] = presets()
    for title, paths in API.items():
        names = [name for path in paths for name in offered(path)]
        body = "\n\n".join(f"::: {name}" for name in names)
        pages[f"api/{title.split()[-1].lower()}.md"] = f"# {title}\n\n{body}\n"
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def offered(path: str) -> list[str]:
    """The names that a package offers, each with its path; what is no package stands for itself."""
    try:
        names = import_module(path).__all__
    except (ImportError, AttributeError):
        return [path]
    return [f"{path}.{name}" for name in names if not name.startswith("_")]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to where pages lie on the site, and ``fedsim list ...`` to the catalogue."""
    sources = {name: path for path, name in ELSEWHERE.items()}
    name = page.file.src_uri
    source = sources.get(name, f"docs/{name}")
    moved = re.sub(r"\]\(([^)\s:]+)\)", lambda found: f"]({site_link(found[1], source)})", markdown)
    return moved if "/" in name else LISTS.sub(lambda found: f"[{found[0]}]({listed(found[1], found[2])})", moved)


def listed(group: str, option: str | None) -> str:
    """The page that has what ``fedsim list GROUP OPTION`` shows."""
    return f"catalogue/{group}.md" + (f"#{option}" if option and option != "NAME" else "")


def site_link(link: str, source: str) -> str:
    """A link of a file of the repository, from the page that this file is; links to nothing stay as they are."""
    path, mark, anchor = link.partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not path or not (ROOT / target).is_file():
        return link
    return ELSEWHERE.get(target, target.removeprefix("docs/")) + mark + anchor


def catalogue(group: str) -> str:
    """A page with every option of a group."""
    found = options([ROOT / "configs"], group)
    said = describe(list(found.values()))
    head = f"# {CATALOGUE[group]}\n\n`{group}`: {GROUPS[group]}.\n"
    rows = "".join(f"| [`{name}`](#{name}) | {cell(linked(said[name]))} |\n" for name in found)
    table = f"\n| {group} | what it is |\n|---|---|\n{rows}\n"
    return head + table + "\n".join(section(group, option, said[option.name]) for option in found.values())


def presets() -> str:
    """A page with every preset: the first comment of its file, and the file."""
    parts = ["# Presets\n\n`fedsim experiment=NAME` takes all of these; what else you give wins.\n"]
    for name, option in options([ROOT / "configs"], "experiment").items():
        text = option.path.read_text(encoding="utf-8").rstrip()
        parts.append(f"## {name}\n\n{prose(linked(option.comment))}\n\n```yaml\n{text}\n```\n")
    return "\n".join(parts)


def section(group: str, option: Option, summary: str) -> str:
    """What there is to say of one option."""
    choice = f"{group}=[{option.name}]" if group in ("channel", "callbacks") else f"{group}={option.name}"
    parts = [f"## {option.name}", f"`{choice}`" + (f" · `{option.target}`" if option.target else "")]
    if option.target:
        parts += [linked(prose(text)) for text in documents(group, option.target)]
        parts += equations(option.target)
    else:
        parts.append(linked(prose(summary)))
    parts.append(keys(option))
    return "\n\n".join(part for part in parts if part) + "\n"


def part_of(target: str) -> Any:
    """What a target names; for a function that is annotated with the class that it makes, this class."""
    module, _, name = target.rpartition(".")
    made = getattr(import_module(module), name)
    told = getattr(made, "__annotations__", {}).get("return", "") if inspect.isfunction(made) else ""
    return getattr(sys.modules[made.__module__], str(told), made) if told else made


def documents(group: str, target: str) -> Iterator[str]:
    """The docstring of the file, where it is of one source, and that of the class without its lists."""
    part = part_of(target)
    if group in OF_PAPERS:
        yield inspect.getdoc(sys.modules[part.__module__]) or ""
    text = inspect.getdoc(part) or ""
    yield re.split(r"\n(?:Attributes|Args|Returns|Raises):\n|\n>>> ", text)[0]


def equations(target: str) -> list[str]:
    """What its methods say that they compute."""
    part = part_of(target)
    said = []
    for name, who in {"local": "A client", "server": "The server", "peer": "A peer", "mix": "Mixing"}.items():
        text = inspect.getdoc(getattr(part, name, None)) if inspect.isclass(part) else None
        if text:
            said.append(f"- *{who}*: {prose(' '.join(text.split()))}")
    return ["\n".join(said)]


def keys(option: Option) -> str:
    """The keys of its yaml with their defaults and comments."""
    text = option.path.read_text(encoding="utf-8").partition("_target_")[2].partition("\n")[2]
    row = r"^ *(\w+):(?: +([^#\n].*?))?(?: +# (.*))?$(?=(?:\n +_target_: (\S+))?)"  # of a part in the part: its class
    found = re.finditer(row, text, re.M)
    rows = [f"| `{k[1]}` | {code(k[2] or k[4] or '')} | {cell(k[3] or '')} |" for k in found if k[1] in option.keys]
    return "\n".join(["| key | default | what it is |", "|---|---|---|", *rows]) if rows else ""


def code(value: str) -> str:
    """A default in a cell."""
    return {"": "", "???": "*must be given*"}.get(value, f"`{cell(value)}`")


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return prose(text).replace("|", "\\|")


def prose(text: str) -> str:
    """Plain text as Markdown: what would be taken for a tag or for emphasis is not; code stays as it is."""
    parts = re.split(r"(`+[^`]*`+|^ {4}.*$)", text, flags=re.M)
    return "".join(
        part if i % 2 else re.sub(r"<(?=[\w/])", "&lt;", part).replace("*", "\\*") for i, part in enumerate(parts)
    )


def linked(text: str) -> str:
    """Papers by their arXiv identifier lead there."""
    return re.sub(r"\barXiv\s+(\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
