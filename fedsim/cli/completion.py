"""What a shell offers behind ``fedsim``: commands, their words, and Hydra's groups, options and keys.

A shell asks while its user types, with the line so far in COMP_LINE, and shows whatever is printed: so this prints
words, one a line, and no error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from itertools import pairwise
from pathlib import Path

from fedsim.cli.argv import COMMANDS
from fedsim.cli.commands import FOLDERS, command_first
from fedsim.cli.folder import config_folder

FLAGS = ("-sc", "--shell-completion")
REPLAYED = ("round=", "client=")


def queried(argv: Sequence[str]) -> bool:
    """Whether a shell asks how its line may go on; ``-sc install=bash`` is Hydra's to answer."""
    return any(flag in argv for flag in FLAGS) and any(text.startswith("query=") for text in argv)


def respond(argv: Sequence[str]) -> int:
    """Print how the line in COMP_LINE may go on; returns the exit code, which is always 0."""
    shell = next(text.partition("=")[2] for text in argv if text.startswith("query="))
    found: list[str] = []
    with open(os.devnull, "w") as null, redirect_stderr(null):
        try:
            found = complete(os.environ.get("COMP_LINE", ""), shell)
        except (Exception, SystemExit):  # a line not yet understood: an error of any type would stand in the prompt
            found = []
    sys.stdout.writelines(f"{word}\n" for word in found)
    return 0


def complete(line: str, shell: str = "bash") -> list[str]:
    """The words that the last one of a line may become.

    Args:
        line: from the name of the program up to the cursor.
        shell: whose words Hydra finds.
    """
    words = line.split()[1:]
    *before, last = [*words, ""] if line.endswith(" ") or not words else words
    typed = command_first(before)
    if typed and typed[0] in COMMANDS and typed[0] != "verify":
        offered = _words(typed[0], [word for word in typed[1:] if not word.startswith("-")], typed)
        return [word for word in offered if word.startswith(last)]
    commands = [] if any(not word.startswith("-") for word in before) else [*COMMANDS, "help"]
    rest = " ".join([*typed[typed[:1] == ["verify"] :], last])
    return [*(word for word in commands if word.startswith(last)), *_of_hydra(rest, shell, _own(before))]


def _words(command: str, given: Sequence[str], argv: Sequence[str]) -> list[str]:
    """What may stand behind a command and the words that were given to it."""
    if command == "download":
        from fedsim.data.downloads import DOWNLOADS

        return [name for name in DOWNLOADS if name not in given]
    if command == "replay":
        return [key for key in REPLAYED if not any(word.startswith(key) for word in given)] if given else []
    if command in ("export", "tune"):
        return []  # a folder or flags, which the shell itself completes
    return _options(["experiment", *given] if command == "presets" else given, [*_own(argv), config_folder()])


def _own(argv: Sequence[str]) -> list[Path]:
    """The folder with groups of the user's own, where one is named."""
    return [Path(after) for flag, after in pairwise(argv) if flag in FOLDERS]


def _options(given: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The groups; behind a group its options, and behind an option nothing."""
    inside = [path for folder in folders for path in folder.joinpath(*given[:1]).glob("*")]
    names = {path.name for path in inside if path.is_dir() and path.name != "hydra"}
    options = {path.stem for path in inside if path.suffix == ".yaml"}
    return sorted((names, options, ())[min(len(given), 2)])


def _of_hydra(line: str, shell: str, own: Sequence[Path]) -> list[str]:
    """Hydra's own words for a line without the program's name."""
    from fedsim.cli.arguments import flags_of
    from fedsim.cli.composer import composer_of

    with composer_of(flags_of([f"--config-dir={folder}" for folder in own])) as composer:
        plugins = composer.get_shell_to_plugin_map(composer.config_loader)[shell]
        return [word for plugin in plugins for word in plugin._query("config", line)]
